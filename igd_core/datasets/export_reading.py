"""Read an export of items and one of events, and tell what is wrong with both at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from igd_core.catalogue.items import Catalogue, item_id_fault
from igd_core.datasets.faults import SHOWN_ROWS, told_rows
from igd_core.datasets.interactions import Interactions
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.odd_titles import odd_titles
from igd_core.datasets.sources import DEFAULT_READING, Reading, Source
from igd_core.datasets.suspect_events import suspect_events
from igd_core.datasets.tables import open_table
from igd_core.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from igd_core.datasets.interactions_file import InteractionsFile
    from igd_core.datasets.items_file import ItemsFile

_MOST_UNKNOWN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsExport:
    """A file of items, and how it is read; see `read_items`."""

    file: Path | Source
    title_column: str = "title"
    on_empty: Literal["error", "skip"] = "error"
    reading: Reading = DEFAULT_READING


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsExport:
    """A file of events, and how it is read; see `read_interactions`."""

    file: Path | Source
    on_unknown: Literal["error", "drop"] = "error"
    reading: Reading = DEFAULT_READING


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """Both files as read.

    Attributes:
        items: the catalogue, and what became of its rows.
        events: who chose what, and what became of the rows.
        interactions: the same events.
        items_name: of the file of items, for messages.
        events_name: of the file of events.
    """

    items: ItemsFile
    events: InteractionsFile
    interactions: Interactions
    items_name: str
    events_name: str

    @property
    def odd_titles(self) -> list[str]:
        """A line for each kind of odd title, with the first rows."""
        by_reason: dict[str, list[int]] = {}
        for odd in odd_titles(self.items.catalogue):
            by_reason.setdefault(odd.reason, []).append(odd.item)
        titles, rows = self.items.catalogue.titles, self.items.rows
        lines = []
        for reason, found in by_reason.items():
            first = [titles[item] for item in found[:SHOWN_ROWS]]
            lines += told_rows(f"title {reason}", self.items.places, rows[found], first)
        return lines

    @property
    def notes(self) -> list[str]:
        """What a person should know of both files and look at, a line each."""
        found = self.events
        suspects = suspect_events(
            self.events_name, self.interactions, found.rows, found.places, self.items.catalogue.item_ids
        )
        return [*self.items.notes, *found.notes, *self.odd_titles, *suspects]

    @property
    def left_out(self) -> Iterator[tuple[str, int, int, str]]:
        """Rows that are not used: file, row, line, and why not; of other kinds than those asked for are not told."""
        files = (
            (self.items_name, self.items.left_out, self.items.places),
            (self.events_name, self.events.left_out, self.events.places),
        )
        for name, kinds, places in files:
            for kind in kinds:
                for row in kind.rows.tolist():
                    yield name, row, places.line(row), f"{kind.what} {kind.reason}".strip()


def read_exports(items: ItemsExport, events: EventsExport) -> Exports:
    """Read both files.

    Raises:
        DataError: what is wrong with their rows; if it is with both, of both.
        CatalogueError: what cannot stand in a catalogue.
    """
    try:
        read = read_items(items.file, title_column=items.title_column, on_empty=items.on_empty, reading=items.reading)
    except InputError as error:
        also = _faults_of_events(items, events)
        raise (error if also is None or str(also) == str(error) else DataError(f"{error}\n{also}")) from None
    _require_ids_without_spaces(Source.of(items.file).name, read)
    found = _read_events(events, read.catalogue)
    if not isinstance(found.data, Interactions):  # for the type checker: refused before it was read
        raise DataError(f"{events.file}: history rows")
    names = [Source.of(each.file).name for each in (items, events)]
    return Exports(items=read, events=found, interactions=found.data, items_name=names[0], events_name=names[1])


def _require_ids_without_spaces(name: str, items: ItemsFile) -> None:
    ids = items.catalogue.item_ids
    spaced = [at for at, item_id in enumerate(ids) if len(item_id.split()) != 1]
    if spaced:
        what = f"{name}: item_id holds white space, which separates the ids of a history"
        lines = told_rows(what, items.places, items.rows[spaced], [ids[at] for at in spaced[:SHOWN_ROWS]])
        raise DataError(f"{lines[0]}: write another sign in its place, such as _, in both files")


def _read_events(events: EventsExport, catalogue: Catalogue) -> InteractionsFile:
    return read_interactions(
        events.file,
        catalogue,
        on_unknown=events.on_unknown,
        wanted="interactions",
        reading=events.reading,
    )


def _faults_of_events(items: ItemsExport, events: EventsExport) -> InputError | None:
    """What is wrong with the events beside items that cannot be used: their ids suffice to look.

    Where so many of the ids are lost that events of them abound, unknown items say nothing of the events.
    """
    try:
        file = open_table(items.file, replace(items.reading, on_bad_row="skip"))
        ids = dict.fromkeys(
            each
            for batch in file.batches(["item_id"], file.faults())
            for each in batch.ids("item_id").to_pylist()
            if each is not None and not item_id_fault(each)
        )
        if not ids:  # then events say nothing that the items do not
            return None
        if _unknown_share(events, list(ids)) > _MOST_UNKNOWN:
            events = replace(events, on_unknown="drop")
        _read_events(events, Catalogue.build(item_ids=list(ids), titles=["?"] * len(ids)))
    except DataError as error:
        return None if str(items.file) in str(error) else error
    return None


def _unknown_share(events: EventsExport, ids: Sequence[str]) -> float:
    """Share of the events whose item is none of ``ids``."""
    file = open_table(events.file, replace(events.reading, on_bad_row="skip"))
    known, rows, unknown = pa.array(ids, pa.string()), 0, 0
    for batch in file.batches(["item_id"], file.faults()):
        rows += len(batch)
        unknown += len(batch) - int(pc.sum(pc.is_in(batch.ids("item_id"), value_set=known)).as_py() or 0)
    return unknown / max(1, rows)
