"""Weights from items to items, in compressed sparse rows: what a scorer's file holds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
"""Of an item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseRows:
    """For each item, the items that it speaks for, and how strongly.

    Attributes:
        scorer_start: ``(num_items + 1,)`` int32; entries of item i are ``scorer_start[i]:scorer_start[i + 1]``.
        scorer_item: ``(num_entries,)`` int32; item rows, ascending within a row.
        scorer_weight: ``(num_entries,)`` float32, above 0; a count of transitions, or a similarity.
    """

    scorer_start: NDArray[np.int32]
    scorer_item: NDArray[np.int32]
    scorer_weight: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its attribute name: what is stored, and all that is stored."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def of(self, item: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The entries of an item: item rows and weights, views of ``(n,)``."""
        entries = slice(int(self.scorer_start[item]), int(self.scorer_start[item + 1]))
        return self.scorer_item[entries], self.scorer_weight[entries]

    @staticmethod
    def strongest(
        source: NDArray[np.integer], target: NDArray[np.integer], weight: NDArray[Any], *, num_items: int, most: int
    ) -> SparseRows:
        """The ``most`` heaviest entries of each row, ties by rising target.

        Args:
            source: ``(n,)`` the row of each entry.
            target: ``(n,)`` its column; no pair twice.
            weight: ``(n,)`` above 0.
            num_items: rows.
            most: entries kept of a row, >= 1.
        """
        by_row = np.lexsort((target, -weight, source))
        row = source[by_row]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        kept = by_row[rank < most]
        kept = kept[np.lexsort((target[kept], source[kept]))]
        return SparseRows(
            scorer_start=np.searchsorted(source[kept], np.arange(num_items + 1)).astype(np.int32),
            scorer_item=target[kept].astype(np.int32),
            scorer_weight=weight[kept].astype(np.float32),
        )

    def fault(self, num_items: int) -> str | None:
        """The array that is not such rows' of ``num_items`` items; None where all are."""
        start, entries = self.scorer_start, len(self.scorer_item)
        if len(start) != num_items + 1 or start[0] != 0 or start[-1] != entries or (start[:-1] > start[1:]).any():
            return "scorer_start"
        if entries and not (self.scorer_item.min() >= 0 and self.scorer_item.max() < num_items):
            return "scorer_item"
        # Steps up within rows. A row's first entry may be lower than the one before it.
        first = start[:-1][(start[:-1] > 0) & (start[:-1] < start[1:])]
        rises = self.scorer_item[1:] > self.scorer_item[:-1]
        rises[first - 1] = True
        if not rises.all():
            return "scorer_item"
        weight = self.scorer_weight
        return None if len(weight) == entries and np.isfinite(weight).all() and (weight > 0).all() else "scorer_weight"
