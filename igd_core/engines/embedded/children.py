"""The best children of the nodes that sessions asked for in one pass; a GPU is waited for once, not once a session."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from igd_core.search.children import ranked_children
from igd_core.search.scores import PartLogits, RowSettings, child_scores_of, require_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.search.scores import TrieWeights
    from igd_core.search.session import ChildScores, Scoring


S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredNodes:
    """Nodes of one session, and what the model said of them.

    Attributes:
        nodes: ``(rows,)`` int64, at least one.
        scoring: the session's.
        logits: ``(rows, vocabulary)``, or ``(rows, n)`` of the tokens ``columns``.
        columns: ``(n,)`` int64, ascending; or None.
    """

    nodes: NDArray[np.int64]
    scoring: Scoring
    logits: torch.Tensor
    columns: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Children:
    """Children of one session's nodes; ``row`` counts all sessions' nodes."""

    row: NDArray[np.int64]
    edges: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    scores: NDArray[np.float64]


def best_children(
    asked: Sequence[ScoredNodes], trie: TokenTrie, weights: TrieWeights
) -> list[list[ChildScores] | Exception]:
    """For each session, the best of what its filter admits, a `ChildScores` for each node; or its own error.

    A `ModelFault` if a score is not finite; one NaN among a row's logits makes all its scores NaN.
    """
    children = child_scores_of([PartLogits(each.logits, each.columns) for each in asked], weights, _settings(asked))
    logprobs, scores = torch.stack([children.logprob, children.score]).cpu().double().numpy()  # the only wait
    row_bounds = [0, *accumulate(len(each.nodes) for each in asked)]
    bounds = children.row.searchsorted(row_bounds).tolist()
    admitted: list[_Children] = []
    errors: dict[int, Exception] = {}
    for place, each in enumerate(asked):
        own = slice(bounds[place], bounds[place + 1])
        mine = _Children(row=children.row[own], edges=children.edge[own], logprobs=logprobs[own], scores=scores[own])
        try:
            admitted.append(_admitted(mine, each, trie, row_bounds[place]))
        except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to this session
            errors[place] = error
    ranked = _ranked(admitted, _of_rows([each.scoring.keep for each in asked], asked, np.int64))
    return [errors.get(place) or ranked[begin:end] for place, (begin, end) in enumerate(pairwise(row_bounds))]


def _settings(asked: Sequence[ScoredNodes]) -> RowSettings:
    scorings = [each.scoring for each in asked]
    over_children, temperatures = [each.over_children for each in scorings], [each.temperature for each in scorings]
    plain = all(each == 1.0 for each in temperatures)
    return RowSettings(
        node=np.concatenate([each.nodes for each in asked]),
        alpha=_of_rows([each.alpha for each in scorings], asked, np.float32),
        temperature=None if plain else _of_rows(temperatures, asked, np.float32),
        over_children=_of_rows(over_children, asked, np.bool_) if any(over_children) else None,
    )


def _of_rows(values: Sequence[float], asked: Sequence[ScoredNodes], dtype: type[S]) -> NDArray[S]:
    """A session's value for each of its rows."""
    if len(asked) == 1:
        return np.full(len(asked[0].nodes), values[0], dtype=dtype)
    return np.array(values, dtype=dtype).repeat([len(each.nodes) for each in asked])


def _admitted(children: _Children, of: ScoredNodes, trie: TokenTrie, first_row: int) -> _Children:
    """What the filter leaves of them, with the prior in their scores."""
    require_finite(children.scores)
    row, edges, logprobs, scores = children.row, children.edges, children.logprobs, children.scores
    if not of.scoring.leaves.admits_all:
        is_open = of.scoring.leaves.open_nodes(trie, edges + 1)
        row, edges, logprobs, scores = row[is_open], edges[is_open], logprobs[is_open], scores[is_open]
    scores = of.scoring.mixed(of.nodes, row - first_row, edges, scores)
    return _Children(row=row, edges=edges, logprobs=logprobs, scores=scores)


def _ranked(children: Sequence[_Children], keep: NDArray[np.int64]) -> list[ChildScores]:
    if not children:
        return []
    return ranked_children(
        np.concatenate([each.row for each in children]),
        np.concatenate([each.edges for each in children]),
        np.concatenate([each.logprobs for each in children]),
        np.concatenate([each.scores for each in children]),
        keep,
    )
