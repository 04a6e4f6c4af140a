"""Weights between items that somebody brought, as a scorer's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.scorers.rows import SparseRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.item_weights_file import ItemWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenWeights:
    """Brings weights to the scorer of an artifact; its options call it.

    Attributes:
        item_ids: of the catalogue that the weights' rows are of, before any item is left out.
        weights: as read.
        most: kept of an item, the heaviest.
    """

    item_ids: Sequence[str]
    weights: ItemWeights
    most: int

    def __call__(self, catalogue: Catalogue, sequences: Sequence[NDArray[np.int32]]) -> SparseRows:  # noqa: ARG002
        """The rows of the items that ``catalogue`` holds; what people chose does not matter."""
        row_of = {item_id: row for row, item_id in enumerate(catalogue.item_ids)}
        row = np.array([row_of.get(item_id, -1) for item_id in self.item_ids], np.int32)
        source, target = row[self.weights.source], row[self.weights.target]
        kept = (source >= 0) & (target >= 0)
        return SparseRows.strongest(
            source[kept], target[kept], self.weights.weight[kept], num_items=len(catalogue), most=self.most
        )
