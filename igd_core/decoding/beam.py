"""Trie-constrained beam search that asks the model about decisions, not about tokens.

The semantics are the reference's step-synchronous search (arXiv 2506.13229; transformers' ``generate`` with
``early_stopping=False``): at each step the best 2K continuations of all beams are ranked, a path that ends there
finishes only if it is among the first K, and the best K others go on. The search replays these steps on scores it
already holds, and calls the engine only when a live beam stands on a node without scores. Since an expansion takes the forced
tokens below a node along, calls fall from one a token to one a decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.ids import ROOT, LeafIndex, NodeId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.decoding.session import ChildScores, Session
    from igd_core.trie import TokenTrie


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStep:
    """One token of a hypothesis: edge, log-probability in nats (unweighted) and weighted score."""

    edge: int
    logprob: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A finished path; ``score`` is the sum of its steps' scores over ``length ** length_penalty``."""

    leaf: LeafIndex
    score: float
    steps: tuple[TokenStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frontier:
    """Live beams: ``node`` (n,) int64 and their summed ``score`` (n,) float64, best first."""

    node: NDArray[np.int64]
    score: NDArray[np.float64]


class BeamSearch:
    """State of one search: its frontier, its finished paths, and every score the engine has returned."""

    def __init__(self, trie: TokenTrie, *, beams: int, length_penalty: float = 0.0) -> None:
        """Start at the root.

        Args:
            trie: of the artefact version the session was opened with.
            beams: K, >= 1. When fewer than K leaves are admitted, all of them come back.
            length_penalty: 0 ranks by summed score (D3), 1 by its mean over tokens, EOS included (BIGRec).
        """
        self._trie = trie
        self._beams = beams
        self._length_penalty = length_penalty
        self._scores: dict[NodeId, ChildScores] = {}
        self._finished: list[tuple[float, NodeId]] = []
        self._live = _Frontier(node=np.array([ROOT]), score=np.zeros(1))
        self._depth = 0

    async def run(self, session: Session) -> list[Hypothesis]:
        """Search to the end; hypotheses by falling score."""
        while len(self._live.node):
            unscored = [NodeId(node) for node in self._live.node.tolist() if node not in self._scores]
            if unscored:
                self._scores.update(await session.expand(unscored))
            self._step()
        return [self._hypothesis(node, score) for score, node in self._finished]

    def _step(self) -> None:
        """Extend every live beam by one token."""
        edges, totals = self._ranked_candidates()
        self._depth += 1
        nodes = edges + 1
        ends = self._trie.row_start[nodes] == self._trie.row_start[nodes + 1]
        ends_in_time = ends[: self._beams]
        self._finish(nodes[: self._beams][ends_in_time], totals[: self._beams][ends_in_time])
        self._live = _Frontier(node=nodes[~ends][: self._beams], score=totals[~ends][: self._beams])
        self._drop_hopeless()

    def _ranked_candidates(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Edges and totals of the best 2K continuations, best first; ties keep the better beam's first."""
        children = [self._scores[NodeId(node)] for node in self._live.node.tolist()]
        edges = np.concatenate([child.edges for child in children])
        totals = np.concatenate([total + child.scores for total, child in zip(self._live.score, children, strict=True)])
        best = np.argsort(-totals, kind="stable")[: 2 * self._beams]
        return edges[best], totals[best]

    def _finish(self, nodes: NDArray[np.int64], totals: NDArray[np.float64]) -> None:
        scores = totals / self._depth**self._length_penalty
        self._finished += [(score, NodeId(node)) for score, node in zip(scores.tolist(), nodes.tolist(), strict=True)]
        self._finished.sort(key=lambda finished: -finished[0])
        del self._finished[self._beams :]

    def _drop_hopeless(self) -> None:
        """End the search, or single beams, once K paths are finished and nothing can displace the worst of them."""
        if len(self._finished) < self._beams or not len(self._live.node):
            return
        worst = self._finished[-1][0]
        if self._length_penalty > 0:
            # Scores may rise with length: the reference looks at the best beam's score at its present length.
            hopeless = self._live.score[0] / self._depth**self._length_penalty <= worst
            keep = np.full(len(self._live.node), not hopeless)
        else:
            # Scores only fall, so a beam at or below the worst finished path can neither finish nor outrank one that
            # will. The reference carries such beams along; leaving them out changes no result and saves their tokens.
            keep = self._live.score > worst
        self._live = _Frontier(node=self._live.node[keep], score=self._live.score[keep])

    def _hypothesis(self, node: NodeId, score: float) -> Hypothesis:
        steps = []
        parent = ROOT
        for edge in self._trie.edges_to(node):
            scored = self._scores[parent]
            at = int(np.flatnonzero(scored.edges == edge)[0])
            steps.append(TokenStep(edge=edge, logprob=float(scored.logprobs[at]), score=float(scored.scores[at])))
            parent = NodeId(edge + 1)
        return Hypothesis(leaf=LeafIndex(int(self._trie.node_first[node])), score=score, steps=tuple(steps))
