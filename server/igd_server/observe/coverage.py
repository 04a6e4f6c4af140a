"""How much of a catalogue has been recommended: one popular list for all, or something for everyone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from prometheus_client import Gauge

if TYPE_CHECKING:
    from datetime import datetime

    from prometheus_client import CollectorRegistry

    from igd_core.catalogue.items import Catalogue


class Shown(Protocol):
    """A catalogue's version that is served."""

    @property
    def name(self) -> str:
        """Of the catalogue."""
        ...

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""
        ...

    @property
    def loaded_at(self) -> datetime:
        """When the version took over."""
        ...


_MAX_ANSWERS = 1024


class Coverage:
    """Counts items that this process has recommended since their catalogue's version took over; a byte an item.

    An answer that is given again shows nothing new, and its items are not looked up again.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shown: dict[str, _Seen] = {}
        self._items = Gauge(
            "igd_catalogue_items_recommended",
            "Items that this server's answers have shown since the version took over.",
            ("catalogue",),
            registry=registry,
        )

    def observe(self, served: Shown, item_ids: bytes) -> None:
        """Note what an answer showed, a JSON array; answers of a version that is no longer served do not count."""
        shown = self._shown.get(served.name)
        if shown is None or shown.since < served.loaded_at:
            shown = self._shown[served.name] = _Seen(since=served.loaded_at, items=bytearray(len(served.catalogue)))
            self._items.labels(served.name).set(0)
        if shown.since > served.loaded_at or item_ids in shown.answers:
            return
        if len(shown.answers) >= _MAX_ANSWERS:
            shown.answers.clear()
        shown.answers.add(item_ids)
        for item_id in json.loads(item_ids):
            row = served.catalogue.index_of(item_id)
            if row is not None and not shown.items[row]:
                shown.items[row] = 1
                self._items.labels(served.name).inc()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """Of one version: when it took over, 1 for each item that has been shown, and answers that were looked at."""

    since: datetime
    items: bytearray
    answers: set[bytes] = field(default_factory=set)
