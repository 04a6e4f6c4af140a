"""A list made for a user before anybody asked for it, as stores keep it."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from igd_core.ids import MAX_ITEM_ID_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_ITEMS = 1000
"""Of a list; more are cut off."""
_FORMAT = 1
_MOST_BYTES = 1 << 20
_END_MS = 253_402_300_799_999  # of the year 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecomputedList:
    """What `igd batch` found for a user: items, best first.

    Attributes:
        catalogue: the name under which servers serve it.
        version: of the artifact that it was made with.
        model_fingerprint: of the model that made it.
        made_at_ms: when, milliseconds since 1970-01-01 UTC.
        item_ids: ``(k,)`` in the order of the ranks.
        scores: ``(k,)`` nats.
    """

    catalogue: str
    version: str
    model_fingerprint: str
    made_at_ms: int
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]

    def packed(self) -> bytes:
        """As a store keeps it: 350 bytes with ten items whose ids have eight characters."""
        return json.dumps([_FORMAT, *astuple(self)], separators=(",", ":"), ensure_ascii=False).encode()

    @staticmethod
    def unpacked(record: bytes) -> PrecomputedList | None:
        """The list; None for what is none, or is in the format of another release."""
        try:
            if len(record) > _MOST_BYTES:
                return None
            made, *texts, made_at_ms, item_ids, scores = json.loads(record)
            catalogue, version, model_fingerprint = texts
        except (ValueError, TypeError, RecursionError):
            return None
        is_list = (
            made == _FORMAT
            and all(isinstance(text, str) for text in texts)
            and type(made_at_ms) is int
            and 0 <= made_at_ms <= _END_MS
            and isinstance(item_ids, list)
            and isinstance(scores, list)
            and 0 < len(item_ids) == len(scores) <= MOST_ITEMS
            and all(isinstance(each, str) and 0 < len(each) <= MAX_ITEM_ID_CHARS for each in item_ids)
            and all(type(each) is float and math.isfinite(each) for each in scores)
        )
        if not is_list:
            return None
        return PrecomputedList(
            catalogue=catalogue,
            version=version,
            model_fingerprint=model_fingerprint,
            made_at_ms=made_at_ms,
            item_ids=tuple(item_ids),
            scores=tuple(scores),
        )


def newest_of(records: Iterable[bytes], catalogue: str) -> PrecomputedList | None:
    """The list of a catalogue that was made last; None if there is none among a user's records."""
    found = [
        each for each in map(PrecomputedList.unpacked, records) if each is not None and each.catalogue == catalogue
    ]
    return max(found, key=lambda each: each.made_at_ms, default=None)
