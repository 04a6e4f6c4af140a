"""EASE: weights between items by a closed form (Steck, arXiv 1905.03375), as sparse rows.

EASE predicts what a person chose from the other things that this person chose: of all weights B with nothing on the
diagonal, those that minimise ``|X - X B|^2 + ridge |B|^2``. With ``P = (X'X + ridge I)^-1`` that is
``B = -P / diag(P)``, columns divided. It differs from similarities in that two neighbours that say the same are not
counted twice.

Negative weights are left out, so that sums over a history are a distribution. Of the forms tried on validation rows
this has the best likelihood and ranks as well (docs/research/accuracy.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import CatalogueError
from igd_core.scorers.counting import choice_sets, chosen_with
from igd_core.scorers.options import EASE_BYTES_A_PAIR, MAX_EASE_ITEMS
from igd_core.scorers.rows import SparseRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_DECIMALS = 6  # less is rounding, which another build of BLAS does otherwise: the artifact would get another version


def ease_rows(sequences: Sequence[NDArray[np.int32]], *, num_items: int, most: int, ridge: float) -> SparseRows:
    """The positive weights of EASE; those of item i say what i speaks for.

    Args:
        sequences: of each person, item rows, oldest first; the 200 latest choices count, each item once.
        num_items: of the catalogue.
        most: weights kept of an item, the heaviest.
        ridge: above 0; the more, the smaller the weights, above all those that few people stand behind.

    Raises:
        CatalogueError: more items than `MAX_EASE_ITEMS` were chosen, or their matrix does not fit the memory.
    """
    chosen = choice_sets(sequences)
    items = np.unique(np.concatenate([np.empty(0, np.int32), *chosen])).astype(np.int64)
    if len(items) > MAX_EASE_ITEMS:
        raise CatalogueError(
            f"scorer ease: {len(items):,} items were chosen; at most {MAX_EASE_ITEMS:,} can be, whose matrices take "
            f"{EASE_BYTES_A_PAIR * MAX_EASE_ITEMS**2 / 1e9:.1f} GB: take neighbours or transitions"
        )
    try:
        weights = _weights(chosen, items, num_items=num_items, ridge=ridge)
    except MemoryError:
        needed = EASE_BYTES_A_PAIR * len(items) ** 2 / 1e9
        raise CatalogueError(f"scorer ease: {len(items):,} items need {needed:.1f} GB of memory") from None
    targets, kept = [np.empty(0, np.int64)], [np.empty(0)]
    for row in weights:
        rounded = row.round(_DECIMALS)
        positive = np.flatnonzero(rounded > 0.0)
        best = positive[np.argsort(-rounded[positive], kind="stable")[:most]]
        targets.append(items[best])
        kept.append(rounded[best])
    sources = np.repeat(items, [len(each) for each in kept[1:]])
    return SparseRows.strongest(sources, np.concatenate(targets), np.concatenate(kept), num_items=num_items, most=most)


def _weights(
    chosen: Sequence[NDArray[np.int32]], items: NDArray[np.int64], *, num_items: int, ridge: float
) -> NDArray[np.float64]:
    """``B`` over the items that were chosen, ``(n, n)``; zeros on the diagonal."""
    gram = np.empty((len(items), len(items)))
    for place, (_, together) in enumerate(chosen_with(chosen, num_items=num_items)):
        gram[place] = np.bincount(together, minlength=num_items)[items]
    gram[np.diag_indices_from(gram)] += ridge
    weights = np.linalg.inv(gram)
    weights /= -weights.diagonal().copy()
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights)
