"""The best children of each node of a round, as sessions give them to the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from igd_core.search.scores import require_finite
from igd_core.search.session import ChildScores

if TYPE_CHECKING:
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
    bounds = np.searchsorted(row, np.arange(len(nodes) + 1))
    result = {}
    for node, begin, end in zip(nodes, bounds[:-1], bounds[1:], strict=True):
        found = scoring.mixed(node, edges[begin:end], scores[begin:end])
        best = _best(found, scoring.keep)
        result[node] = ChildScores(edges=edges[begin + best], logprobs=logprobs[begin + best], scores=found[best])
    return result


def _best(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], keep: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Positions of the ``keep`` highest scores, highest first, ties in order."""
    candidates = np.arange(len(scores))
    if len(scores) > keep:
        worst_kept = np.partition(scores, len(scores) - keep)[len(scores) - keep]
        candidates = np.flatnonzero(scores >= worst_kept)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:keep]
