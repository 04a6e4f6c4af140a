"""Flags that say how files are to be read, the same for every command that reads some."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from igd_core.datasets.decimals import DECIMALS
from igd_core.datasets.sources import Reading
from igd_core.errors import InputError
from igd_core.timestamps import zone_named

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo

_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `reading_of` reads them."""
    files = parser.add_argument_group(
        "how files are read",
        "csv, JSON lines or Parquet, plain, .gz, .bz2, .xz or .zst, told by their first bytes; - is standard input",
    )
    files.add_argument(
        "--columns",
        type=_names,
        action="append",
        default=[],
        metavar="OURS=THEIRS,...",
        help="what a file calls a column, such as item_id=product_id,title=name",
    )
    files.add_argument("--delimiter", type=_delimiter, metavar="CHAR", help="comma, semicolon, tab, pipe, or another")
    files.add_argument(
        "--quoting",
        choices=("auto", "doubled", "backslash", "none", "escaped"),
        default="auto",
        help='a quote in a quoted cell: "" or \\", or cells are not quoted: as they are, or with \\t, \\n and \\\\ as '
        "databases write them (default: found out)",
    )
    files.add_argument("--encoding", metavar="NAME", help="of text (default: UTF-8, or Windows-1252, and said)")
    files.add_argument(
        "--decimal",
        choices=sorted(DECIMALS),
        help="how texts write numbers: comma (12,99 and 1.299,00) or point (1,299.00), either with a currency "
        "(default: as programs do, 1299.00; others are told)",
    )
    files.add_argument(
        "--timezone", type=_zone, metavar="NAME", help="of times without one, such as UTC (default: they are refused)"
    )
    files.add_argument(
        "--on-bad-row",
        choices=("error", "skip"),
        default="error",
        help="a row that cannot be used refuses the file, or is left out and counted (default: %(default)s)",
    )


def reading_of(args: argparse.Namespace, unknown: str = "drop leaves them out") -> Reading:
    """What the flags say; `unknown`: what ``--on-unknown-item`` has to offer beside ``error``.

    Raises:
        InputError: a delimiter or an encoding that is none, a column named twice.
    """
    columns: dict[str, str] = {}
    for name, theirs in (pair for pairs in args.columns for pair in pairs):
        if name in columns:
            raise InputError(f"--columns: {name!r} stands twice")
        columns[name] = theirs
    return Reading(
        columns=columns,
        delimiter=args.delimiter,
        quoting=args.quoting,
        encoding=args.encoding,
        zone=args.timezone,
        on_bad_row=args.on_bad_row,
        decimal=None if args.decimal is None else DECIMALS[args.decimal],
        hints=True,
        unknown_hint=f"--on-unknown-item {unknown}",
    )


def tell(notes: Iterable[str]) -> None:
    """Notes on how files were read, for people, apart from what a command prints."""
    for note in notes:
        print(f"igd: note: {note}", file=sys.stderr)


def _names(text: str) -> list[tuple[str, str]]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or any(not (name.strip() and theirs.strip()) for name, _, theirs in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not OURS=THEIRS, such as item_id=product_id")
    return [(name.strip(), theirs.strip()) for name, _, theirs in pairs]


def _delimiter(text: str) -> str:
    found = _DELIMITERS.get(text, text)
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not comma, semicolon, tab, pipe or one character")
    return found


def _zone(text: str) -> tzinfo:
    try:
        return zone_named(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
