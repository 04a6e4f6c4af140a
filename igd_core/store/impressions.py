"""What an answer showed to a user, as stores keep it."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Impression:
    """One answer: the items that it showed, best first.

    Attributes:
        request_id: the answer's.
        timestamp_ms: when it was given, milliseconds since 1970-01-01 UTC.
        catalogue: its name.
        version: of the catalogue.
        variant: of the server's; empty where it has none.
        source: who ranked: ``model`` or ``popularity``.
        item_ids: ``(k,)`` in the order of the ranks.
        scores: ``(k,)`` as the answer gave them.
    """

    request_id: str
    timestamp_ms: int
    catalogue: str
    version: str
    variant: str
    source: str
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]

    def packed(self) -> bytes:
        """As a store keeps it: 400 bytes with ten items whose ids have eight characters."""
        return json.dumps([_FORMAT, *astuple(self)], separators=(",", ":"), ensure_ascii=False).encode()

    @staticmethod
    def unpacked(record: bytes) -> Impression | None:
        """The impression; None for what another release has written in a format of its own."""
        try:
            made, request_id, timestamp_ms, catalogue, version, variant, source, item_ids, scores = json.loads(record)
        except (ValueError, TypeError):
            return None
        if made != _FORMAT:
            return None
        return Impression(
            request_id=request_id,
            timestamp_ms=timestamp_ms,
            catalogue=catalogue,
            version=version,
            variant=variant,
            source=source,
            item_ids=tuple(item_ids),
            scores=tuple(scores),
        )


def impressions_in(records: Iterable[bytes]) -> list[Impression]:
    """The impressions of one user by time, each once: a store may have been told of one twice."""
    found = {each.request_id: each for each in map(Impression.unpacked, records) if each is not None}
    return sorted(found.values(), key=lambda each: (each.timestamp_ms, each.request_id))
