"""The rows of a file as columns. Whoever reads a column says what it holds: ids, text, times, numbers, attributes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.catalogue.text_columns import MOST_BYTES, packed_texts
from igd_core.datasets.arrays import plain
from igd_core.datasets.attribute_cells import UnusableColumn, read_cells
from igd_core.datasets.decimals import PLAIN, flag_of, plain_numbers, read_by
from igd_core.datasets.faults import Faults, shown
from igd_core.errors import DataError
from igd_core.timestamps import Form, Instants, NotAnInstant, dotted_as_iso, instant_of, instants_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.packed_texts import PackedTexts
    from igd_core.datasets.attribute_cells import Cells
    from igd_core.datasets.attribute_schema import ColumnRule
    from igd_core.datasets.sources import Reading

_LOST_DIGITS = r"^[0-9][.,][0-9]+E\+[0-9]{2}$"
_SHOWN_CHARS = 60
_MOST_WHOLE = 2**53
"""Doubles from here on skip whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """Rows of a file as columns. What is asked of a column notes in `faults` what is wrong with its cells.

    Attributes:
        name: of the file, for messages.
        row: ``(n,)`` int64, numbers that messages give to the rows.
        data: columns as they were read, n rows.
        faults: where faulty cells are noted.
        reading: how the file is to be read.
    """

    name: str
    row: NDArray[np.int64]
    data: pa.Table
    faults: Faults
    reading: Reading

    def __len__(self) -> int:
        return len(self.row)

    @property
    def columns(self) -> Sequence[str]:
        """Column names, in file order."""
        return list(self.data.column_names)

    def column(self, name: str) -> pa.Array:
        """One column: text, numbers, booleans, instants, days or lists.

        Raises:
            DataError: there is no such column, or its texts take 2 GiB or more together.
        """
        stored = self._stored(name)
        if stored.nbytes > MOST_BYTES and _text_bytes(stored) > MOST_BYTES:
            raise DataError(f"{self.name}: column {name!r} holds 2 GiB of text or more, which only titles may")
        return plain(stored)

    def _stored(self, name: str) -> pa.ChunkedArray:
        if name not in self.data.column_names:
            raise DataError(f"{self.name}: no column {name!r}; it has {listed(self.columns)}")
        return self.data.column(name)

    def ids(self, name: str) -> pa.Array:
        """A column of ids as text, whole numbers included; null where the cell is no id, which is noted.

        Raises:
            DataError: a column of another type.
        """
        column = _whole_numbers(self.column(name))
        if not (_is_text(column) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
            theirs = self.reading.columns.get(name, name)
            what = _named(column.type)
            if pa.types.is_floating(column.type):
                fraction = next(value for value in column.to_pylist() if value is not None and not _is_whole(value))
                what = f"numbers with a fraction or too many digits, such as {fraction!r}"
            raise DataError(f"{self.name}: column {theirs!r} holds {what}; ids are text or whole numbers")
        ids = column.cast(pa.string())
        self.note(pc.equal(pc.fill_null(ids, ""), ""), name, ids, "is empty")
        broken = self._note_unreadable(name, ids)
        lost = pc.fill_null(_matches(ids, _LOST_DIGITS), False)
        self.note(lost, name, ids, "has lost digits, as spreadsheets write long numbers: export the column as text")
        unfit = pc.or_(pc.or_(pc.equal(pc.fill_null(ids, ""), ""), broken), lost)
        return pc.if_else(unfit, pa.scalar(None, pa.string()), ids)

    def id_lists(self, name: str) -> pa.Array:
        """A column of id lists: text with the ids separated by white space, or a list. May hold empty lists.

        Raises:
            DataError: a column of another type.
        """
        column = self.column(name)
        if pa.types.is_list(column.type):
            of = column.type.value_type  # no fractions: 1.0 is no id, and large ones have lost digits
            if pa.types.is_integer(of) or pa.types.is_null(of) or pa.types.is_string(of):
                return column.cast(pa.list_(pa.string()))
            raise DataError(
                f"{self.name}: column {name!r} holds lists of {_named(of)}; expected lists of text or whole numbers"
            )
        if pa.types.is_integer(column.type) or _is_text(column) or pa.types.is_null(column.type):
            return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column.cast(pa.string())))
        raise DataError(f"{self.name}: column {name!r} holds {_named(column.type)}; expected ids separated by spaces")

    def text(self, name: str) -> PackedTexts:
        """A column of text, "" for a missing value.

        Raises:
            DataError: a column of another type.
        """
        column = pa.chunked_array([plain(chunk) for chunk in self._stored(name).chunks])
        if not (_is_text(column) or pa.types.is_null(column.type)):
            raise DataError(f"{self.name}: column {name!r} holds {_named(column.type)}; expected text")
        filled = pc.fill_null(column.cast(pa.string()), "")
        self._note_unreadable(name, filled)
        return packed_texts(filled)

    def instants(self, name: str) -> Instants:
        """A column of moments by the one convention; what is no moment is noted.

        Raises:
            DataError: a column of another type.
        """
        column = self.column(name)
        kind = column.type
        if _is_text(column):
            numbers = pc.all(pc.match_substring_regex(column, r"^[0-9]{1,18}$"))
            if not column.null_count and numbers.as_py():
                column = column.cast(pa.int64())
            return self._each_instant(name, column)
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return self._arrow_instants(name, column)
        if pa.types.is_integer(kind) or pa.types.is_float64(kind) or pa.types.is_null(kind):
            return self._each_instant(name, column)
        raise DataError(f"{self.name}: column {name!r} holds {_named(kind)}; expected times")

    def _each_instant(self, name: str, column: pa.Array) -> Instants:
        n = len(column)
        if _is_text(column) or pa.types.is_null(column.type):
            found = Instants(us=np.zeros(n, np.int64), form=np.zeros(n, np.int8))
            suspects = np.arange(n)
        else:
            filled = pc.fill_null(column, 0)
            found = instants_of(filled.to_numpy(zero_copy_only=False))
            suspects = np.flatnonzero(found.form == Form.NONE)
        reasons: dict[tuple[str, str], list[int]] = {}
        values = column.to_pylist() if len(suspects) else []
        for at in suspects.tolist():
            value = values[at]
            try:
                if value is None:
                    raise NotAnInstant("is empty")  # noqa: TRY301 - told as any other
                one = instant_of(dotted_as_iso(value) if isinstance(value, str) else value, zone=self.reading.zone)
            except NotAnInstant as error:
                hint = "--timezone NAME says which, such as UTC" if str(error).endswith("zone") else ""
                reasons.setdefault((str(error), hint), []).append(at)
            else:
                found.us[at], found.form[at] = one.us, one.form
        for (reason, hint), places in reasons.items():
            first = [shown(values[at]) for at in places[:5]]
            self.faults.add(name, reason, self.row[places], first, hint=hint)
        return found

    def _arrow_instants(self, name: str, column: pa.Array) -> Instants:
        kind = column.type
        has_zone = pa.types.is_timestamp(kind) and kind.tz is not None
        if not has_zone:  # by the words of a text without a zone
            return self._each_instant(
                name,
                column.cast(pa.timestamp("us"), safe=False).cast(pa.string())
                if pa.types.is_timestamp(kind)
                else column.cast(pa.date32(), safe=False).cast(pa.string()),
            )
        us = column.cast(pa.timestamp("us", tz=kind.tz), safe=False).cast(pa.int64())
        read = instants_of(pc.fill_null(us, 0).to_numpy(zero_copy_only=False))
        read.form[read.form != Form.MICROSECONDS] = Form.NONE
        read.form[read.form == Form.MICROSECONDS] = Form.ISO
        read.us[read.form == Form.NONE] = 0
        bad = pa.array(read.form == Form.NONE)
        self.note(bad, name, column.cast(pa.string()), "is not between 1990 and 9999")
        return read

    def ratings(self, name: str) -> NDArray[np.float64]:
        """A column of numbers as ``(n,)`` float64, NaN where a cell is empty or, which is noted, no number.

        Raises:
            DataError: a column of another type.
        """
        column = self.column(name)
        if _is_text(column):
            column = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            plain_text = plain_numbers(column, self.reading.decimal)
            bad = pc.invert(pc.fill_null(_matches(plain_text, PLAIN), True))
            otherwise = read_by(column.filter(bad), self.reading.decimal)
            self.note(bad, name, column, "is no number", hint=flag_of(otherwise))
            column = pc.if_else(bad, pa.scalar(None, pa.string()), plain_text)
        if pa.types.is_boolean(column.type):
            raise DataError(f"{self.name}: column {name!r} holds bool; expected numbers")
        numbers: NDArray[np.float64] = pc.fill_null(self._cast(name, column, pa.float64()), np.nan).to_numpy(
            zero_copy_only=False
        )
        return numbers

    def attribute(self, name: str, rule: ColumnRule) -> Cells:
        """A column of attribute values (`igd_core.datasets.attribute_cells`); a cell of another type is noted.

        Raises:
            DataError: no such column, or of a kind that no attribute can hold.
        """
        column = self.column(name)
        if _is_text(column):
            self._note_unreadable(name, column)
        try:
            cells = read_cells(column, replace(rule, decimal=rule.decimal or self.reading.decimal))
        except UnusableColumn as error:
            hint = f" (--type {name}=ignore leaves it out)" if self.reading.hints else ""
            raise DataError(f"{self.name}: column {name!r} holds {error}, which no item filter can use{hint}") from None
        if cells.otherwise and cells.type.base == "text":
            text = shlex.quote(f"{name}=text")
            self.faults.refused(
                name,
                "is no plain number, and most of the column are numbers written otherwise",
                self.row[list(cells.misfits)],
                [shown(each) for each in cells.misfit[:5]],
                hint=f"{flag_of(cells.otherwise)}; --type {text} takes all of them for text",
            )
        elif cells.misfits:
            others = f"as {cells.filled - len(cells.misfits):,} values are"
            missing, text = shlex.quote(f"{name}={cells.misfit[0][:_SHOWN_CHARS]}"), shlex.quote(f"{name}=text")
            self.faults.add(
                name,
                f"is no {cells.type.base}, {'which the column holds' if cells.told else others}",
                self.row[list(cells.misfits)],
                [shown(text) for text in cells.misfit[:5]],
                hint=(f"{flag_of(cells.otherwise)}; " if cells.otherwise else "")
                + f"--missing {missing} takes such cells for empty ones; --type {text} takes all of them for text",
            )
        return cells

    def note(self, bad: pa.Array, what: str, values: pa.Array, reason: str, *, hint: str = "") -> None:
        """Note the rows where ``bad``, ``(n,)`` of booleans, is true; ``values`` are those of the rows."""
        places = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
        if len(places):
            self.faults.add(
                what, reason, self.row[places], [shown(values[int(at)].as_py()) for at in places[:5]], hint=hint
            )

    def _note_unreadable(self, name: str, texts: pa.Array) -> pa.Array:
        broken = pc.fill_null(pc.match_substring(texts, "\x00"), False)
        self.note(broken, name, texts, "holds a NUL byte or bytes that are no text", hint="--encoding NAME may read it")
        return broken

    def _cast(self, name: str, column: pa.Array, to: pa.DataType) -> pa.Array:
        try:
            return column.cast(to)
        except pa.ArrowException as error:
            raise DataError(f"{self.name}: column {name!r} of {_named(column.type)}: {_first_line(error)}") from None


def listed(names: Sequence[str]) -> str:
    """Names in a message; of very many, the first thirty."""
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def _text_bytes(column: pa.ChunkedArray) -> int:
    return sum(sum(buffer.size for buffer in chunk.buffers()[2:] if buffer) for chunk in column.chunks)


def _is_whole(value: float) -> bool:
    return value == int(value) and abs(value) < _MOST_WHOLE if np.isfinite(value) else False


def _whole_numbers(column: pa.Array) -> pa.Array:
    """Doubles as whole numbers, if all are: what pandas makes of ids where one is missing."""
    if not pa.types.is_floating(column.type) or column.null_count == len(column):
        return column
    values = pc.drop_null(column).to_numpy(zero_copy_only=False)
    whole = np.isfinite(values) & (np.abs(values) < _MOST_WHOLE) & (values == np.floor(values))
    return column.cast(pa.int64()) if whole.all() else column


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type))


def _matches(column: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(column, pattern)


def _named(kind: pa.DataType) -> str:
    name = str(kind)
    return name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}..."


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
