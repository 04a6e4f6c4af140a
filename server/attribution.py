"""Which answer an event goes back to: per variant and catalogue, how often what was shown was taken."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Protocol

from igd_core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.background import Background
    from server.store_guard import StoreGuard


_LANE = "attribution"
_GATHER_S = 0.005
_MAX_NOTES = 1000


class AttributionMetrics(Protocol):
    """What is counted."""

    def observe_attributed(self, *, variant: str, catalogue: str) -> None:
        """An event on an item of the answer that it names."""
        ...

    def observe_attribution_dropped(self) -> None:
        """An answer that events can no longer be matched with."""
        ...


class Attribution:
    """Remembers in the store what each answer showed, and counts events on it: each item of an answer once.

    All of it happens behind the answers, in the order in which it came: none waits for it, and what the store does not
    take is not counted. Answers of the same few milliseconds are written in one call of the store.
    """

    def __init__(self, store: StoreGuard, background: Background, *, ttl_s: float, metrics: AttributionMetrics) -> None:
        """``ttl_s``: seconds for which an event may name an answer."""
        self._store = store
        self._background = background
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._notes: dict[str, bytes] = {}

    def remember(self, request_id: str, *, variant: str, catalogue: str, item_ids: bytes) -> None:
        """Note what an answer showed: ``item_ids`` is a JSON array of strings."""
        note = b'{"variant":%b,"catalogue":%b,"items":%b}' % (_json(variant), _json(catalogue), item_ids)
        is_first = not self._notes
        if len(self._notes) >= _MAX_NOTES or (is_first and not self._background.offer(_LANE, self._write)):
            self._metrics.observe_attribution_dropped()
            return
        self._notes[_key(request_id)] = note

    def attribute(self, request_id: str, item_ids: Sequence[str]) -> None:
        """Count events on ``item_ids`` that name the answer ``request_id``."""
        if not self._background.offer(_LANE, lambda: self._attribute(request_id, item_ids)):
            self._metrics.observe_attribution_dropped()

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_S)
        notes, self._notes = self._notes, {}
        try:
            await self._store.put_all(notes, self._ttl_s)
        except StoreError:
            for _ in notes:
                self._metrics.observe_attribution_dropped()

    async def _attribute(self, request_id: str, item_ids: Sequence[str]) -> None:
        note = await self._store.get(_key(request_id))
        if note is None:
            return
        answer = json.loads(note)
        shown = set(answer["items"])
        taken = shown.intersection(item_ids)
        if not taken:
            return
        # The items counted leave the note, before they are counted: a second event on one of them finds it gone.
        left = {**answer, "items": sorted(shown - taken)}
        await self._store.put(_key(request_id), json.dumps(left).encode(), self._ttl_s)
        for _ in taken:
            self._metrics.observe_attributed(variant=answer["variant"], catalogue=answer["catalogue"])


def _key(request_id: str) -> str:
    return f"answer:{request_id}"


def _json(text: str) -> bytes:
    return json.dumps(text).encode()
