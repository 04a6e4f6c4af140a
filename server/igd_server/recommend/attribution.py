"""Attribution: which recommendation an event follows; counts shown items that were chosen, by variant."""

from __future__ import annotations

import asyncio
import hashlib
import math
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from igd_core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from igd_server.recommend.background import Background
    from igd_server.recommend.links import Links
    from igd_server.recommend.store_guard import StoreGuard


_LANE = "attribution"
_GATHER_S = 0.005
_MAX_NOTES = 1000
_MAX_RECENT = 4096
_MAX_ITEMS = 256  # of an answer, duplicates included
_MARK_BYTES = 4
# Among the marks of a note whose answer a success has followed. Releases that do not know it take it for an item that
# nobody chooses; that an item's mark is the same has a chance of one in 4e9.
_FOLLOWED = bytes(_MARK_BYTES)


class AttributionMetrics(Protocol):
    """Counters for attribution."""

    def observe_attributed(self, *, variant: str, catalogue: str) -> None:
        """Count an event on an item of the recommendation that it names."""
        ...

    def observe_followed(self, *, variant: str, catalogue: str) -> None:
        """Count a recommendation at the first of these events."""
        ...

    def observe_attribution_dropped(self) -> None:
        """Count a recommendation that later events cannot be matched with."""
        ...


class Attribution:
    """Remembers the items of each recommendation, and counts events on them: each item once.

    A request id is the client's, and may be another's too: an answer to a user is noted under both, and counts for
    events of that user alone. An answer to nobody in particular counts for whoever names it. Of two answers under one
    id to one user, or to nobody, the later is noted.

    Notes go to the store, for all servers, where there are variants, or while events name recommendations; else the
    latest stay in this process. A note holds 4 bytes for each item: 60 bytes for 10 items, 1.2 kB at most; the chance
    that another item has the same 4 bytes is one in 4e8 for 10 items.

    All of it runs in the background, in the order of arrival: no answer waits for it, and what the store does not take
    is not counted. Recommendations of the same few milliseconds are written in one call of the store.
    """

    def __init__(
        self,
        store: StoreGuard,
        background: Background,
        *,
        ttl_s: float,
        metrics: AttributionMetrics,
        variants: bool = False,
        links: Links | None = None,
    ) -> None:
        """``ttl_s``: seconds for which an event may name a recommendation; ``variants``: whether there are variants.

        ``links`` learn whose the notes in the store are.
        """
        self._store = store
        self._background = background
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._wanted_until = math.inf if variants else -math.inf  # time of the event loop
        self._links = links
        self._notes: dict[str, bytes] = {}
        self._recent: OrderedDict[str, tuple[bytes, str | None]] = OrderedDict()  # not in the store; with their users

    def remember(
        self, request_id: str, *, variant: str, catalogue: str, marks: bytes, user_id: str | None = None
    ) -> None:
        """Note the items of an answer to a user, as `marks_of` encodes them."""
        if not marks:
            return
        self._keep(_key(request_id, user_id), _Note(variant=variant, catalogue=catalogue, marks=marks).pack(), user_id)

    @staticmethod
    def names_of(request_id: str, user_id: str) -> tuple[str, str]:
        """What notes of answers that an event of a user may follow are called in the store.

        Of an answer to the user; and of one to nobody, or of a release that noted no users.
        """
        return _key(request_id, user_id), _key(request_id, None)

    def forget(self, user_id: str, names: Collection[str]) -> set[str]:
        """Drop notes that are not in the store yet, of a user or by name; returns the names of those."""
        here = {name for name in names if name in self._notes}
        for name in here:
            del self._notes[name]
        for name in [name for name, (_, user) in self._recent.items() if user == user_id or name in names]:
            here.add(name)
            del self._recent[name]
        return here

    def attribute(self, request_id: str, item_ids: Sequence[str], *, user_id: str) -> None:
        """Count events of a user on ``item_ids`` that name the recommendation ``request_id``."""
        names = self.names_of(request_id, user_id)
        is_new = not self._is_wanted()
        self._wanted_until = max(self._wanted_until, _now() + self._ttl_s)
        if is_new:  # from now on other servers may get such events too
            recent, self._recent = self._recent, OrderedDict()
            for named in names:
                if named in recent:
                    recent.move_to_end(named)
            for key, (note, whose) in list(recent.items())[-_MAX_NOTES // 2 :]:
                self._keep(key, note, whose)
        if not self._background.offer(_LANE, lambda: self._attribute(names, item_ids)):
            self._metrics.observe_attribution_dropped()

    def _is_wanted(self) -> bool:
        return _now() < self._wanted_until

    def _keep(self, key: str, note: bytes, user_id: str | None) -> None:
        if not self._is_wanted():
            self._recent[key] = (note, user_id)
            if len(self._recent) > _MAX_RECENT:
                self._recent.popitem(last=False)
            return
        is_first = not self._notes
        if len(self._notes) >= _MAX_NOTES or (is_first and not self._background.offer(_LANE, self._write)):
            self._metrics.observe_attribution_dropped()
            return
        self._notes[key] = note
        if self._links is not None:
            self._links.note(user_id, key)

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_S)
        notes, self._notes = self._notes, {}
        try:
            await self._store.put_all(notes, self._ttl_s)
        except StoreError:
            for _ in notes:
                self._metrics.observe_attribution_dropped()

    async def _attribute(self, names: Sequence[str], item_ids: Sequence[str]) -> None:
        for name in names:
            kept = await self._store.get(name)
            note = None if kept is None else _Note.unpack(kept)
            if note is not None:
                await self._count(name, note, item_ids)
                return

    async def _count(self, name: str, note: _Note, item_ids: Sequence[str]) -> None:
        shown = set(_split(note.marks))
        taken = shown.intersection(_mark(item_id) for item_id in item_ids)
        if not taken:
            return
        # Remove the items from the note before counting them: a second event on one of them finds it gone.
        left = replace(note, marks=b"".join(sorted((shown - taken) | {_FOLLOWED})))
        await self._store.put(name, left.pack(), self._ttl_s)
        if _FOLLOWED not in shown:
            self._metrics.observe_followed(variant=note.variant, catalogue=note.catalogue)
        for _ in taken:
            self._metrics.observe_attributed(variant=note.variant, catalogue=note.catalogue)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """The items of one recommendation; ``marks`` are 4 bytes for each."""

    variant: str
    catalogue: str
    marks: bytes

    def pack(self) -> bytes:
        names = f"{self.variant}\n{self.catalogue}".encode()
        return b"%c%b%b" % (len(names), names, self.marks)

    @staticmethod
    def unpack(value: bytes) -> _Note | None:
        """None for another release's format."""
        length = int.from_bytes(value[:1], "big")
        names, marks = value[1 : 1 + length], value[1 + length :]
        variant, separator, catalogue = names.decode(errors="replace").partition("\n")
        if not separator or len(marks) % _MARK_BYTES:
            return None
        return _Note(variant=variant, catalogue=catalogue, marks=marks)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _key(request_id: str, user_id: str | None) -> str:
    if user_id is None:
        return f"answer:{request_id}"
    # Of a bounded length and in ASCII, as keys are; no request id holds a colon.
    whose = hashlib.blake2b(user_id.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"answer:{request_id}:{whose}"


def marks_of(item_ids: Sequence[str]) -> bytes:
    """Encode the items of a recommendation for its note: 4 bytes of a hash of each id, as events name items."""
    return b"".join(map(_mark, item_ids[:_MAX_ITEMS]))


def _mark(item_id: str) -> bytes:
    return zlib.crc32(item_id.encode(errors="surrogatepass")).to_bytes(_MARK_BYTES, "big")


def _split(marks: bytes) -> list[bytes]:
    return [marks[at : at + _MARK_BYTES] for at in range(0, len(marks), _MARK_BYTES)]
