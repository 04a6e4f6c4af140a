"""Trie-constrained beam search that asks the model about decisions, not about tokens.

The semantics are the reference's step-synchronous search (arXiv 2506.13229; transformers' ``generate`` with
``early_stopping=False``): at each step the best 2K continuations of all beams are ranked, a path that ends there
finishes only if it is among the first K, and the best K others go on. The search replays these steps on scores it
already holds, and calls the engine only when a step depends on a node without scores. Since an expansion takes the
forced tokens below a node along, calls fall from one a token to one a decision.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from igd_core.decoding.session import ChildScores
from igd_core.ids import ROOT, LeafIndex, NodeId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from igd_core.decoding.session import Session
    from igd_core.trie import TokenTrie


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStep:
    """One token of a hypothesis: edge, log-probability in nats (unweighted) and weighted score.

    The log-probability is None where the score did not need it, so that the model was not asked.
    """

    edge: int
    logprob: float | None
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

    def keep(self, chosen: NDArray[np.bool_]) -> _Frontier:
        """The chosen beams, in order."""
        return _Frontier(node=self.node[chosen], score=self.score[chosen])


class BeamSearch:
    """State of one search: its frontier, its finished paths, and every score the engine has returned."""

    def __init__(self, trie: TokenTrie, *, beams: int, length_penalty: float = 0.0, forced_weight: float = 1.0) -> None:
        """Start at the root.

        Args:
            trie: of the artefact version the session was opened with.
            beams: K, >= 1. When fewer than K leaves are admitted, all of them come back.
            length_penalty: 0 ranks by summed score (D3), 1 by its mean over tokens, EOS included (BIGRec).
            forced_weight: 0..1, what the log-probability of a token without siblings counts. 1 is the method; with 0 a
                title is scored by its decisions alone, and the model is not asked for what follows the last of them.
        """
        self._trie = trie
        self._beams = beams
        self._length_penalty = length_penalty
        self._forced_weight = forced_weight
        self._scores: dict[NodeId, ChildScores] = {}
        self._finished: list[tuple[float, NodeId]] = []
        self._live = _Frontier(node=np.array([ROOT]), score=np.zeros(1))
        self._depth = 0
        self._score_tails()

    async def run(self, session: Session) -> list[Hypothesis]:
        """Search to the end; hypotheses by falling score."""
        while len(self._live.node):
            needed = self._needed()
            if needed:
                self._learn(await session.expand(self._with_look_ahead(needed)))
            self._step()
        return [self._hypothesis(node, score) for score, node in self._finished]

    def _learn(self, scored: Mapping[NodeId, ChildScores]) -> None:
        """Take over what the session returned, with the weight of forced tokens."""
        for node, children in scored.items():
            if self._forced_weight != 1 and self._is_forced(node):
                self._scores[node] = replace(children, scores=children.logprobs * self._forced_weight)
            else:
                self._scores[node] = children

    def _score_tails(self) -> None:
        """Where forced tokens count nothing, and live beams have no others left: the scores to their ends."""
        if self._forced_weight != 0:
            return
        for start in self._live.node.tolist():
            node, tail = NodeId(start), []
            while self._is_forced(node) and node not in self._scores:
                tail.append(node)
                node = NodeId(int(self._trie.row_start[node]) + 1)
            if self._trie.is_leaf(node):
                for above in tail:
                    self._scores[above] = ChildScores(
                        edges=self._trie.row_start[above : above + 1].astype(np.int64),
                        logprobs=np.array([math.nan]),
                        scores=np.zeros(1),
                    )

    def _is_forced(self, node: NodeId) -> bool:
        """Whether the trie, whatever the filter, leaves one token below ``node``."""
        return len(self._trie.children(node)) == 1

    def _needed(self) -> list[NodeId]:
        """Nodes without scores that this step's outcome depends on.

        Scores only fall, so a beam ranked below K continuations that are known to go on can add nothing to this step.
        """
        known = np.array([node in self._scores for node in self._live.node.tolist()])
        if known.all():
            return []
        needed = ~known
        if known.any():
            nodes, totals = self._ranked_candidates(self._live.keep(known))
            going_on = totals[~self._ends(nodes)]
            if len(going_on) >= self._beams:
                needed &= self._live.score >= going_on[self._beams - 1]
        return [NodeId(node) for node in self._live.node[needed].tolist()]

    def _with_look_ahead(self, needed: list[NodeId]) -> list[NodeId]:
        """``needed``, and the nodes that other beams will need soon.

        Beams come to their decisions at different depths. Stepping on with unscored beams held where they are shows
        where the others will wait next, so that all these decisions share one round: on Video Games 7 rounds instead
        of 11, at 1 % more tokens.
        """
        ahead = copy.copy(self)
        ahead._finished = list(self._finished)
        while any(node in self._scores for node in ahead._live.node.tolist()):
            ahead._step(hold=True)
        wanted = dict.fromkeys(needed) | dict.fromkeys(NodeId(node) for node in ahead._live.node.tolist())
        return list(wanted)

    def _step(self, *, hold: bool = False) -> None:
        """Extend every live beam by one token; with ``hold``, beams without scores stay where they are."""
        nodes, totals = self._ranked_candidates(self._live, hold=hold)
        self._depth += 1
        ends = self._ends(nodes)
        ends_in_time = ends[: self._beams]
        self._finish(nodes[: self._beams][ends_in_time], totals[: self._beams][ends_in_time])
        self._live = _Frontier(node=nodes[~ends][: self._beams], score=totals[~ends][: self._beams])
        self._drop_hopeless()
        self._score_tails()

    def _ends(self, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self._trie.row_start[nodes] == self._trie.row_start[nodes + 1])

    def _ranked_candidates(
        self, live: _Frontier, *, hold: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Nodes and totals of the best 2K continuations, best first; ties keep the better beam's first."""
        nodes, totals = [], []
        for node, total in zip(live.node.tolist(), live.score.tolist(), strict=True):
            children = self._scores.get(NodeId(node))
            if children is not None:
                nodes.append(children.edges + 1)
                totals.append(total + children.scores)
            elif hold:
                nodes.append(np.array([node]))
                totals.append(np.array([total]))
        every_node, every_total = np.concatenate(nodes), np.concatenate(totals)
        best = np.argsort(-every_total, kind="stable")[: 2 * self._beams]
        return every_node[best], every_total[best]

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
        self._live = self._live.keep(keep)

    def _hypothesis(self, node: NodeId, score: float) -> Hypothesis:
        steps = []
        parent = ROOT
        for edge in self._trie.edges_to(node):
            scored = self._scores[parent]
            at = int(np.flatnonzero(scored.edges == edge)[0])
            logprob = float(scored.logprobs[at])
            steps.append(
                TokenStep(edge=edge, logprob=None if math.isnan(logprob) else logprob, score=float(scored.scores[at]))
            )
            parent = NodeId(edge + 1)
        return Hypothesis(leaf=LeafIndex(int(self._trie.node_first[node])), score=score, steps=tuple(steps))
