"""Files as columns; what a cell means is decided by who asks for its column.

csv, JSON lines and Parquet, told apart by their first bytes. Every csv cell is read as text, so that the id "007" stays
"007". Faults name the row as a spreadsheet counts it (the header of a csv file is row 1; the first of a Parquet file or
of JSON lines is row 1). Files are read a batch at a time: `batches` holds only the columns that are asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from igd_core.datasets.arrays import joined
from igd_core.datasets.dialects import open_csv
from igd_core.datasets.faults import Faults
from igd_core.datasets.json_rows import open_json
from igd_core.datasets.parquet_file import open_parquet
from igd_core.datasets.source_table import SourceTable, listed
from igd_core.datasets.sources import DEFAULT_READING, Reading, Source
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from igd_core.datasets.dialects import CsvFile
    from igd_core.datasets.json_rows import JsonFile
    from igd_core.datasets.parquet_file import ParquetRows

_NO_NAME = re.compile(r"|__index_level_\d+__|Unnamed: \d+")
"""A column of row numbers, as pandas writes it."""
_BATCH_ROWS = 65_536
_BATCH_CELLS = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A file of rows whose columns are known and whose rows have not been read yet.

    Attributes:
        name: of the file, for messages.
        columns: distinct names, in file order, those of `Reading.columns` in place of the file's own. Columns without
            a name are not among them.
        notes: what a person should know of how the file is read.
    """

    name: str
    columns: Sequence[str]
    notes: Sequence[str]
    _twice: frozenset[str]
    _position: dict[str, int]
    _rows: CsvFile | JsonFile | ParquetRows
    _reading: Reading

    @property
    def delimiter(self) -> str | None:
        """What separates the cells of a csv file; None for other files."""
        dialect = getattr(self._rows, "dialect", None)
        return None if dialect is None else dialect.delimiter

    def require(self, *names: str) -> None:
        """See to it that the file has these columns, each once.

        Raises:
            DataError: it has not.
        """
        for name in names:
            theirs = self._reading.columns.get(name)
            if name not in self.columns:
                asked = f" ({theirs!r} was asked for)" if theirs else ""
                raise DataError(
                    f"{self.name}: no column {name!r}{asked}; it has {listed(self.columns)}{self._hint(name)}"
                )
            if name in self._twice:
                raise DataError(f"{self.name}: column {name!r} stands twice in {listed(self.columns)}")

    def _hint(self, name: str) -> str:
        if not self._reading.hints or name in self._reading.columns:
            return ""
        alike = [each for each in self.columns if each.lower().replace(" ", "_") == name]
        return f" (--columns {name}={alike[0] if alike else 'NAME'} says which it is)"

    def faults(self) -> Faults:
        """An empty list of what is wrong with this file."""
        return Faults(self.name, skip_rows=self._reading.on_bad_row == "skip", hints=self._reading.hints)

    def batches(self, names: Sequence[str], faults: Faults) -> Iterator[SourceTable]:
        """The file's rows with these columns, some at a time. Rows that cannot be taken apart are noted in ``faults``.

        Raises:
            DataError: a column is missing, or the file cannot be read on.
        """
        self.require(*names)
        positions = [self._position[name] for name in names]
        batch_rows = max(1, min(_BATCH_ROWS, _BATCH_CELLS // max(1, len(self._rows.columns))))
        for rows, columns in self._rows.batches(positions, batch_rows, faults):
            yield SourceTable(
                name=self.name,
                row=rows,
                data=pa.table(dict(zip(names, columns, strict=True))),
                faults=faults,
                reading=self._reading,
            )

    def read(self, faults: Faults) -> SourceTable:
        """All rows and all columns at once.

        Raises:
            DataError: a column stands twice, there are no rows, or the file cannot be read.
        """
        self.require(*self.columns)
        batches = list(self.batches(self.columns, faults))
        if not batches:
            faults.check()
            raise DataError(f"{self.name}: no rows below the header")
        data = [batch.data for batch in batches]
        return SourceTable(
            name=self.name,
            row=np.concatenate([batch.row for batch in batches]),
            data=data[0] if len(data) == 1 else joined(data),
            faults=faults,
            reading=self._reading,
        )


def open_table(path: Path | Source, reading: Reading = DEFAULT_READING, *, every_key: bool = False) -> TableFile:
    """A file's columns. Parquet, JSON lines or csv, packed or not, as its first bytes say.

    Args:
        path: of the file.
        reading: how it is to be read.
        every_key: whether a key that only late lines of JSON have is a column too, which takes one more pass.

    Raises:
        DataError: the file is absent, empty, of a kind that is not read, or cannot be read.
    """
    source = Source.of(path)
    kind = source.kind()
    rows: CsvFile | JsonFile | ParquetRows
    if kind == "parquet":
        rows = open_parquet(source)
    else:
        rows = open_csv(source, reading) if kind == "csv" else open_json(source, reading, every_key=every_key)
    ours = {theirs: name for name, theirs in reading.columns.items() if theirs in rows.columns}
    taken = set(ours.values())
    # A column that another one takes the name of is not needed under that name.
    names = [ours.get(name, "" if name in taken else name) for name in rows.columns]
    notes = list(rows.notes)
    for place, name in enumerate(names):
        if _NO_NAME.fullmatch(name):
            told = f" but pandas' {name!r}" if name else ""
            if rows.columns[place] == name:
                notes.append(f"{source.name}: column {place + 1} of {len(names)} has no name{told} and is left out")
            names[place] = ""
    position = {name: place for place, name in reversed(list(enumerate(names))) if name}
    return TableFile(
        name=source.name,
        columns=sorted(position, key=position.__getitem__),
        notes=notes,
        _twice=frozenset(name for name, count in Counter(names).items() if name and count > 1),
        _position=position,
        _rows=rows,
        _reading=reading,
    )


def read_table(path: Path | Source, reading: Reading = DEFAULT_READING) -> SourceTable:
    """A whole file at once; `Faults.check` of its ``faults`` tells what is wrong with it.

    Raises:
        DataError: the file cannot be read, has no rows, or names a column twice.
    """
    file = open_table(path, reading, every_key=True)
    return file.read(file.faults())
