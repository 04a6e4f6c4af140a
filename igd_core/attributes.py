"""Equality filters on item metadata: an inverted index from a column's value to the items that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from igd_core.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue import MetadataValue

AttributeValue: TypeAlias = str | int | float | bool


class AttributeIndex:
    """Items by metadata value, every column; at a million items this takes seconds, so not on an event loop."""

    def __init__(self, metadata: Mapping[str, Sequence[MetadataValue]]) -> None:
        self._columns = {name: _rows_by_value(column) for name, column in metadata.items()}

    def matching(self, wanted: Mapping[str, Sequence[AttributeValue]]) -> NDArray[np.int64]:
        """Item rows that have, in every column named, one of the values wanted; sorted, int64.

        A multi-valued attribute matches when any of its values does. A missing value matches nothing.

        Raises:
            QueryError: no such column, or no value wanted.
        """
        result: NDArray[np.int64] | None = None
        for column, values in wanted.items():
            index = self._columns.get(column)
            if index is None:
                known = ", ".join(sorted(self._columns)) or "none"
                raise QueryError("filter", f"no attribute {column[:64]!r}; the catalogue has: {known}")
            if not values:
                raise QueryError("filter", f"attribute {column!r}: no value given")
            found = [index[value] for value in values if value in index]
            rows = np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
            result = rows if result is None else np.intersect1d(result, rows, assume_unique=True)
        return np.empty(0, dtype=np.int64) if result is None else result


def _rows_by_value(column: Sequence[MetadataValue]) -> dict[AttributeValue, NDArray[np.int64]]:
    rows: dict[AttributeValue, list[int]] = {}
    for row, value in enumerate(column):
        if value is not None:
            for single in value if isinstance(value, tuple) else (value,):
                rows.setdefault(single, []).append(row)
    return {value: np.asarray(found, dtype=np.int64) for value, found in rows.items()}
