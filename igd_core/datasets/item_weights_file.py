"""Weights between items that somebody made elsewhere: a row for each pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from igd_core.datasets.faults import shown
from igd_core.datasets.known_items import KnownItems
from igd_core.datasets.sources import DEFAULT_READING
from igd_core.datasets.tables import open_table
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.sources import Reading, Source

COLUMNS = ("item_id", "next_item_id", "weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemWeights:
    """Pairs of items, no pair twice.

    Attributes:
        source: ``(n,)`` int32, item rows: the item that a history holds.
        target: ``(n,)`` int32, item rows: the item that it speaks for.
        weight: ``(n,)`` float64, above 0.
        dropped: rows of items that the catalogue does not hold.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    weight: NDArray[np.float64]
    dropped: int


def read_item_weights(
    path: Path | Source,
    catalogue: Catalogue,
    *,
    on_unknown: Literal["error", "drop"] = "error",
    reading: Reading = DEFAULT_READING,
) -> ItemWeights:
    """A file with the columns item_id, next_item_id and weight; csv, JSON lines or Parquet.

    Args:
        path: of the file.
        catalogue: whose items the ids are.
        on_unknown: what becomes of rows with other items.
        reading: how the file is to be read.

    Raises:
        DataError: the file, a column it needs, or what is wrong with its rows: an unknown item, a weight that is not
            above 0 or too large for 32 bits, a pair that stands there twice.
    """
    file = open_table(path, reading)
    known = KnownItems(catalogue, drop=on_unknown == "drop", hint=reading.unknown_hint)
    faults = file.faults()
    parts: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]] = []
    for table in file.batches(COLUMNS, faults):
        source, target = (known.items(table, table.ids(name), name) for name in COLUMNS[:2])
        weight = table.ratings("weight")
        faults.check()  # what is no number would be told a second time as no number above 0
        with np.errstate(over="ignore"):
            stored = weight.astype(np.float32)
        bad = np.flatnonzero(~((stored > 0) & np.isfinite(stored)))
        values = [shown(float(weight[place])) for place in bad[:5]]
        faults.refused("weight", "is not a number above 0 that 32 bits hold", table.row[bad], values)
        parts.append((source, target, weight, table.row))
    source, target, weight, row = (
        (np.concatenate(each) for each in zip(*parts, strict=True)) if parts else (np.empty(0, int) for _ in range(4))
    )
    kept = np.flatnonzero((source >= 0) & (target >= 0) & ~faults.among(row))
    pair = source[kept].astype(np.int64) * len(catalogue) + target[kept]
    repeated = np.delete(np.arange(len(kept)), np.unique(pair, return_index=True)[1])
    told = [
        shown(f"{catalogue.item_ids[source[kept[at]]]}, {catalogue.item_ids[target[kept[at]]]}") for at in repeated[:5]
    ]
    faults.refused("pair", "stands there before", row[kept[repeated]], told)
    faults.check()
    if not len(kept):
        raise DataError(f"{file.name}: no weight of a pair of items of the catalogue")
    return ItemWeights(
        source=source[kept].astype(np.int32),
        target=target[kept].astype(np.int32),
        weight=weight[kept],
        dropped=len(row) - len(kept),
    )
