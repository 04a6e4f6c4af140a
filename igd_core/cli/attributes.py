"""Flags of an items file: which it is, and which attributes its columns are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from igd_core.catalogue.attribute_types import BASE_TYPES, IGNORE
from igd_core.checked_settings import CheckedSettings, File, Flag, Listed
from igd_core.cli.flags import add_flags, read

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from pathlib import Path

    from igd_core.datasets.attribute_schema import ColumnRule


_PARTS = {"type": "NAME=TYPE", "multi": "NAME=SEPARATOR", "missing": "NAME=TEXT"}


def _split(text: str) -> tuple[str, str]:
    name, _, value = text.rpartition("=")
    return name, value


class RowPolicies(CheckedSettings):
    """What becomes of rows that do not fit."""

    on_empty_title: Literal["error", "skip"] = Field(
        default="error", description="an item without a title refuses the file, or is left out"
    )
    on_unknown_item: Literal["error", "drop"] = Field(
        default="error", description="an interaction with an item that --items lacks refuses the file, or is left out"
    )


class ItemsFlags(RowPolicies):
    """Which items, and what becomes of rows that do not fit."""

    items: File = Field(description="item_id, title, any other columns")
    title_column: Annotated[str, Flag(metavar="NAME")] = Field(default="title", description="column of the titles")


class AttributeFlags(CheckedSettings):
    """What the columns of an items file are, where their cells do not show it."""

    schema_file: Annotated[File, Flag(name="schema", metavar="FILE")] | None = Field(
        default=None,
        description="types of the columns (default: X.schema.json beside the items file X.csv, if it is there)",
    )
    type: Annotated[Listed[str], Flag(metavar=_PARTS["type"], repeated=True)] = Field(
        default=(),
        description=f"type of a column: {', '.join(BASE_TYPES)}, list-of- each of them, or {IGNORE} (default: what "
        "most of its cells show)",
    )
    multi: Annotated[Listed[str], Flag(metavar=_PARTS["multi"], repeated=True)] = Field(
        default=(), description="a column with several values in a cell, such as genres=|"
    )
    missing: Annotated[Listed[str], Flag(metavar=_PARTS["missing"], repeated=True)] = Field(
        default=(), description="a text that stands for no value in a column, such as price=n/a"
    )

    @field_validator(*_PARTS)
    @classmethod
    def _are_pairs(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for text in texts:
            if not all(_split(text)):
                raise ValueError(f"{text!r} is not {_PARTS[str(info.field_name)]}; --help has an example")
        return texts


def add_attribute_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `attribute_rules` reads them."""
    attributes = parser.add_argument_group(
        "attributes", "columns of --items beside id and title, which item filters name; docs/reference/input-files.md"
    )
    add_flags(attributes, AttributeFlags)


def attribute_rules(args: argparse.Namespace, items: Path) -> dict[str, ColumnRule]:
    """How the columns of ``items`` are read: by its schema, as changed by the other flags.

    Raises:
        DataError: the schema cannot be used, or a flag contradicts another.
    """
    return rules_with_flags(read(args, AttributeFlags), items)


def rules_with_flags(
    flags: AttributeFlags, items: Path, laid_out: Mapping[str, ColumnRule] | None = None
) -> dict[str, ColumnRule]:
    """The same, with ``laid_out``, the rules of a layout, between the schema and the flags.

    Raises:
        DataError: the schema cannot be used, or a flag contradicts another.
    """
    from igd_core.datasets.attribute_schema import read_schema, rules_beside, with_flags

    rules = rules_beside(items) if flags.schema_file is None else read_schema(flags.schema_file)
    return with_flags(
        {**rules, **(laid_out or {})},
        types=map(_split, flags.type),
        separators=map(_split, flags.multi),
        missing=map(_split, flags.missing),
    )
