"""Find out from a csv file's first megabyte how it is written, or take what the operator says."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.datasets.csv_rows import CsvRows, is_separator_line
from igd_core.datasets.dialect import Dialect
from igd_core.datasets.encodings import Encoding, encoding_of
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from igd_core.datasets.faults import Faults
    from igd_core.datasets.sources import Reading, Source

_SAMPLE_CHARS = 1 << 20
_DELIMITERS = ",;\t|"
_NULL_CELL = re.compile(r"(?:^|\t)\\N(?=\t|\r?$)", re.MULTILINE)
_QUOTED_CELL = re.compile(r'(?:^|\t)"[^\t\n]*"(?=\t|\r?$)', re.MULTILINE)
_DUMPED = re.compile(r"\\[\\Ntnrbfv0Z\t\r\n]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """A csv file.

    Attributes:
        columns: names in the header, without surrounding white space.
        notes: what a person should know about how the file is read.
        source: the file.
        encoding: of the file.
        dialect: of the file.
    """

    columns: Sequence[str]
    notes: Sequence[str]
    source: Source
    encoding: Encoding
    dialect: Dialect

    def batches(
        self, positions: Sequence[int], batch_rows: int, faults: Faults
    ) -> Iterator[tuple[NDArray[np.int64], list[pa.Array]]]:
        """Row numbers (the header is 1), and the columns at these positions as text; notes faulty rows in ``faults``.

        Raises:
            DataError: the rest of the file cannot be read.
        """
        with self.source.open() as raw:
            text = self.encoding.text_of(raw)
            try:
                yield from CsvRows(text, self.dialect, len(self.columns), faults).batches(positions, batch_rows)
            finally:
                text.detach()


def open_csv(source: Source, reading: Reading) -> CsvFile:
    """Find out how a csv file is written.

    Raises:
        DataError: the file is empty, is no text, or cannot be read.
    """
    encoding = encoding_of(source, reading.encoding)
    with source.open() as raw:
        text = encoding.text_of(raw)
        sample = text.read(_SAMPLE_CHARS)
        text.detach()
    if "\x00" in sample.partition("\n")[0]:
        raise DataError(f"{source.name}: the first line holds NUL bytes: no csv, or UTF-16 (--encoding utf-16-le)")
    delimiter = reading.delimiter
    if sample[:4].lower() == "sep=" and not sample[5:6].strip():  # Excel writes this as a first line
        delimiter = delimiter or sample[4:5]
    delimiter = delimiter or _delimiter(sample, reading)
    dialect = Dialect(
        delimiter=delimiter, quoting=_quoting(sample, delimiter) if reading.quoting == "auto" else reading.quoting
    )
    header = _header(source, sample, dialect)
    notes = [encoding.note] if encoding.note else []
    if reading.quoting == "auto" and dialect.quoting != "doubled":
        how = _TOLD[dialect.quoting]
        notes.append(f"{source.name}: read as {how} (--quoting decides)")
    return CsvFile(columns=header, notes=notes, source=source, encoding=encoding, dialect=dialect)


_TOLD = {
    "backslash": "quoted with backslashes",
    "none": "not quoted",
    "escaped": r"not quoted, with \t, \n and \\ as databases write them",
}


def _lines(text: str) -> Iterator[str]:
    return iter(io.StringIO(text, newline=""))


def _delimiter(sample: str, reading: Reading) -> str:
    """The delimiter that gives the header an item_id, or else the most cells."""
    wanted = {reading.columns.get("item_id", "item_id"), "item_id"}

    def fit(delimiter: str) -> tuple[bool, int]:
        try:
            header = next(filter(None, Dialect(delimiter=delimiter, quoting="doubled").reader(_lines(sample))), [])
        except csv.Error:
            return False, 0
        return bool(wanted & {name.strip() for name in header}), len(header)

    return max(_DELIMITERS, key=fit)


def _quoting(sample: str, delimiter: str) -> str:
    """The quoting convention that reads the first megabyte with the fewest faults."""
    if '"' not in sample and "\\" not in sample:
        return "doubled"
    if delimiter == "\t" and _is_dump(sample):
        return "escaped"
    # A writer that doubles quotes also puts quotes around a cell that has one. ``5\" disc`` without them was written
    # with
    # a backslash.
    escaped = re.search(rf'\\"[^"\r\n{re.escape(delimiter)}]', sample)
    quoted = ["backslash", "doubled"] if escaped else ["doubled", "backslash"]
    conventions = [*quoted, *(["none"] if delimiter == "\t" else [])]
    faults = {each: _misfits(sample, Dialect(delimiter=delimiter, quoting=each)) for each in conventions}
    return min(conventions, key=faults.__getitem__)


def _is_dump(sample: str) -> bool:
    """Whether a database wrote the file: its mark for missing values occurs, no quotes do, and no other backslashes."""
    if _QUOTED_CELL.search(sample) or not _NULL_CELL.search(sample):
        return False
    backslashes = sample.count("\\") > len(_NULL_CELL.findall(sample))
    return backslashes and "\\" not in _DUMPED.sub("", sample.rstrip("\\"))


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
                return count  # the sample ends within a cell; the file may not
            count += 1
        else:
            cells = cells or len(record)
            count += bool(record) and len(record) != cells


def _header(source: Source, sample: str, dialect: Dialect) -> list[str]:
    try:
        records = enumerate(dialect.reader(_lines(sample)), start=1)
        header = next((record for row, record in records if record and not is_separator_line(record, row)), [])
    except csv.Error as error:
        told = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
        raise DataError(f"{source.name}: the header cannot be read: {told}") from None
    return [name.strip() for name in header]
