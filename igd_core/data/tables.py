"""A csv or Parquet file as columns; what a cell means is decided by who asks for its column.

Every csv cell is read as text, so that the id "007" stays "007". Errors name the file, the value and the row as a
spreadsheet counts it (the header of a csv file is row 1; a Parquet file's first row is row 1).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.catalogue import MetadataValue
    from igd_core.data.interactions import Seconds

_PARQUET_MAGIC = b"PAR1"
_WHOLE = r"^-?[0-9]+$"
_NUMBER = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_LEADING_ZERO = r"^-?0[0-9]"
_MAX_BLOCK = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """A file's columns.

    Attributes:
        path: the file, for messages.
        first_row: number that a message gives to the first data row.
        data: at least one row, one chunk per column, distinct and non-empty column names.
    """

    path: Path
    first_row: int
    data: pa.Table

    @property
    def columns(self) -> Sequence[str]:
        """Column names, in file order."""
        return list(self.data.column_names)

    def column(self, name: str) -> pa.Array:
        """One column as Arrow holds it.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.data.column_names:
            raise DataError(f"{self.path}: no column {name!r}; it has {', '.join(self.columns)}")
        column = self.data.column(name).combine_chunks()
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def ids(self, name: str) -> pa.Array:
        """A column of ids as text; whole numbers in a Parquet file count as ids.

        Raises:
            DataError: an empty id, or a column of another type.
        """
        column = self.column(name)
        if not (_is_text(column) or pa.types.is_integer(column.type)):
            raise DataError(f"{self.path}: column {name!r} holds {column.type}; ids are text or whole numbers")
        ids = column.cast(pa.string())
        self._refuse(pc.equal(pc.fill_null(ids, ""), ""), name, ids, "is empty")
        return ids

    def id_lists(self, name: str) -> pa.Array:
        """A column of id lists: text with the ids separated by white space, or a Parquet list. May hold empty lists.

        Raises:
            DataError: a column of another type.
        """
        column = self.column(name)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            return column.cast(pa.list_(pa.string()))
        if pa.types.is_integer(column.type) or _is_text(column):
            return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column.cast(pa.string())))
        raise DataError(f"{self.path}: column {name!r} holds {column.type}; expected ids separated by spaces")

    def text(self, name: str) -> list[str]:
        """A column of text, "" where a Parquet file has a null.

        Raises:
            DataError: a column of another type.
        """
        column = self.column(name)
        if not _is_text(column):
            raise DataError(f"{self.path}: column {name!r} holds {column.type}; expected text")
        texts: list[str] = pc.fill_null(column.cast(pa.string()), "").to_pylist()
        return texts

    def seconds(self, name: str) -> Seconds:
        """A column of instants as ``(n,)`` seconds since 1970; int64 where all are whole.

        Raises:
            DataError: a missing, unreadable or non-finite value, or a column of another type.
        """
        column = self.column(name)
        if pa.types.is_timestamp(column.type):
            column = pc.divide(column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6)
        what = "is no finite number of seconds since 1970"
        if _is_text(column):
            column = pc.utf8_trim_whitespace(column)
            self._refuse(pc.invert(pc.fill_null(_matches(column, _NUMBER), False)), name, column, what)
            whole = pc.all(_matches(column, _WHOLE)).as_py()
            column = self._cast(name, column, pa.int64() if whole else pa.float64())
        self._refuse(pc.is_null(column), name, column, what)
        seconds = self._cast(name, column, pa.int64() if pa.types.is_integer(column.type) else pa.float64()).to_numpy()
        self._refuse(pa.array(~np.isfinite(seconds)), name, column, what)
        return seconds  # type: ignore[no-any-return]

    def ratings(self, name: str) -> NDArray[np.float64]:
        """A column of numbers as ``(n,)`` float64, NaN where a cell is empty.

        Raises:
            DataError: a value that is no number, or a column of another type.
        """
        column = self.column(name)
        if _is_text(column):
            column = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            self._refuse(pc.invert(pc.fill_null(_matches(column, _NUMBER), True)), name, column, "is no number")
        numbers: NDArray[np.float64] = pc.fill_null(self._cast(name, column, pa.float64()), np.nan).to_numpy()
        return numbers

    def metadata(self, name: str, separator: str | None = None) -> list[MetadataValue]:
        """A column of attribute values.

        Text becomes whole numbers, numbers or booleans (true, false) when every filled cell is one and none has a
        leading zero, as codes do ("007"). Empty cells, nulls and NaN become None. A list column, or a column with a
        `separator`, holds tuples of text.

        Raises:
            DataError: a column of another type.
        """
        column = self.column(name)
        if separator == "":
            raise DataError(f"{self.path}: column {name!r}: the separator of its values is empty")
        if separator is not None:
            return [tuple(part for raw in cell.split(separator) if (part := raw.strip())) for cell in self.text(name)]
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            return [tuple(cell or ()) for cell in column.cast(pa.list_(pa.string())).to_pylist()]
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            column = column.cast(pa.string())
        elif _is_text(column):
            column = _typed(column.cast(pa.string()))
        elif pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        elif not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            raise DataError(f"{self.path}: column {name!r} holds {column.type}, which no item filter can use")
        values: list[MetadataValue] = column.to_pylist()
        return values

    def row_error(self, index: int, message: str) -> DataError:
        """A DataError that names the file and the row of data row `index`."""
        return DataError(f"{self.path}: row {self.first_row + index}: {message}")

    def _refuse(self, bad: pa.Array, name: str, values: pa.Array, message: str) -> None:
        index = pc.index(bad, True).as_py()
        if index >= 0:
            raise self.row_error(index, f"{name} {values[index].as_py()!r} {message}")

    def _cast(self, name: str, column: pa.Array, to: pa.DataType) -> pa.Array:
        try:
            return column.cast(to)
        except pa.ArrowException as error:
            raise DataError(f"{self.path}: column {name!r} of {column.type}: {_first_line(error)}") from None


def read_table(path: Path) -> SourceTable:
    """Read a Parquet file (told by its first bytes) or else a csv file: UTF-8, comma, double quotes, a header.

    Raises:
        DataError: the file is absent, empty, not UTF-8, not well formed, or names a column twice or not at all.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        is_parquet = raw.startswith(_PARQUET_MAGIC)
        data = pyarrow.parquet.read_table(pa.BufferReader(raw)) if is_parquet else _read_csv(path, raw)
    except pa.ArrowException as error:
        raise DataError(f"{path}: {_first_line(error)}") from None
    names = data.column_names
    if not all(names):
        raise DataError(f"{path}: column {names.index('') + 1} of {len(names)} has no name")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column name stands twice in {', '.join(names)}")
    if not data.num_rows:
        raise DataError(f"{path}: no rows below the header")
    return SourceTable(path=path, first_row=1 if is_parquet else 2, data=data)


def _read_csv(path: Path, raw: bytes) -> pa.Table:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8: byte {raw[error.start : error.start + 1]!r}") from None
    if not raw.strip():
        raise DataError(f"{path}: the file is empty")
    if raw.count(b'"') % 2:  # Arrow would silently take every row up to the next quote for one cell
        raise DataError(f"{path}: a double quote is opened and never closed")
    # One thread, because only then does Arrow's message name the row of a malformed line.
    header = next(filter(None, csv.reader(io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", newline=""))))
    return pyarrow.csv.read_csv(
        pa.BufferReader(raw),
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=min(len(raw), _MAX_BLOCK)),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _matches(column: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(column, pattern)


def _typed(text: pa.Array) -> pa.Array:
    """Text as int64, float64 or bool when every filled cell reads as one, with nulls for empty cells."""
    filled = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    if pc.any(_matches(filled, _LEADING_ZERO)).as_py():  # a code such as "007", which must not lose its zeros
        return filled
    for pattern, kind in ((_WHOLE, pa.int64()), (_NUMBER, pa.float64()), ("^(true|false)$", pa.bool_())):
        if pc.all(_matches(filled, pattern)).as_py():
            try:
                typed = filled.cast(kind)
            except pa.ArrowInvalid:  # digits beyond int64: an identifier, not a quantity
                return filled
            finite = kind != pa.float64() or pc.all(pc.is_finite(typed)).as_py()
            return typed if finite else filled
    return filled


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
