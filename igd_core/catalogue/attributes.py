"""Find items by the values of their attributes: distinct values are sorted, and a range takes two binary searches.

An attribute takes 4 bytes a value, and 16 a distinct value (text: 12 and its bytes). Evaluating a condition touches
one byte an item, and the values that match.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.catalogue.attribute_columns import array_of
from igd_core.catalogue.attribute_types import in_json
from igd_core.catalogue.conditions import nearest
from igd_core.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.attribute_types import AttributeType, Comparable, JsonScalar
    from igd_core.catalogue.conditions import Bound, Condition, Conditions
    from igd_core.catalogue.items import MetadataValue

_ALL_COMPARED = 256
_NEIGHBOURS = 8
_GUESSES = 3
_SHOWN_VALUES = 5
_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownValues:
    """Values that a filter names and no item has; probably misspelt.

    Attributes:
        attribute: its name.
        values: in JSON, sorted.
        nearest: the most similar values that items do have, best first.
    """

    attribute: str
    values: tuple[JsonScalar, ...]
    nearest: tuple[JsonScalar, ...]

    def __str__(self) -> str:
        named = _listed(self.values)
        near = f"; the nearest that items have: {_listed(self.nearest)}" if self.nearest else ""
        return f"no item has {named}{near}"


class AttributeIndex:
    """Index of items by attribute. Building takes a second an attribute at a million items: not on an event loop."""

    def __init__(self, metadata: Mapping[str, Sequence[MetadataValue]], types: Mapping[str, AttributeType]) -> None:
        """``metadata``: columns by name, one value an item; ``types``: the type of each column."""
        self._columns = {
            name: _indexed(array_of(column, types[name]), types[name]) for name, column in metadata.items()
        }
        self.types = dict(types)

    def matching(self, conditions: Conditions) -> NDArray[np.int64]:
        """Rows of the items that meet all conditions, sorted, int64; none where there is no condition.

        Raises:
            QueryError: no such attribute.
        """
        admitted = self.admitted(conditions)
        return np.empty(0, np.int64) if admitted is None else np.flatnonzero(admitted)

    def admitted(self, conditions: Conditions) -> NDArray[np.bool_] | None:
        """Whether each item meets all conditions, ``(num_items,)`` bool; None without a condition.

        Raises:
            QueryError: no such attribute.
        """
        admitted: NDArray[np.bool_] | None = None
        for name, condition in conditions.items():
            column = self._columns.get(name)
            if column is None:
                known = ", ".join(sorted(self._columns)) or "none"
                raise QueryError("filter", f"no attribute {name[:64]!r}; the catalogue has: {known}")
            rows = column.matching(condition)
            admitted = rows if admitted is None else admitted & rows
        return admitted

    def unknown_values(self, conditions: Conditions) -> list[UnknownValues]:
        """Values that conditions name and no item has, by attribute; for a few of them, the most similar values."""
        found = []
        guesses = _GUESSES
        for name, condition in conditions.items():
            column = self._columns[name]
            named = dict.fromkeys((*(condition.any_of or ()), *(condition.none_of or ())))
            unknown = [value for value in named if column.position(value) is None]
            if unknown:
                near = [close for value in unknown[:guesses] for close in column.nearest(value)]
                guesses -= len(unknown[:guesses])
                base = self.types[name].base
                found.append(
                    UnknownValues(
                        attribute=name,
                        values=tuple(in_json(base, value) for value in unknown),
                        nearest=tuple(in_json(base, value) for value in dict.fromkeys(near)),
                    )
                )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One attribute: its distinct values, and the rows of each.

    Attributes:
        num_items: of the catalogue.
        distinct: the values there are, ascending: an Arrow array of text, or ``(d,)`` int64 or float64.
        start: ``(d + 1,)`` int64; rows with value v are ``rows[start[v]:start[v + 1]]``.
        rows: ``(values,)`` int32.
    """

    num_items: int
    distinct: pa.StringArray | NDArray[Any]
    start: NDArray[np.int64]
    rows: NDArray[np.int32]

    def matching(self, condition: Condition) -> NDArray[np.bool_]:
        """Whether each item meets the condition, ``(num_items,)`` bool."""
        admitted = np.ones(self.num_items, bool)
        if condition.any_of is not None:
            admitted &= self._with_one_of(condition.any_of)
        if condition.none_of is not None:
            admitted &= ~self._with_one_of(condition.none_of)
        if condition.lower or condition.upper:
            first, end = self._range(condition.lower, condition.upper)
            admitted &= self._with([(first, end)])
        if condition.exists is not None:
            admitted &= self._with([(0, len(self.distinct))]) == condition.exists
        return admitted

    def position(self, value: Comparable) -> int | None:
        """Index of ``value`` among the distinct ones; None if no item has it."""
        at = self._before(value)
        return at if at < len(self.distinct) and self._at(at) == value else None

    def nearest(self, value: Comparable) -> list[Comparable]:
        """At most three values of items that are most similar to ``value``."""
        if not isinstance(value, str):
            at = self._before(value)
            return [self._at(near) for near in (at - 1, at) if 0 <= near < len(self.distinct)]
        if len(self.distinct) <= _ALL_COMPARED:
            return list(nearest(value, [self._at(at) for at in range(len(self.distinct))]))
        # Among many values, compare only those with the same beginning, in any usual case.
        candidates = dict.fromkeys(
            self._at(near)
            for spelled in dict.fromkeys((value, value.capitalize(), value.title(), value.lower(), value.upper()))
            for at in [self._before(spelled)]
            for near in range(max(0, at - _NEIGHBOURS), min(len(self.distinct), at + _NEIGHBOURS))
        )
        return list(nearest(value, [str(one) for one in candidates]))

    def _with_one_of(self, values: Iterable[Comparable]) -> NDArray[np.bool_]:
        return self._with((at, at + 1) for value in values if (at := self.position(value)) is not None)

    def _with(self, ranges: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
        """Items with a distinct value in one of the ranges."""
        found = np.zeros(self.num_items, bool)
        for first, end in ranges:
            found[self.rows[self.start[first] : self.start[max(first, end)]]] = True
        return found

    def _range(self, lower: Bound | None, upper: Bound | None) -> tuple[int, int]:
        first, end = 0, len(self.distinct)
        if lower is not None:
            first = self._behind(lower.value) if lower.strict else self._before(lower.value)
        if upper is not None:
            end = self._before(upper.value) if upper.strict else self._behind(upper.value)
        return first, end

    def _before(self, value: Comparable) -> int:
        return bisect_left(range(len(self.distinct)), value, key=self._at)

    def _behind(self, value: Comparable) -> int:
        return bisect_right(range(len(self.distinct)), value, key=self._at)

    def _at(self, position: int) -> Any:  # noqa: ANN401 - text or a number, as the column is
        # As Python numbers, which compare exactly: 2**53 + 1 is no float64, 2**63 no int64.
        value = self.distinct[position]
        return value.as_py() if isinstance(value, pa.Scalar) else value.item()


def _listed(values: Sequence[JsonScalar]) -> str:
    shown = [json.dumps(value, ensure_ascii=False)[:_SHOWN_CHARS] for value in values[:_SHOWN_VALUES]]
    return ", ".join(shown) + (", ..." if len(values) > _SHOWN_VALUES else "")


def _indexed(array: pa.Array, kind: AttributeType) -> _Column:
    if kind.is_list:
        items, values = pc.list_parent_indices(array).to_numpy(), array.flatten()
    else:
        items, values = np.arange(len(array), dtype=np.int64), array
    if values.null_count:
        filled = values.is_valid()
        items, values = items[filled.to_numpy(zero_copy_only=False)], values.filter(filled)
    distinct, code = _numbered(values, kind)
    order = np.argsort(code, kind="stable")
    return _Column(
        num_items=len(array),
        distinct=distinct,
        start=np.concatenate(([0], np.cumsum(np.bincount(code, minlength=len(distinct))))).astype(np.int64),
        rows=items[order].astype(np.int32),
    )


def _numbered(values: pa.Array, kind: AttributeType) -> tuple[pa.StringArray | NDArray[Any], NDArray[np.integer[Any]]]:
    """The distinct values, ascending, and the index of each item's value among them."""
    if kind.base == "text":
        # UTF-8 sorts as its code points do, and so does Python's text.
        encoded = pc.utf8_normalize(values, form="NFC").dictionary_encode()
        ascending = pc.array_sort_indices(encoded.dictionary)
        position = np.empty(len(encoded.dictionary), np.int32)
        position[ascending.to_numpy()] = np.arange(len(ascending), dtype=np.int32)
        return encoded.dictionary.take(ascending), position[encoded.indices.to_numpy()]
    if kind.base == "date":
        values = values.cast(pa.int32())
    stored = pa.float64() if kind.base == "number" else pa.int64()
    distinct, code = np.unique(values.cast(stored).to_numpy(), return_inverse=True)
    return distinct, code
