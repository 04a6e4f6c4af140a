"""Read the cells of a column as attribute values, of the type that a rule gives or that most cells show.

The type that most cells show is the type of the column. A cell that does not fit is a fault, reported with its row; it
never turns the whole column into text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.catalogue.attribute_columns import arrow_type
from igd_core.catalogue.attribute_types import AttributeType, BaseType, comparable
from igd_core.datasets.attribute_schema import LIST_SEPARATOR
from igd_core.datasets.decimals import PLAIN, plain_numbers, read_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.datasets.attribute_schema import ColumnRule
    from igd_core.datasets.decimals import Decimal

_Parsed: TypeAlias = "tuple[pa.Array, NDArray[np.bool_]]"

_WHOLE = r"^-?[0-9]+$"
_LEADING_ZERO = r"^-?0[0-9]"
_BEYOND_INTEGERS = r"^-?[0-9]{19,}$"
_TRUE: Final = ("true", "1", "yes")
_FALSE: Final = ("false", "0", "no")
_SHOWN: Final[tuple[BaseType, ...]] = ("boolean", "integer", "number", "date", "datetime")
_CODES_SHARE = 50
"""Digits after a leading zero are codes ("007") if at least one cell in this many has them; else they are faults."""
_EXACT_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A column as read.

    Attributes:
        values: a value of the type `arrow_type(type)` for each cell.
        type: the attribute's type.
        misfits: rows with a cell that is not of that type, or has a value that is not, ascending.
        misfit: the text of each of these cells.
        filled: how many cells are not empty.
        told: whether a rule, or the file itself, gives the type.
        otherwise: conventions by which the misfits are numbers (`decimals.read_by`). For a column that reads as text
            only because no rule names a convention, the misfits are the cells that need one.
    """

    values: pa.Array
    type: AttributeType
    misfits: tuple[int, ...] = ()
    misfit: tuple[str, ...] = ()
    filled: int
    told: bool = False
    otherwise: tuple[Decimal, ...] = ()


class UnusableColumn(ValueError):  # noqa: N818 - the name says what it is
    """The column's type cannot be an attribute; the message is Arrow's name of the type."""


def read_cells(column: pa.Array, rule: ColumnRule) -> Cells:
    """Read a column of a csv, Parquet or JSON file, its dictionaries decoded.

    A text column has the type that more than half of its filled cells show: whole numbers, numbers, booleans (true,
    false), dates (2001-05-17) or times with a zone (2001-05-17T10:00:00Z); else text. The rule's convention reads the
    numbers. Other columns keep their own type. Empty cells, nulls, NaN and texts that the rule calls missing give no
    value.

    Raises:
        UnusableColumn: no attribute can hold its values.
    """
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not is_list and _is_text(column.type):
        return _read_text(column.cast(pa.string()), rule)
    own = _own_type(column.type.value_type if is_list else column.type, is_list=bool(is_list))
    wanted = rule.type or own
    singles = column.flatten() if is_list else column
    if is_list and own.base == "text":
        singles = pc.utf8_trim_whitespace(singles.cast(pa.string()))
        singles = _only(singles, pc.fill_null(pc.not_equal(singles, ""), False).to_numpy(zero_copy_only=False))
    rows = pc.list_parent_indices(column).to_numpy() if is_list else np.arange(len(column))
    if rule.missing:
        present = ~np.isin(_as_text(singles, own.base).to_numpy(zero_copy_only=False), sorted(rule.missing))
        singles = _only(singles, present)
    if wanted.base == own.base:
        values, fits = _own_values(singles, own.base)
    else:
        texts = _as_text(singles, own.base)
        values, fits = _told(wanted.base, plain_numbers(texts, rule.decimal) if own.base == "text" else texts)
    filled = pc.is_valid(singles).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(filled & ~fits)
    if wanted.is_list:
        values = _grouped(values, rows, len(column))
    elif is_list:
        raise UnusableColumn(f"lists, and {wanted.name} is none")
    return Cells(
        values=values.cast(arrow_type(wanted)),
        type=wanted,
        misfits=tuple(rows[bad].tolist()),
        misfit=tuple(singles.take(pa.array(bad)).cast(pa.string()).to_pylist()),
        filled=int(filled.sum()),
        told=True,
    )


def _read_text(cells: pa.Array, rule: ColumnRule) -> Cells:
    trimmed = pc.utf8_trim_whitespace(cells)
    absent = pc.is_in(trimmed, value_set=pa.array(["", *sorted(rule.missing)], pa.string()))
    nothing = pa.scalar(None, pa.string())
    raw, trimmed = pc.if_else(absent, nothing, cells), pc.if_else(absent, nothing, trimmed)
    kind = rule.type
    if kind is not None and kind.is_list:
        return _read_joined(trimmed, rule, kind)
    numbers = plain_numbers(trimmed, rule.decimal)
    if kind is None:
        kind = AttributeType(base=_shown_type(numbers))
    parse = _shown if rule.type is None else _told
    values, fits = parse(kind.base, raw if kind.base == "text" else numbers)
    otherwise = read_by(trimmed, rule.decimal)
    if rule.type is None and kind.base == "text":
        otherwise = {
            each: which
            for each, which in otherwise.items()
            if _shown_type(plain_numbers(trimmed, each)) in {"integer", "number"}
        }
        for which in otherwise.values():
            fits = fits & ~which
    filled = pc.is_valid(raw).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(filled & ~fits)
    return Cells(
        values=values.cast(arrow_type(kind)),
        type=kind,
        misfits=tuple(bad.tolist()),
        misfit=tuple(raw[int(at)].as_py() for at in bad),
        filled=int(filled.sum()),
        told=rule.type is not None,
        otherwise=tuple(each for each, which in otherwise.items() if which[bad].any()),
    )


def _read_joined(cells: pa.Array, rule: ColumnRule, kind: AttributeType) -> Cells:
    """Read lists whose values are joined by a separator in one cell."""
    split = pc.split_pattern(cells, rule.separator or LIST_SEPARATOR)
    parts, rows = pc.utf8_trim_whitespace(split.flatten()), pc.list_parent_indices(split).to_numpy()
    kept = pc.invert(pc.is_in(parts, value_set=pa.array(["", *sorted(rule.missing)], pa.string())))
    parts, rows = parts.filter(kept), rows[kept.to_numpy(zero_copy_only=False)]
    of_numbers = kind.base in {"integer", "number"}
    values, fits = _told(kind.base, plain_numbers(parts, rule.decimal) if of_numbers else parts)
    bad = np.flatnonzero(~fits)
    otherwise = read_by(parts.take(pa.array(bad)), rule.decimal) if of_numbers else {}
    return Cells(
        values=_grouped(values, rows, len(cells)).cast(arrow_type(kind)),
        type=kind,
        misfits=tuple(rows[bad].tolist()),
        misfit=tuple(parts[int(at)].as_py() for at in bad),
        filled=len(cells) - cells.null_count,
        told=True,
        otherwise=tuple(otherwise),
    )


def _grouped(values: pa.Array, rows: NDArray[np.int64], count: int) -> pa.Array:
    """Group values into a list for each row; nulls are dropped."""
    valid = values.is_valid()
    values, rows = values.filter(valid), rows[valid.to_numpy(zero_copy_only=False)]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=count)))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _shown_type(cells: pa.Array) -> BaseType:
    """The type that more than half of the filled cells show, the narrowest first; else text."""
    filled = len(cells) - cells.null_count
    if int(_matches(cells, _LEADING_ZERO).sum()) * _CODES_SHARE >= max(filled, 1):
        return "text"
    best: tuple[int, BaseType] = (filled // 2, "text")
    for base in _SHOWN:
        count = int(_shown(base, cells)[1].sum())
        if count > best[0]:
            best = (count, base)
        if count == filled:
            break
    return best[1] if filled else "text"


def _told(base: BaseType, cells: pa.Array) -> _Parsed:
    """Read cells as values of a type that a rule gives (null where a cell is not one), and say which cells are."""
    match base:
        case "text":
            return cells, np.ones(len(cells), bool)
        case "integer":
            return _integers(cells)
        case "number":
            return _numbers(cells)
        case "boolean":
            return _booleans(cells, _TRUE, _FALSE)
        case _:
            return _by_iso(base, cells)


def _shown(base: BaseType, cells: pa.Array) -> _Parsed:
    """As `_told` without a rule: 0 and 1 are not booleans, 007 and 2**63 not numbers."""
    if base == "boolean":
        return _booleans(cells, _TRUE[:1], _FALSE[:1])
    values, fits = _told(base, cells)
    if base in {"integer", "number"}:
        fits = fits & ~_matches(cells, _LEADING_ZERO)
    if base == "number":
        fits &= ~_matches(cells, _BEYOND_INTEGERS)
    return values, fits


def _own_type(stored: pa.DataType, *, is_list: bool) -> AttributeType:
    kinds: dict[BaseType, bool] = {
        "text": _is_text(stored) or pa.types.is_null(stored),
        "integer": pa.types.is_integer(stored),
        "number": pa.types.is_floating(stored) or pa.types.is_decimal(stored),
        "boolean": pa.types.is_boolean(stored),
        "date": pa.types.is_date(stored),
        "datetime": pa.types.is_timestamp(stored),
    }
    for base, is_it in kinds.items():
        if is_it:
            return AttributeType(base=base, is_list=is_list)
    raise UnusableColumn(str(stored))


def _is_text(stored: pa.DataType) -> bool:
    return bool(pa.types.is_string(stored) or pa.types.is_large_string(stored) or pa.types.is_string_view(stored))


def _own_values(values: pa.Array, base: BaseType) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Convert the values of a typed column, and say which of them an attribute can hold."""
    target = arrow_type(AttributeType(base=base))
    if base == "number":
        if pa.types.is_float32(values.type):
            values = values.cast(pa.string())  # 9.99 stays 9.99 instead of 9.989999771118164
        values = values.cast(target)
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, target), values)
        fits = pc.is_finite(values)
    elif base == "integer" and pa.types.is_uint64(values.type):
        fits = pc.less_equal(values, pa.scalar(2**63 - 1, pa.uint64()))
    elif base in {"date", "datetime"}:
        values, fits = _in_calendar(values, target)
    else:
        fits = pc.is_valid(values)
    fits = pc.fill_null(fits, True)
    kept = fits.to_numpy(zero_copy_only=False)
    return _only(values, kept).cast(target), kept


def _in_calendar(values: pa.Array, target: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """Keep years 1 to 9999, which ISO 8601 can write; times without a zone count as UTC and are cut to microseconds."""
    is_date = pa.types.is_date(values.type)
    values = values.cast(target if is_date else pa.timestamp(values.type.unit, "UTC"))
    year = pc.year(values)
    fits = pc.and_(pc.greater_equal(year, 1), pc.less_equal(year, 9999))
    kept = pc.if_else(pc.fill_null(fits, True), values, pa.scalar(None, values.type))
    return kept if is_date else kept.cast(target, safe=False), fits


def _as_text(values: pa.Array, base: BaseType) -> pa.Array:
    if base == "datetime":
        values = values.cast(arrow_type(AttributeType(base=base)), safe=False)
    return values.cast(pa.string())


def _integers(cells: pa.Array) -> _Parsed:
    whole = pc.replace_substring_regex(cells, r"\.0+$", "")  # whole numbers with gaps are often exported as floats
    fits = _matches(whole, _WHOLE)
    far = fits & _matches(whole, rf"^-?[0-9]{{{_EXACT_DIGITS + 1},}}$")
    for at in np.flatnonzero(far).tolist():
        fits[at] = -(2**63) <= int(whole[at].as_py()) < 2**63
    return _only(whole, fits).cast(pa.int64()), fits


def _numbers(cells: pa.Array) -> _Parsed:
    fits = _matches(cells, PLAIN)
    values = _only(cells, fits).cast(pa.float64())
    fits &= np.isfinite(pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False))
    # Whole numbers with many digits are identifiers, unless a float64 holds all of them exactly.
    far = fits & _matches(cells, rf"^-?[0-9]{{{_EXACT_DIGITS + 1},}}$")
    for at in np.flatnonzero(far).tolist():
        fits[at] = int(cells[at].as_py()) == int(values[at].as_py())
    return _only(values, fits), fits


def _booleans(cells: pa.Array, true: Sequence[str], false: Sequence[str]) -> _Parsed:
    lower = pc.utf8_lower(cells)
    is_true, is_false = (pc.is_in(lower, value_set=pa.array(words, pa.string())) for words in (true, false))
    fits = pc.or_(is_true, is_false).to_numpy(zero_copy_only=False)
    return _only(is_true, fits), fits


def _by_iso(base: BaseType, cells: pa.Array) -> _Parsed:
    """Read dates and times, each distinct text once."""
    encoded = _only(cells, _matches(cells, "^[0-9]{4}-[0-9]{2}-")).dictionary_encode()
    read: list[int | None] = []
    for text in encoded.dictionary.to_pylist():
        try:
            read.append(int(comparable(base, text)))
        except ValueError:
            read.append(None)
    values = pa.array(read, pa.int32() if base == "date" else pa.int64()).take(encoded.indices)
    return values, values.is_valid().to_numpy(zero_copy_only=False)


def _matches(cells: pa.Array, pattern: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.fill_null(pc.match_substring_regex(cells, pattern), False).to_numpy(
        zero_copy_only=False
    )
    return found.copy()


def _only(values: pa.Array, kept: NDArray[np.bool_]) -> pa.Array:
    """The values, with null where ``kept`` is false."""
    return pc.if_else(pa.array(kept), values, pa.scalar(None, values.type))
