"""What a search asks of an engine: a `Session`, which expands trie nodes.

Expanding a node scores its children and those of every forced token below it, so that one round trip carries the search
to its next decisions. The engines do it in one forward pass (embedded) or one request (vLLM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from igd_core.search.filters import LeafFilter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.ids import NodeId
    from igd_core.search.fairness import Turn
    from igd_core.search.normalisation import Normalise
    from igd_core.search.prior import PriorMixer

ALL_LEAVES = LeafFilter(leaves=np.empty(0, dtype=np.int64), barred=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How a session scores.

    Attributes:
        alpha: strength of the rebalancing, 0..1.
        temperature: divides the logits, > 0.
        keep: most children returned for a node, the best by score; 2 x beams suffice for a beam search.
        leaves: the leaves that the search may reach.
        adapter: which of the engine's adapters the model runs with; None for the model itself.
        forced: whether log-probabilities of forced tokens count. If not, a session may leave them out
            (`unscored_child`), and the model's output layer has nothing to do for them.
        normalise: over what, the vocabulary or all children of a node, whatever ``leaves`` admits of them. Over
            children a forced token's log-probability is 0, and no model is asked for it.
        mixer: what mixes an item scorer's prior into the scores, before children are left out; of this session alone.
            None for the model's own.
        turn: the request's claim on a shared model: its callers, deadline and cost. None: it has none.
    """

    alpha: float = 0.2
    temperature: float = 1.0
    keep: int = 20
    leaves: LeafFilter = ALL_LEAVES
    adapter: str | None = None
    forced: bool = True
    normalise: Normalise = "vocabulary"
    mixer: PriorMixer | None = None
    turn: Turn | None = None

    @property
    def over_children(self) -> bool:
        """Whether log-probabilities are normalised over the children of a node."""
        return self.normalise == "children"

    def wants(self, trie: TokenTrie, nodes: NDArray[np.integer[Any]] | NodeId) -> NDArray[np.bool_]:
        """Whether the model must score the children of each node; a single child in the trie is forced."""
        degree = trie.row_start[np.add(nodes, 1)] - trie.row_start[nodes]
        return np.asarray((degree != 1) | (self.forced and not self.over_children))

    def mixed(
        self,
        nodes: NDArray[np.int64],
        row: NDArray[np.int64],
        edges: NDArray[np.int64],
        scores: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Weighted scores of children, with the prior in them if there is one (`PriorMixer.mixed_rows`)."""
        return scores if self.mixer is None else self.mixer.mixed_rows(nodes, row, edges, scores)

    def unscored_child(self, trie: TokenTrie, node: NodeId) -> ChildScores:
        """The only child of ``node``, without asking the model: its score is 0.

        Its log-probability is 0 where it is normalised over children, and NaN where it does not count.
        """
        logprob = 0.0 if self.over_children else math.nan
        return ChildScores(edges=[int(trie.row_start[node])], logprobs=[logprob], scores=[0.0])


class ChildScores(NamedTuple):
    """Children of one node that the filter admits, best first.

    Plain lists of n <= ``Scoring.keep``, since most have one entry: numpy's calls cost a microsecond each whatever
    their size, and a search looks at 150 nodes.

    Attributes:
        edges: by falling score, ties by rising edge.
        logprobs: nats, unweighted.
        scores: weighted, and mixed with the prior.
    """

    edges: list[int]
    logprobs: list[float]
    scores: list[float]


@dataclass(slots=True, kw_only=True)
class SessionStats:
    """What a session has cost so far.

    Attributes:
        rounds: calls of the model; the prompt's own is one.
        prompt_tokens: length of the prompt.
        cached_tokens: prompt tokens taken from an earlier prompt's key-value cache.
        model_tokens: tokens that went through the model, prompt and tree.
        queue_s: seconds spent waiting for the model.
        model_s: seconds spent in the model.
    """

    rounds: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    model_tokens: int = 0
    queue_s: float = 0.0
    model_s: float = 0.0


class Session(Protocol):
    """One prompt being decoded. Not for concurrent use by several tasks."""

    @property
    def stats(self) -> SessionStats:
        """Running totals."""
        ...

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        """Score the children of ``nodes`` and of every node on the forced chains below them.

        A node with one child in the trie may come back as `Scoring.unscored_child`, where `Scoring.wants` says so.
        Expand a node only after its parent (the root first). Leaves have no children and must not be passed.

        Raises:
            EngineError: the engine cannot answer.
        """
        ...

    async def close(self) -> None:
        """Free what the session holds; safe to call twice."""
        ...
