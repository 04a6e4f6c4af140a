"""The best children of each node of a round, as sessions give them to the search."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from igd_core.search.session import ChildScores

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ranked_children(
    row: NDArray[np.int64],
    edges: NDArray[np.int64],
    logprobs: NDArray[np.float64],
    scores: NDArray[np.float64],
    keep: NDArray[np.int64],
) -> list[ChildScores]:
    """The best children of each row.

    Args:
        row: ``(n,)``, ascending; of each child.
        edges: ``(n,)``, ascending within a row.
        logprobs: ``(n,)``, nats.
        scores: ``(n,)``, finite; by which they are ranked.
        keep: ``(rows,)``, at least 1; how many at most.

    Returns:
        One for each row.
    """
    best = best_of_rows(row, scores, keep)
    listed = edges[best].tolist(), logprobs[best].tolist(), scores[best].tolist()
    bounds = row[best].searchsorted(np.arange(len(keep) + 1)).tolist()
    return [ChildScores(*[values[begin:end] for values in listed]) for begin, end in pairwise(bounds)]


def best_of_rows(row: NDArray[np.int64], scores: NDArray[np.float64], keep: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the ``keep`` highest scores of each row, row after row, highest first, ties in order.

    Args:
        row: ``(n,)``, ascending.
        scores: ``(n,)``, finite.
        keep: ``(rows,)``, at least 1.
    """
    candidates = np.arange(len(row))
    count = np.bincount(row, minlength=len(keep))
    if (count > keep).any():  # sorting a row of a thousand costs ten times as much as finding its best
        is_candidate, ends = np.ones(len(row), dtype=np.bool_), count.cumsum()
        for large in np.flatnonzero(count > keep):
            own, kept = slice(ends[large] - count[large], ends[large]), keep[large]
            is_candidate[own] = scores[own] >= np.partition(scores[own], -kept)[-kept]
        candidates = np.flatnonzero(is_candidate)
    ordered = candidates[np.lexsort((-scores[candidates], row[candidates]))]
    count = np.bincount(row[ordered], minlength=len(keep))
    rank = np.arange(len(ordered)) - (count.cumsum() - count).repeat(count)
    return np.asarray(ordered[rank < keep.repeat(count)])
