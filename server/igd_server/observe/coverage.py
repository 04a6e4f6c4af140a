"""Coverage: how many of a catalogue's items have been recommended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client import Gauge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from prometheus_client import CollectorRegistry

    from igd_core.catalogue.items import Catalogue


class Shown(Protocol):
    """A catalogue version that is being served."""

    @property
    def name(self) -> str:
        """The catalogue's name."""
        ...

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""
        ...

    @property
    def loaded_at(self) -> datetime:
        """When the version began to serve."""
        ...


class Coverage:
    """Counts the items that this process has recommended since their catalogue's version took over; a byte an item."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shown: dict[str, tuple[datetime, bytearray]] = {}
        self._items = Gauge(
            "igd_catalogue_items_recommended",
            "Items that this server's answers have shown since the version took over.",
            ("catalogue",),
            registry=registry,
        )

    def observe(self, served: Shown, rows: Sequence[int]) -> None:
        """Note the items of an answer; answers of a version that is no longer served do not count."""
        since, shown = self._shown.get(served.name, (None, bytearray()))
        if since is None or since < served.loaded_at:
            shown = bytearray(len(served.catalogue))
            self._shown[served.name] = (served.loaded_at, shown)
            self._items.labels(served.name).set(0)
        elif since > served.loaded_at:
            return
        new = [row for row in rows if not shown[row]]
        for row in new:
            shown[row] = 1
        if new:
            self._items.labels(served.name).inc(len(new))
