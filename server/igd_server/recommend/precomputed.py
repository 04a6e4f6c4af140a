"""Lists that were made for users in advance, for when the model cannot answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from igd_core.errors import StoreError
from igd_core.store.precomputed import PrecomputedList, newest_of

if TYPE_CHECKING:
    from igd_core.search.recommender import Recommendation
    from igd_server.recommend.resolve import Asked
    from igd_server.recommend.store_guard import StoreGuard


class PrecomputedLists:
    """Looks lists up that `igd precompute` stored; none unless the setting says so."""

    def __init__(self, store: StoreGuard, *, wanted: bool) -> None:
        """``wanted``: whether lists are looked up at all."""
        self._store = store
        self._wanted = wanted

    async def answer(self, asked: Asked, *, by: float) -> tuple[PrecomputedList, Recommendation] | None:
        """The user's list as the request's filters admit it, if it holds ``k`` items then; None if not, or too late.

        Items that the served version lacks are passed over. ``by`` is a time of the event loop.
        """
        user_id = asked.request.user_id
        if not self._wanted or user_id is None:
            return None
        try:
            records = await self._store.records("precomputed", user_id, by=by)
        except StoreError:
            return None
        made = newest_of(records, asked.served.name)
        if made is None:
            return None
        catalogue = asked.served.catalogue
        rows = [(catalogue.index_of(item_id), score) for item_id, score in zip(made.item_ids, made.scores, strict=True)]
        found = await asked.served.recommender.listed(
            asked.resolved, [(row, score) for row, score in rows if row is not None]
        )
        return (made, found) if len(found.items) == asked.resolved.k else None


def age_s_of(made: PrecomputedList) -> float:
    """Seconds since the list was made."""
    return max(0.0, round(time.time() - made.made_at_ms / 1000, 1))
