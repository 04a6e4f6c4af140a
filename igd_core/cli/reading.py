"""Flags that say how files are to be read, the same for every command that reads some."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from igd_core.checked_settings import CheckedSettings, Flag
from igd_core.cli.flags import add_flags, read
from igd_core.errors import InputError

if TYPE_CHECKING:
    import argparse

    from igd_core.datasets.sources import Reading

_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}


def _columns(value: object) -> object:
    """``["item_id=product_id,title=name"]``, as flags say it, is the mapping that a file may hold."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    columns: dict[str, str] = {}
    for part in (part for text in value for part in str(text).split(",") if part.strip()):
        ours, _, theirs = (word.strip() for word in part.partition("="))
        if not (ours and theirs):
            raise ValueError(f"{part.strip()!r} is not OURS=THEIRS, such as item_id=product_id")
        if ours in columns:
            raise ValueError(f"{ours!r} stands twice")
        columns[ours] = theirs
    if not columns:
        raise ValueError(f"{value[0]!r} is not OURS=THEIRS, such as item_id=product_id")
    return columns


def _delimiter(text: str) -> str:
    found = _DELIMITERS.get(text, text)
    if len(found) != 1:
        raise ValueError(f"{text!r} is not comma, semicolon, tab, pipe or one character")
    return found


def _zone(name: str) -> str:
    from igd_core.timestamps import zone_named

    try:
        zone_named(name)
    except InputError as error:
        raise ValueError(str(error)) from None
    return name


class ReadingFlags(CheckedSettings):
    """How files are to be read, where they do not say it themselves."""

    columns: Annotated[Mapping[str, str], BeforeValidator(_columns), Flag(metavar="OURS=THEIRS,...", repeated=True)] = (
        Field(default={}, description="what a file calls a column, such as item_id=product_id,title=name")
    )
    delimiter: Annotated[str, AfterValidator(_delimiter), Flag(metavar="CHAR")] | None = Field(
        default=None, description="comma, semicolon, tab, pipe, or another"
    )
    quoting: Annotated[Literal["auto", "doubled", "backslash", "none", "escaped"], Flag(shows_default=False)] = Field(
        default="auto",
        description='a quote in a quoted cell: "" or \\", or cells are not quoted: as they are, or with \\t, \\n and '
        "\\\\ as databases write them (default: found out)",
    )
    encoding: Annotated[str, Flag(metavar="NAME")] | None = Field(
        default=None, description="of text (default: UTF-8, or Windows-1252, and said)"
    )
    decimal: Literal["comma", "point"] | None = Field(
        default=None,
        description="how texts write numbers: comma (12,99 and 1.299,00) or point (1,299.00), either with a currency "
        "(default: as programs do, 1299.00; others are told)",
    )
    timezone: Annotated[str, AfterValidator(_zone), Flag(metavar="NAME")] | None = Field(
        default=None, description="of times without one, such as UTC (default: they are refused)"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        default="error", description="a row that cannot be used refuses the file, or is left out and counted"
    )


def add_reading_arguments(parser: argparse.ArgumentParser, model: type[ReadingFlags] = ReadingFlags) -> None:
    """Add the flags, with the words and defaults of ``model``; `reading_of` reads them."""
    files = parser.add_argument_group(
        "how files are read",
        "csv, JSON lines or Parquet, plain, .gz, .bz2, .xz or .zst, told by their first bytes; - is standard input",
    )
    add_flags(files, model)


def reading_of(
    args: argparse.Namespace, unknown: str = "drop leaves them out", *, model: type[ReadingFlags] = ReadingFlags
) -> Reading:
    """What the flags of ``model`` say; `unknown`: what ``--on-unknown-item`` has to offer beside ``error``.

    Raises:
        InputError: a delimiter, an encoding or a zone that is none, a column named twice.
    """
    return reading_from(read(args, model), unknown)


def reading_from(flags: ReadingFlags, unknown: str = "drop leaves them out") -> Reading:
    """The same, of settings that are read already.

    Raises:
        InputError: a delimiter, an encoding or a zone that is none, a column named twice.
    """
    from igd_core.datasets.decimals import DECIMALS
    from igd_core.datasets.sources import Reading
    from igd_core.timestamps import zone_named

    said: dict[str, Any] = {name: getattr(flags, name) for name in ("columns", "delimiter", "quoting", "encoding")}
    return Reading(
        **said,
        on_bad_row=flags.on_bad_row,
        zone=None if flags.timezone is None else zone_named(flags.timezone),
        decimal=None if flags.decimal is None else DECIMALS[flags.decimal],
        hints=True,
        unknown_hint=f"--on-unknown-item {unknown}",
    )


def tell(notes: Iterable[str]) -> None:
    """Notes on how files were read, for people, apart from what a command prints."""
    for note in notes:
        print(f"igd: note: {note}", file=sys.stderr)
