"""Flags that say which attributes the columns of an items file are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.catalogue.attribute_types import BASE_TYPES
from igd_core.datasets.attribute_schema import IGNORE, ColumnRule, read_schema, rules_beside, with_flags

if TYPE_CHECKING:
    from collections.abc import Callable


def add_attribute_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `attribute_rules` reads them."""
    attributes = parser.add_argument_group(
        "attributes", "columns of --items beside id and title, which item filters name; docs/reference/input-files.md"
    )
    attributes.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="types of the columns (default: X.schema.json beside the items file X.csv, if it is there)",
    )
    types = f"{', '.join(BASE_TYPES)}, list-of- each of them, or {IGNORE}"
    for flag, what, meaning in (
        ("--type", "TYPE", f"type of a column: {types} (default: what most of its cells show)"),
        ("--multi", "SEPARATOR", "a column with several values in a cell, such as genres=|"),
        ("--missing", "TEXT", "a text that stands for no value in a column, such as price=n/a"),
    ):
        attributes.add_argument(
            flag, action="append", default=[], type=_pair_of(what), metavar=f"NAME={what}", help=meaning
        )


def attribute_rules(args: argparse.Namespace) -> dict[str, ColumnRule]:
    """How the columns of ``args.items`` are read: by its schema, as changed by the other flags.

    Raises:
        DataError: the schema cannot be used, or a flag contradicts another.
    """
    rules = rules_beside(args.items) if args.schema is None else read_schema(args.schema)
    return with_flags(rules, types=args.type, separators=args.multi, missing=args.missing)


def _pair_of(what: str) -> Callable[[str], tuple[str, str]]:
    def pair(text: str) -> tuple[str, str]:
        name, _, value = text.rpartition("=")
        if not (name and value):
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME={what}; --help has an example")
        return name, value

    return pair
