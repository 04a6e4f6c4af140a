"""Links from a user to what was stored for the user under keys that do not say so: cached answers, notes of answers.

They are what makes it possible to forget these with the user.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from igd_server.recommend.records import RecordLimits, RecordWriter

if TYPE_CHECKING:
    from igd_server.recommend.background import Background
    from igd_server.recommend.store_guard import StoreGuard

_MAX_LINKS = 1000
"""Of a user, in the store."""
_MAX_RECENT = 8192


class Links:
    """Names in the store, by user; what was linked lately is not linked again."""

    def __init__(self, store: StoreGuard, background: Background, *, ttl_s: float) -> None:
        """``ttl_s``: seconds for which what is linked may be stored."""
        self._recent: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._writer = RecordWriter(store, background, "links", RecordLimits(keep=_MAX_LINKS, ttl_s=ttl_s), self)

    def note(self, user_id: str | None, name: str) -> None:
        """Something is stored under ``name`` for this user; None: for nobody in particular."""
        if user_id is None or (user_id, name) in self._recent:
            return
        self._recent[user_id, name] = None
        if len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        self._writer.add(user_id, name.encode)

    def wrote(self, records: int) -> None:
        """Nobody counts links."""

    def lost(self, records: int, cause: str) -> None:
        """What is linked to nobody ends by itself; the store's own metrics count the failure."""

    async def names(self, user_id: str) -> set[str]:
        """All that is linked to a user, by this server and by others."""
        stored = {each.decode(errors="replace") for each in await self._writer.of(user_id)}
        return stored | {name for user, name in self._recent if user == user_id}

    async def forget(self, user_id: str) -> None:
        """Link nothing more of what was noted before."""
        for link in [link for link in self._recent if link[0] == user_id]:
            del self._recent[link]
        await self._writer.forget(user_id)
