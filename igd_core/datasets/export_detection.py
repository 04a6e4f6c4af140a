"""Two exports as a shop writes them: what their columns are, how times and numbers are written, which cells are lists.

`detect` finds out what `igd data prepare` has to be told; `Detected.told` says it in words. Only a part of a large file
is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.catalogue.attribute_types import IGNORE
from igd_core.datasets.arrays import joined
from igd_core.datasets.attribute_cells import UnusableColumn, read_cells
from igd_core.datasets.attribute_schema import SHOWN
from igd_core.datasets.column_names import role_of, says
from igd_core.datasets.column_profiles import ColumnProfile, is_like_a_time
from igd_core.datasets.export_columns import find_roles
from igd_core.datasets.source_table import SourceTable, listed
from igd_core.datasets.tables import open_table
from igd_core.datasets.unused_columns import counts_alike
from igd_core.errors import DataError
from igd_core.timestamps import Form, dotted_as_iso

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from igd_core.catalogue.attribute_types import BaseType
    from igd_core.datasets.attribute_schema import ColumnRule
    from igd_core.datasets.export_columns import Roles
    from igd_core.datasets.sources import Reading, Source
    from igd_core.datasets.tables import TableFile

MOST_ROWS = 500_000
"""Rows of a file that are looked at; more are as the first ones."""
_WHAT = {
    "item_id": "id of the item",
    "title": "title",
    "user_id": "person",
    "timestamp": "time",
    "rating": "rating",
    "kind": "kind of event",
}
_TYPES: Mapping[BaseType, str] = {
    "text": "text",
    "integer": "numbers",
    "number": "numbers",
    "boolean": "true or false",
    "date": "days",
    "datetime": "times",
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_NO_ZONE = frozenset({Form.LOCAL, Form.DAY})


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedFile:
    """How one export is read, as far as it does not say it itself.

    Attributes:
        name: of the file.
        rows: that were looked at.
        columns: the file's name by ours, where it is another.
        delimiter: of a csv file.
        timezone: of times without one.
        attributes: of items, by column: what the attribute schema says of it.
        told: a line a column, in words.
    """

    name: str
    rows: int
    columns: Mapping[str, str]
    delimiter: str | None = None
    timezone: str | None = None
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """Both files; ``unclear`` is a line for each thing that a person has to say."""

    items: DetectedFile
    events: DetectedFile
    unclear: tuple[str, ...] = ()

    @property
    def told(self) -> list[str]:
        """What the files were taken for, a line a fact."""
        return [*self.items.told, *self.events.told]


def detect(
    items: Source,
    events: Source,
    readings: tuple[Reading, Reading],
    said: tuple[Mapping[str, str], Mapping[str, str]],
    rules: Mapping[str, ColumnRule],
) -> Detected:
    """Look at both files.

    Args:
        items: one row an item.
        events: one row an event.
        readings: of items and of events, as far as somebody says it; without names of columns.
        said: the names of columns that somebody gives, ours to theirs.
        rules: of columns of items, as somebody gives them.

    Raises:
        DataError: a file cannot be read, has no rows, or only one column.
    """
    opened = [_Opened.of(source, reading) for source, reading in zip((items, events), readings, strict=True)]
    profiles = [each.profiles() for each in opened]
    roles = find_roles(profiles[0], profiles[1], {"items": said[0], "events": said[1]})
    names = {"items": opened[0], "events": opened[1]}
    unclear = tuple(each.told(names[each.part].file.name, names[each.part].file.columns) for each in roles.unclear)
    return Detected(
        items=_items(opened[0], profiles[0], roles, rules, readings[0]),
        events=_events(opened[1], profiles[1], roles, readings[1]),
        unclear=unclear,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A file, the rows that are looked at, and how many of them cannot be read."""

    file: TableFile
    table: SourceTable
    kind: str
    unread: int

    @staticmethod
    def of(source: Source, reading: Reading) -> _Opened:
        plain = replace(reading, columns={}, on_bad_row="skip")
        file = open_table(source, plain, every_key=True)
        if file.delimiter is not None:
            _check_header(file)
        file.require(*file.columns)
        faults = file.faults()
        batches: list[SourceTable] = []
        rows = 0
        for batch in file.batches(file.columns, faults):
            batches.append(batch)
            rows += len(batch)
            if rows >= MOST_ROWS:
                break
        if not rows:
            _tell_why_none(source, reading)
            raise DataError(f"{file.name}: no rows below the header")
        data = [batch.data for batch in batches]
        table = replace(
            batches[0],
            row=np.concatenate([batch.row for batch in batches]),
            data=data[0] if len(data) == 1 else joined(data),
        )
        return _Opened(file=file, table=table, kind=source.kind(), unread=faults.skipped)

    def profiles(self) -> dict[str, ColumnProfile]:
        return {name: ColumnProfile.of(self.table, name) for name in self.file.columns}

    @property
    def headline(self) -> str:
        """What kind of file it is, and how long."""
        written = {"json": "JSON lines", "parquet": "Parquet"}.get(self.kind, "csv")
        if self.file.delimiter is not None:
            written += f" with {_DELIMITERS.get(self.file.delimiter, repr(self.file.delimiter))}"
        more = " or more" if len(self.table) >= MOST_ROWS else ""
        unread = f", and {self.unread:,} that cannot be read" if self.unread else ""
        return f"{self.file.name}: {written}, {len(self.table):,} rows{more}{unread}"


def _check_header(file: TableFile) -> None:
    """Refuse a csv file whose first row names no columns.

    Raises:
        DataError: it is one cell, or looks like the rows below it.
    """
    names = file.columns
    if len(names) < 2:
        by = _DELIMITERS.get(file.delimiter or "", repr(file.delimiter))
        several = " (it has '::', which no csv has: put a tab in its place)" if "::" in names[0] else ""
        raise DataError(
            f"{file.name}: one column alone, {listed(names)!r}: its cells are not separated by {by}{several} "
            "(--delimiter CHAR says by what)"
        )
    if any(role_of(name) or says(name, "item_id", of_items=True) for name in names):
        return
    data = [name for name in names if name.strip().isdigit() or is_like_a_time(name)]
    if 2 * len(data) >= len(names) or any(is_like_a_time(name) and not name.strip().isdigit() for name in data):
        raise DataError(
            f"{file.name}: its first row, {listed(names)}, looks like data, where it has to name the columns: "
            "write one above it, such as user_id,item_id,timestamp"
        )


def _tell_why_none(source: Source, reading: Reading) -> None:
    """Raise what is wrong with the rows of a file of which none can be read."""
    file = open_table(source, replace(reading, columns={}, on_bad_row="error"))
    faults = file.faults()
    for _ in file.batches(file.columns, faults):
        pass
    faults.check()


def _items(
    opened: _Opened, profiles: Mapping[str, ColumnProfile], roles: Roles, rules: Mapping[str, ColumnRule], said: Reading
) -> DetectedFile:
    of = {theirs: ours for ours, theirs in roles.items.items()}
    attributes: dict[str, dict[str, Any]] = {}
    told = [opened.headline]
    for name, profile in profiles.items():
        if name in of:
            told.append(_line(name, _WHAT[of[name]]))
            continue
        rule = {} if name in rules else _rule(profile, opened.table, said)
        if rule:
            attributes[name] = rule
        words = "attribute, as the layout or a flag says" if name in rules else _attribute_words(rule, profile)
        told.append(_line(name, words or f"attribute: {_type_words(opened.table, name, said)}"))
    return DetectedFile(
        name=opened.file.name,
        rows=len(opened.table),
        columns=_renamed(roles.items),
        delimiter=opened.file.delimiter,
        attributes=attributes,
        told=tuple(told),
    )


def _rule(profile: ColumnProfile, table: SourceTable, said: Reading) -> dict[str, Any]:
    """What the attribute schema has to say of a column."""
    if profile.is_description or not _is_attribute(table, profile.name):
        return {"type": IGNORE}
    if said.decimal is None and (decimal := profile.decimal) is not None:
        return {"decimal": decimal}
    if (separator := profile.separator) is not None:
        return {"type": "list-of-text", "separator": separator}
    return {}


def _is_attribute(table: SourceTable, name: str) -> bool:
    """Whether an attribute can hold what the column holds."""
    try:
        read_cells(table.column(name), SHOWN)
    except UnusableColumn:
        return False
    return True


def _attribute_words(rule: Mapping[str, Any], profile: ColumnProfile) -> str | None:
    """What is said of a column that needs a rule, or holds lists; None of another."""
    if rule.get("type") == IGNORE:
        if profile.is_description:
            return "left out: long texts"
        what = "have parts, which" if profile.is_list else "are of a type that"
        return f"left out: its cells {what} no filter can name"
    if "separator" in rule:
        return f"attribute: lists, their values separated by {rule['separator']!r}"
    if "decimal" in rule:
        return f"attribute: numbers with a decimal {rule['decimal']}"
    return "attribute: lists" if profile.is_list else None


def _type_words(table: SourceTable, name: str, said: Reading) -> str:
    """The type that a column's cells show, as they are read later."""
    return _TYPES[read_cells(table.column(name), replace(SHOWN, decimal=said.decimal)).type.base]


def _events(opened: _Opened, profiles: Mapping[str, ColumnProfile], roles: Roles, said: Reading) -> DetectedFile:
    of = {theirs: ours for ours, theirs in roles.events.items()}
    zone = None
    told = [opened.headline]
    for name, profile in profiles.items():
        words = _WHAT[of[name]] if name in of else f"not used{counts_alike(profile)}"
        if of.get(name) == "rating":
            words += ": kept beside the events; low ones count as the others do"
        elif of.get(name) == "timestamp":
            form, _ = profile.times.most_common(1)[0] if profile.sample else (Form.NONE, 0)
            words += f": {form.told}"
            if any(dotted_as_iso(cell) != cell for cell in profile.sample[:10]):
                words += ", the day first"
            if form in _NO_ZONE and said.zone is None:
                zone = "UTC"
                words += ", taken for UTC (--timezone NAME says another)"
        elif of.get(name) == "item_id":
            if "item_id" in roles.items:
                words += f": {roles.shared:.0%} of the rows name an item of {roles.items['item_id']!r}"
        elif of.get(name) == "kind":
            kinds = sorted(set(profile.sample))
            words += f": {listed(kinds)}; all of them count (--kinds NAME,... chooses)"
        told.append(_line(name, words))
    return DetectedFile(
        name=opened.file.name,
        rows=len(opened.table),
        columns=_renamed(roles.events),
        delimiter=opened.file.delimiter,
        timezone=zone,
        told=tuple(told),
    )


def _renamed(found: Mapping[Any, str]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in found.items() if ours != theirs}


def _line(name: str, words: str) -> str:
    return f"  {name:<23} {words}"


def shown_unclear(unclear: Iterable[str]) -> str:
    """As a message, a line each."""
    return "\n  ".join(["the exports leave open:", *unclear])
