"""Rows of a csv file or of JSON lines, one after the other, whatever is wrong with some of them."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from igd_core.data.faults import shown
from igd_core.data.sources import Encoding, Reading, Source, encoding_of
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from igd_core.data.faults import Faults

MAX_CELL_CHARS = 16 << 20
"""A longer cell is a quote that is never closed, or nothing that a recommender can use."""

MAX_LINE_CHARS = 64 << 20
_SAMPLE_CHARS = 1 << 20
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a csv file is written; ``quoting`` is never ``auto``."""

    delimiter: str
    quoting: str

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Python's reader, which reports what does not fit and goes on with the next line."""
        csv.field_size_limit(MAX_CELL_CHARS)
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL,
            escapechar="\\" if self.quoting == "backslash" else None,
            strict=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRows:
    """Rows of a text file.

    Attributes:
        columns: names as the file has them, in its order; of JSON those of the first thousand rows.
        notes: what a person should know of how the file was read.
        source: the file.
        encoding: its.
        dialect: of a csv file; None for JSON lines.
    """

    columns: Sequence[str]
    notes: Sequence[str]
    source: Source
    encoding: Encoding
    dialect: Dialect | None

    def rows(self, faults: Faults) -> Iterator[tuple[int, Sequence[Any]]]:
        """Row numbers (a csv file's header is row 1) and cells in the order of `columns`; faulty rows are noted.

        Raises:
            DataError: the file cannot be read on.
        """
        with self.source.open() as raw:
            text = io.TextIOWrapper(
                cast("io.BytesIO", raw), self.encoding.codec, errors=self.encoding.errors, newline=""
            )
            try:
                if self.dialect is None:
                    yield from _objects(text, self.columns, faults)
                else:
                    records = _records(text, self.dialect, faults)
                    next(records)  # the header
                    yield from _whole_rows(records, len(self.columns), faults)
            finally:
                text.detach()


def open_csv(source: Source, reading: Reading) -> TextRows:
    """Find out how a csv file is written.

    Raises:
        DataError: the file is empty, is no text, or cannot be read.
    """
    encoding = encoding_of(source, reading.encoding)
    sample = _sample(source, encoding)
    if "\x00" in sample.partition("\n")[0]:
        raise DataError(f"{source.name}: the first line holds NUL bytes: no csv, or UTF-16 (--encoding utf-16-le)")
    delimiter = reading.delimiter
    if sample[:4].lower() == "sep=" and not sample[5:6].strip():  # Excel's own first line
        delimiter = delimiter or sample[4:5]
    delimiter = delimiter or _delimiter(sample, reading)
    dialect = Dialect(
        delimiter=delimiter, quoting=_quoting(sample, delimiter) if reading.quoting == "auto" else reading.quoting
    )
    header = _header(source, sample, dialect)
    notes = [encoding.note] if encoding.note else []
    if reading.quoting == "auto" and dialect.quoting != "doubled":
        how = "not quoted" if dialect.quoting == "none" else "quoted with backslashes"
        notes.append(f"{source.name}: read as {how} (--quoting decides)")
    return TextRows(columns=header, notes=notes, source=source, encoding=encoding, dialect=dialect)


def open_json(source: Source, reading: Reading) -> TextRows:
    """JSON lines: one object a line.

    Raises:
        DataError: the file cannot be read.
    """
    encoding = encoding_of(source, reading.encoding)
    names: dict[str, None] = {}
    first = ""
    with source.open() as raw:
        text = io.TextIOWrapper(cast("io.BytesIO", raw), encoding.codec, errors=encoding.errors)
        for _ in range(1000):
            if not (line := text.readline(MAX_LINE_CHARS)):
                break
            entry = _object(line)
            names |= dict.fromkeys(entry if isinstance(entry, dict) else ())
            first = first or line.strip()
        text.detach()
    if not names:
        raise DataError(f"{source.name}: row 1: {shown(first)} is no JSON object")
    notes = [encoding.note] if encoding.note else []
    return TextRows(columns=list(names), notes=notes, source=source, encoding=encoding, dialect=None)


def _sample(source: Source, encoding: Encoding) -> str:
    with source.open() as raw:
        text = io.TextIOWrapper(cast("io.BytesIO", raw), encoding.codec, errors=encoding.errors, newline="")
        sample = text.read(_SAMPLE_CHARS)
        text.detach()
    return sample


def _lines(text: str) -> Iterator[str]:
    return iter(io.StringIO(text, newline=""))


def _delimiter(sample: str, reading: Reading) -> str:
    """The one by which the header holds item_id, or else the most cells."""
    wanted = {reading.columns.get("item_id", "item_id"), "item_id"}

    def fit(delimiter: str) -> tuple[bool, int]:
        try:
            header = next(filter(None, Dialect(delimiter=delimiter, quoting="doubled").reader(_lines(sample))), [])
        except csv.Error:
            return False, 0
        return bool(wanted & {name.strip() for name in header}), len(header)

    return max(_DELIMITERS, key=fit)


def _quoting(sample: str, delimiter: str) -> str:
    """The convention that reads the first megabyte without a fault, or with the fewest."""
    conventions = ["doubled", "backslash", *(["none"] if delimiter == "\t" else [])]
    faults = {each: _misfits(sample, Dialect(delimiter=delimiter, quoting=each)) for each in conventions}
    return min(conventions, key=faults.__getitem__)


def _misfits(sample: str, dialect: Dialect) -> int:
    cells = 0
    count = 0
    reader = dialect.reader(_lines(sample))
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return count
        except csv.Error as error:
            if len(sample) == _SAMPLE_CHARS and "unexpected end" in str(error):
                return count  # the sample ends within a cell, the file perhaps does not
            count += 1
        else:
            cells = cells or len(record)
            count += bool(record) and len(record) != cells


def _header(source: Source, sample: str, dialect: Dialect) -> list[str]:
    try:
        header: list[str] = next(_header_rows(dialect.reader(_lines(sample))), [])
    except csv.Error as error:
        told = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
        raise DataError(f"{source.name}: the header cannot be read: {told}") from None
    return [name.strip() for name in header]


def _header_rows(records: Iterator[list[str]]) -> Iterator[list[str]]:
    """Rows from the header on; Excel's ``sep=;`` may stand before it."""
    for number, record in enumerate(records):
        if record and not (number == 0 and "".join(record)[:4].lower() == "sep=" and len("".join(record)) <= 5):
            yield record


def _records(text: TextIO, dialect: Dialect, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """Numbered rows from the header on, without blank ones; rows with misplaced quotes are noted."""
    reader = dialect.reader(_bounded_lines(text, faults.name))
    begun = False
    for number in itertools.count(1):
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error) or "field limit" in str(error):
                raise DataError(
                    f"{faults.name}: row {number}: a double quote is opened and never closed, or a cell is longer than "
                    f"{MAX_CELL_CHARS >> 20} Mi characters"
                ) from None
            faults.add(
                "", "has a quote in the wrong place", [number], [""], hint="--quoting says how quotes are written"
            )
            continue
        if not record or (number == 1 and not begun and "".join(record)[:4].lower() == "sep=" and len(record) <= 2):
            continue
        begun = True
        yield number, record


def _bounded_lines(text: TextIO, name: str) -> Iterator[str]:
    for number in itertools.count(1):
        line = text.readline(MAX_LINE_CHARS)
        if len(line) == MAX_LINE_CHARS and line[-1] not in "\r\n":
            raise DataError(f"{name}: line {number}: longer than {MAX_LINE_CHARS >> 20} Mi characters")
        if not line:
            return
        yield line


def _whole_rows(
    records: Iterator[tuple[int, list[str]]], width: int, faults: Faults
) -> Iterator[tuple[int, Sequence[str]]]:
    for number, record in records:
        if len(record) != width:
            if len(record) == 1 and not record[0].strip():
                continue
            if len(record) < width or any(record[width:]):
                told = f"{len(record)} cell{'s' * (len(record) > 1)}"
                faults.add("", f"where the header has {width} columns", [number], [f"has {told}"])
                continue
        yield number, record[:width]


def _objects(text: TextIO, columns: Sequence[str], faults: Faults) -> Iterator[tuple[int, Sequence[Any]]]:
    for number, line in enumerate(_bounded_lines(text, faults.name), start=1):
        if line.isspace():
            continue
        entry = _object(line)
        if isinstance(entry, dict):
            yield number, [entry.get(name) for name in columns]
        else:
            faults.add("", entry, [number], [shown(line.strip())])


def _object(line: str) -> dict[str, Any] | str:
    """The object of one line, or what is wrong with it."""
    try:
        entry = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return "is not JSON"
    return entry if isinstance(entry, dict) else "is no JSON object"


def _no_number(constant: str) -> None:
    raise ValueError(constant)
