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
    """Items by metadata value; a column is indexed when a request first asks for it."""

    def __init__(self, metadata: Mapping[str, Sequence[MetadataValue]]) -> None:
        self._metadata = metadata
        self._columns: dict[str, dict[AttributeValue, NDArray[np.int64]]] = {}

    def matching(self, wanted: Mapping[str, Sequence[AttributeValue]]) -> NDArray[np.int64]:
        """Item rows that have, in every column named, one of the values wanted; sorted, int64.

        A multi-valued attribute matches when any of its values does. A missing value matches nothing.

        Raises:
            QueryError: no such column, or no value wanted.
        """
        result: NDArray[np.int64] | None = None
        for column, values in wanted.items():
            if column not in self._metadata:
                known = ", ".join(sorted(self._metadata)) or "none"
                raise QueryError("filter", f"no attribute {column[:64]!r}; the catalogue has: {known}")
            if not values:
                raise QueryError("filter", f"attribute {column!r}: no value given")
            index = self._column(column)
            found = [index[value] for value in values if value in index]
            rows = np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
            result = rows if result is None else np.intersect1d(result, rows, assume_unique=True)
        return np.empty(0, dtype=np.int64) if result is None else result

    def _column(self, name: str) -> dict[AttributeValue, NDArray[np.int64]]:
        if name not in self._columns:
            rows: dict[AttributeValue, list[int]] = {}
            for row, value in enumerate(self._metadata[name]):
                if value is not None:
                    for single in value if isinstance(value, tuple) else (value,):
                        rows.setdefault(single, []).append(row)
            self._columns[name] = {value: np.asarray(found, dtype=np.int64) for value, found in rows.items()}
        return self._columns[name]
