"""A layout: how an export of items and one of events are read, each by itself; `igd start` writes it, people edit it.

    [items]
    columns = {item_id = "SKU", title = "Product Name"}
    delimiter = "semicolon"

    [items.attributes]
    Price = {type = "number", decimal = "comma"}
    Genres = {type = "list-of-text", separator = "|"}
    Description = {type = "ignore"}

    [events]
    columns = {user_id = "Customer", item_id = "SKU", timestamp = "Ordered at"}
    timezone = "UTC"
    kinds = ["purchase"]

What a table may say are the names and values of the flags of `igd data prepare csv`; ``attributes`` are as in a schema
of attributes. A flag goes before the file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from igd_core.checked_settings import CheckedSettings, Listed, Words
from igd_core.cli.attributes import AttributeFlags, RowPolicies, rules_with_flags
from igd_core.cli.config_files import toml
from igd_core.cli.flags import given, read
from igd_core.cli.reading import ReadingFlags, reading_from
from igd_core.errors import DataError, InputError
from igd_core.regular_files import read_regular

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from pathlib import Path

    from igd_core.datasets.attribute_schema import ColumnRule
    from igd_core.datasets.sources import Reading

L = TypeVar("L", bound=ReadingFlags)


def _rules(written: Mapping[str, Any]) -> Mapping[str, Any]:
    from igd_core.datasets.attribute_schema import rule_of

    try:
        for name, rule in written.items():
            rule_of(f"attributes: {name!r}", rule)
    except DataError as error:
        raise ValueError(str(error)) from None
    return written


class EventsFlags(CheckedSettings):
    """Which events count."""

    kinds: Words[str] = Field(
        default=(), description="events of these kinds alone, by their column `kind` (default: all)"
    )


class ItemsLayout(ReadingFlags):
    """How the export of items is read."""

    on_empty_title: Literal["error", "skip"] = "error"
    attributes: Annotated[Mapping[str, Any], AfterValidator(_rules)] = Field(default={})


class EventsLayout(ReadingFlags):
    """How the export of events is read."""

    on_unknown_item: Literal["error", "drop"] = "error"
    kinds: Listed[str] = ()


class Layout(CheckedSettings):
    """How both are read."""

    items: ItemsLayout = ItemsLayout()
    events: EventsLayout = EventsLayout()

    @property
    def items_reading(self) -> Reading:
        """For the export of items, without its attributes."""
        return reading_from(self.items)

    @property
    def events_reading(self) -> Reading:
        """For the export of events."""
        return replace(reading_from(self.events), kinds=self.events.kinds)

    @property
    def rules(self) -> dict[str, ColumnRule]:
        """Of the columns of items."""
        from igd_core.datasets.attribute_schema import rule_of

        return {name: rule_of(name, rule) for name, rule in self.items.attributes.items()}


def read_layout(path: Path) -> Layout:
    """Read a layout file.

    Raises:
        InputError: it cannot be read, is no TOML, or says what no layout can; names the entry.
    """
    try:
        content = tomllib.loads(read_regular(path).decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    return Layout.read(content, where=str(path))


def layout_of(args: argparse.Namespace, path: Path | None) -> Layout:
    """The layout of a file, or an empty one, with what the flags of reading say instead.

    Raises:
        InputError: the file, or a flag.
    """
    layout = Layout() if path is None else read_layout(path)
    flags = read(args, ReadingFlags)
    said = {name: getattr(flags, name) for name in flags.model_fields_set}
    policies = given(args, RowPolicies)
    return Layout(
        items=_with(layout.items, said, policies, "on_empty_title"),
        events=_with(layout.events, said, {**policies, **_kinds(args)}, "on_unknown_item", "kinds"),
    )


def _with(part: L, said: Mapping[str, Any], policies: Mapping[str, Any], *names: str) -> L:
    changes = {**said, **{name: policies[name] for name in names if name in policies}}
    if "columns" in said:
        changes["columns"] = {**part.columns, **said["columns"]}
    return part.replaced(**changes)


def _kinds(args: argparse.Namespace) -> dict[str, Any]:
    return {"kinds": EventsFlags.read(given(args, EventsFlags)).kinds} if given(args, EventsFlags) else {}


def rules_of(args: argparse.Namespace, layout: Layout, items: Path) -> dict[str, ColumnRule]:
    """The rules of the columns of ``items``: by its schema, the layout, and the flags, in that order.

    Raises:
        DataError: the schema cannot be used, or a flag contradicts another.
    """
    return rules_with_flags(read(args, AttributeFlags), items, layout.rules)


def with_rules(reading: Reading, rules: Mapping[str, ColumnRule]) -> Reading:
    """A reading of items with the rules of their columns."""
    return replace(reading, attributes=rules)


def layout_text(layout: Layout, notes: Iterable[str] = ()) -> str:
    """A layout as a file that `read_layout` reads; ``notes`` stand above it."""
    lines = [f"# {note}".rstrip() for note in notes]
    for part, settings in (("items", layout.items), ("events", layout.events)):
        lines += ["", f"[{part}]"]
        values = settings.model_dump(mode="json", exclude_defaults=True)
        attributes = values.pop("attributes", {})
        lines += [f"{name} = {toml(value)}" for name, value in values.items()]
        if attributes:
            lines += ["", f"[{part}.attributes]"]
            lines += [f"{json.dumps(name, ensure_ascii=False)} = {toml(rule)}" for name, rule in attributes.items()]
    return "\n".join(lines).lstrip("\n") + "\n"
