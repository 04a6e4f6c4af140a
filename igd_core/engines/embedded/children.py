"""The best children of the nodes that sessions asked for in one pass; a GPU is waited for once, not once a session."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar

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


class _Children(NamedTuple):
    """Children of one session's nodes; ``row`` counts all sessions' nodes."""

    row: NDArray[np.int64]
    edges: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    scores: NDArray[np.float64]

    def part(self, own: slice | NDArray[np.bool_]) -> _Children:
        """Some of them."""
        return _Children(self.row[own], self.edges[own], self.logprobs[own], self.scores[own])

    @classmethod
    def joined(cls, parts: Sequence[_Children]) -> _Children:
        """All of them, in their order."""
        return cls(
            np.concatenate([part.row for part in parts]),
            np.concatenate([part.edges for part in parts]),
            np.concatenate([part.logprobs for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )


def best_children(
    asked: Sequence[ScoredNodes], trie: TokenTrie, weights: TrieWeights
) -> list[list[ChildScores] | Exception]:
    """For each session, the best of what its filter admits, a `ChildScores` for each node; or its own error.

    A `ModelFault` if a score is not finite; one NaN among a row's logits makes all its scores NaN.
    """
    children = child_scores_of([PartLogits(each.logits, each.columns) for each in asked], weights, _settings(asked))
    logprobs, scores = torch.stack([children.logprob, children.score]).cpu().double().numpy()  # the only wait
    found = _Children(children.row, children.edge, logprobs, scores)
    if len(asked) == 1:
        return [_best_of_one(found, asked[0], trie)]
    row_bounds = [0, *accumulate(len(each.nodes) for each in asked)]
    bounds = found.row.searchsorted(row_bounds).tolist()
    admitted: list[_Children] = []
    errors: dict[int, Exception] = {}
    for place, each in enumerate(asked):
        try:
            mine = found.part(slice(bounds[place], bounds[place + 1]))
            admitted.append(_admitted(mine, each, trie, row_bounds[place]))
        except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to this session
            errors[place] = error
    if not admitted:
        return [errors[place] for place in range(len(asked))]
    together = _Children.joined(admitted)
    keep = _of_rows([each.scoring.keep for each in asked], asked, np.int64)
    ranked = ranked_children(together.row, together.edges, together.logprobs, together.scores, keep)
    return [errors.get(place) or ranked[begin:end] for place, (begin, end) in enumerate(pairwise(row_bounds))]


def _best_of_one(found: _Children, of: ScoredNodes, trie: TokenTrie) -> list[ChildScores] | Exception:
    """The same of one session, where nothing is to be cut apart and joined."""
    try:
        admitted = _admitted(found, of, trie, 0)
    except Exception as error:  # noqa: BLE001 - as above
        return error
    keep = np.full(len(of.nodes), of.scoring.keep)
    return ranked_children(admitted.row, admitted.edges, admitted.logprobs, admitted.scores, keep)


def _settings(asked: Sequence[ScoredNodes]) -> RowSettings:
    scorings = [each.scoring for each in asked]
    over_children, temperatures = [each.over_children for each in scorings], [each.temperature for each in scorings]
    plain = all(each == 1.0 for each in temperatures)
    return RowSettings(
        node=asked[0].nodes if len(asked) == 1 else np.concatenate([each.nodes for each in asked]),
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
    if not of.scoring.leaves.admits_all:
        children = children.part(of.scoring.leaves.open_nodes(trie, children.edges + 1))
    if of.scoring.mixer is None:
        return children
    mixed = of.scoring.mixed(of.nodes, children.row - first_row, children.edges, children.scores)
    return children._replace(scores=mixed)
