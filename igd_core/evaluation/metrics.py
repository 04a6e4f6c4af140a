"""Metrics of ranked lists with one target a row; logarithms to base 2.

A rank is 1 for the first position and 0 where the target is not in the list. Lists are ``(rows, depth)`` integers, best
first, padded with -1. The integers are leaves (titles) or items, as the caller chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE = -1
"""Pads a list, and stands for a target outside the catalogue."""


def target_ranks(lists: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Rank of each row's target, ``(rows,)`` int64; 0 where it is not in the list. A target of -1 is in no list.

    >>> target_ranks(np.array([[7, 3, 5], [4, 2, -1], [1, -1, -1]]), np.array([5, 9, -1])).tolist()
    [3, 0, 0]
    """
    found = (lists == target[:, None]) & (lists != NONE)
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0).astype(np.int64)


def hits(rank: NDArray[np.integer[Any]], k: int) -> NDArray[np.float64]:
    """1 where the target is among the first k, else 0; ``(rows,)`` float64. Its mean is HR@k.

    >>> ranks = np.array([1, 3, 0, 12])
    >>> hits(ranks, 1).mean(), hits(ranks, 10).mean(), hits(ranks, 20).mean()
    (np.float64(0.25), np.float64(0.5), np.float64(0.75))
    """
    return ((rank >= 1) & (rank <= k)).astype(np.float64)


def discounted_gains(rank: NDArray[np.integer[Any]], k: int) -> NDArray[np.float64]:
    """``1 / log2(rank + 1)`` where the target is among the first k, else 0; ``(rows,)`` float64. Its mean is NDCG@k.

    With one target the ideal list has it first, so the ideal gain is 1.

    >>> discounted_gains(np.array([1, 3, 0, 12]), 10).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """
    return np.asarray(hits(rank, k) / np.log2(np.maximum(rank, 1) + 1.0))


def mean_over_list(values: NDArray[np.floating[Any]], lists: NDArray[np.integer[Any]], k: int) -> NDArray[np.float64]:
    """Mean of ``values`` (by what lists hold) over each row's first k; ``(rows,)`` float64, NaN for an empty list.

    With training frequencies it is the popularity of what is recommended; with 0 and 1, the share of cold items.

    >>> mean_over_list(np.array([10.0, 4.0, 0.0]), np.array([[0, 2, 1], [1, -1, -1], [-1, -1, -1]]), 2).tolist()
    [5.0, 4.0, nan]
    """
    listed = lists[:, :k] != NONE
    count = listed.sum(axis=1)
    total = np.where(listed, values[lists[:, :k]], 0.0).sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full(len(lists), np.nan), where=count > 0))


def popularity_lift(recommended: float, chosen: float) -> float:
    """How much more popular recommendations are than the targets: ``mean(recommended) / mean(chosen) - 1``.

    ``recommended`` is the mean training frequency of the items in the first k positions of all rows; ``chosen`` that of
    the targets. 0 is no bias, 1 twice as popular, below 0 less popular. NaN if no target was ever chosen.

    >>> popularity_lift(30.0, 20.0)
    0.5
    """
    return recommended / chosen - 1.0 if chosen > 0 else float("nan")


def coverage(lists: NDArray[np.integer[Any]], k: int, total: int) -> float:
    """Share of all ``total`` leaves (or items) in the first k positions of at least one list.

    >>> coverage(np.array([[0, 1], [0, 2], [-1, -1]]), 1, 4), coverage(np.array([[0, 1], [0, 2], [-1, -1]]), 2, 4)
    (0.25, 0.75)
    """
    shown = np.unique(lists[:, :k])
    return float(len(shown) - (NONE in shown)) / total
