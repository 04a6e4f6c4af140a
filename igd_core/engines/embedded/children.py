"""The best children of each node of a round, as sessions give them to the search."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from igd_core.search.scores import require_finite
from igd_core.search.session import ChildScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.ids import NodeId
    from igd_core.search.scores import ScoredChildren
    from igd_core.search.session import Scoring


def best_children(
    nodes: list[NodeId], children: ScoredChildren, scoring: Scoring, artifact: Artifact
) -> dict[NodeId, ChildScores]:
    """Drop children that the filter bars, and keep the best of each row; ``nodes`` are those of the rows.

    Raises:
        ModelFault: a score is not finite; one NaN among a row's logits makes all its scores NaN.
    """
    row, edges = children.row, children.edge
    logprobs, scores = (
        torch.stack([children.logprob, children.score]).cpu().double().numpy()
    )  # a GPU is waited for once
    require_finite(scores)
    if not scoring.leaves.admits_all:
        is_open = scoring.leaves.open_nodes(artifact.trie, edges + 1)
        row, edges, logprobs, scores = row[is_open], edges[is_open], logprobs[is_open], scores[is_open]
    if scoring.mixer is not None:
        bounds = np.searchsorted(row, np.arange(len(nodes) + 1)).tolist()
        mixed = [
            scoring.mixed(node, edges[begin:end], scores[begin:end])
            for node, (begin, end) in zip(nodes, pairwise(bounds), strict=True)
        ]
        scores = np.concatenate(mixed)
    best = best_of_rows(row, scores, scoring.keep)
    listed = edges[best].tolist(), logprobs[best].tolist(), scores[best].tolist()
    bounds = np.searchsorted(row[best], np.arange(len(nodes) + 1)).tolist()
    return {
        node: ChildScores(*[values[begin:end] for values in listed])
        for node, (begin, end) in zip(nodes, pairwise(bounds), strict=True)
    }


def best_of_rows(row: NDArray[np.int64], scores: NDArray[np.float64], keep: int) -> NDArray[np.int64]:
    """Positions of the ``keep`` highest scores of each row, row after row, highest first, ties in order.

    Args:
        row: ``(n,)``, ascending.
        scores: ``(n,)``, finite.
        keep: at least 1.
    """
    candidates = np.arange(len(row))
    count = np.bincount(row)
    if (count > keep).any():  # sorting a row of a thousand costs ten times as much as finding its best
        is_candidate, ends = np.ones(len(row), dtype=np.bool_), count.cumsum()
        for large in np.flatnonzero(count > keep):
            own = slice(ends[large] - count[large], ends[large])
            is_candidate[own] = scores[own] >= np.partition(scores[own], -keep)[-keep]
        candidates = np.flatnonzero(is_candidate)
    ordered = candidates[np.lexsort((-scores[candidates], row[candidates]))]
    count = np.bincount(row[ordered])
    rank = np.arange(len(ordered)) - np.repeat(count.cumsum() - count, count)
    return np.asarray(ordered[rank < keep])
