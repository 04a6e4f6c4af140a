"""Run many searches of one prompt on one session of the model.

The log-probabilities of a node's children depend on neither alpha, length penalty, beams nor filters. So the model is
asked for them once, unweighted and unpruned, and every search reads them through a view with its own weights and
filter. Log-probabilities over the children, at any temperature, follow from those over the vocabulary: they differ by a
constant. Searches run in lockstep: the model is called when all of them wait, with everything they wait for, so 20
settings take hardly more rounds than one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.catalogue.gain import decoding_weight
from igd_core.errors import InputError
from igd_core.ids import LeafIndex, NodeId
from igd_core.search.beam import BeamSearch, Hypothesis
from igd_core.search.normalisation import Normalisation
from igd_core.search.prior import NO_PRIOR, Mixing, PriorMixer
from igd_core.search.session import ChildScores, SessionStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.search.filters import LeafFilter
    from igd_core.search.prior import TriePrior
    from igd_core.search.session import Session

_PLAIN = Normalisation()


def widest_node(artifact: Artifact) -> int:
    """The most children of any node: with this `Scoring.keep`, a session returns all children."""
    return int(np.diff(artifact.trie.row_start).max())


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """The settings of one search.

    Attributes:
        alpha: strength of the rebalancing, 0..1.
        beams: width of the search.
        length_penalty: see `BeamSearch`.
        leaves: the leaves that the search may reach.
        forced_weight: see `BeamSearch`.
        scored: over what log-probabilities are normalised, and at which temperature.
        mixing: how much of ``prior`` goes in, and how.
        prior: what an item scorer makes of the history; None where ``mixing`` takes nothing of it.
    """

    alpha: float
    beams: int
    length_penalty: float
    leaves: LeafFilter
    forced_weight: float = 1.0
    scored: Normalisation = _PLAIN
    mixing: Mixing = NO_PRIOR
    prior: TriePrior | None = None


def shared_normalisation(plans: Sequence[SearchPlan]) -> Normalisation:
    """The normalisation to open a session with, so that all plans can read it.

    Raises:
        InputError: plans over the vocabulary at several temperatures, which no single session serves.
    """
    over_vocabulary = {plan.scored for plan in plans if plan.scored.normalise == "vocabulary"}
    if len(over_vocabulary) > 1:
        temperatures = ", ".join(f"{each:g}" for each in sorted(each.temperature for each in over_vocabulary))
        raise InputError(f"temperature: {temperatures}; one run scores over the vocabulary at one of them")
    return next(iter(over_vocabulary), plans[0].scored)


class SharedSession:
    """A session of the model that several searches read.

    Open the session with every leaf admitted, and with `Scoring.keep` at least `widest_node`.
    """

    def __init__(self, session: Session, artifact: Artifact, scored: Normalisation = _PLAIN) -> None:
        """``scored``: the session's normalisation, `shared_normalisation` of the plans to come."""
        self._session = session
        self.scored = scored
        self._artifact = artifact
        self._known: dict[NodeId, ChildScores] = {}
        self._weighted: dict[tuple[float, int, Normalisation], dict[NodeId, ChildScores]] = {}
        self._searching = 0
        self._wanted: dict[NodeId, None] = {}
        self._waiting: list[asyncio.Future[None]] = []

    async def search(self, plans: Sequence[SearchPlan]) -> list[list[Hypothesis]]:
        """Run all plans; each one's hypotheses, by falling score.

        Raises:
            EngineError: the model failed; all searches end with this error.
        """
        self._searching = len(plans)
        tasks = [asyncio.ensure_future(self._search(plan)) for plan in plans]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _search(self, plan: SearchPlan) -> list[Hypothesis]:
        search = BeamSearch(
            self._artifact.trie,
            beams=plan.beams,
            length_penalty=plan.length_penalty,
            forced_weight=plan.mixing.model_weight * plan.forced_weight,
            normalise=plan.scored.normalise,
        )
        hypotheses = await search.run(WeightedView(self, self._artifact, plan))
        self._searching -= 1
        await self._ask_once_all_wait()
        return hypotheses

    @property
    def stats(self) -> SessionStats:
        """Statistics of the model's session: what all searches cost together."""
        return self._session.stats

    def knows(self, node: NodeId) -> bool:
        """Whether a node's children have been scored."""
        return node in self._known

    def children(self, node: NodeId) -> ChildScores:
        """All children of a node, as the model's session returned them."""
        return self._known[node]

    def weighted(self, plan: SearchPlan, keep: int) -> dict[NodeId, ChildScores]:
        """Cache of nodes weighted without a filter; views with the same weights share it."""
        return self._weighted.setdefault((plan.alpha, keep, plan.scored), {})

    async def fetch(self, nodes: Sequence[NodeId]) -> None:
        """Wait until the children of ``nodes`` are known."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._wanted |= dict.fromkeys(nodes)
        await self._ask_once_all_wait()
        await turn

    async def _ask_once_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < self._searching:
            return
        waiting, self._waiting = self._waiting, []
        wanted, self._wanted = list(self._wanted), {}
        try:
            self._known |= await self._session.expand(wanted)
        except Exception as error:  # noqa: BLE001 - it belongs to every search that waits
            for turn in waiting:
                if not turn.done():
                    turn.set_exception(error)
            return
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)


class WeightedView:
    """The session of one search: reads the shared one, weighs with its alpha, and prunes with its filter."""

    def __init__(self, shared: SharedSession, artifact: Artifact, plan: SearchPlan) -> None:
        self._shared = shared
        self._trie = artifact.trie
        self._gain = artifact.gains.sibling_gain
        self._plan = plan
        self._keep = 2 * plan.beams
        self._mixer = None if plan.prior is None else PriorMixer(plan.prior, plan.mixing)
        # A mixer must have seen the nodes above, and another search has one of its own.
        self._plain = shared.weighted(plan, self._keep) if self._mixer is None else {}
        self._pruned = self._nodes_above_listed()
        self._own: dict[NodeId, ChildScores] = {}

    @property
    def stats(self) -> SessionStats:
        """Statistics of the shared session."""
        return self._shared.stats

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        """Score ``nodes``, and the forced chains below them as far as they are known."""
        missing = [node for node in nodes if not self._shared.knows(node)]
        if missing:
            await self._shared.fetch(missing)
        result: dict[NodeId, ChildScores] = {}
        for start in nodes:
            node = start
            while True:
                scored = result[node] = self._weigh(node)
                if len(scored.edges) != 1:
                    break
                node = NodeId(scored.edges[0] + 1)
                if not self._shared.knows(node):
                    break
        return result

    async def close(self) -> None:
        """Does nothing: whoever opened the shared session closes it."""

    def _nodes_above_listed(self) -> frozenset[int] | None:
        """Nodes above a barred leaf, whose children the filter may prune; None means any node."""
        leaves = self._plan.leaves
        if not leaves.barred:
            return None
        above = {0}
        for leaf in leaves.leaves.tolist():
            above.update(edge + 1 for edge in self._trie.edges_to(NodeId(int(self._trie.leaf_node[LeafIndex(leaf)]))))
        return frozenset(above)

    def _weigh(self, node: NodeId) -> ChildScores:
        pruned = (self._pruned is None or node in self._pruned) and not self._plan.leaves.admits_all
        done = self._own if pruned else self._plain
        scored = done.get(node)
        if scored is None:
            scored = done[node] = self._weigh_anew(node, self._shared.children(node), pruned=pruned)
        return scored

    def _weigh_anew(self, node: NodeId, children: ChildScores, *, pruned: bool) -> ChildScores:
        edges = np.array(children.edges, dtype=np.int64)
        logprobs = self._normalised(np.array(children.logprobs, dtype=np.float64))
        is_forced = len(edges) == 1
        if pruned:
            admitted = self._plan.leaves.open_nodes(self._trie, edges + 1)
            edges, logprobs = edges[admitted], logprobs[admitted]
        if is_forced:  # its gain is 0, so alpha changes nothing, and its share of the prior is 1
            forced_scores = self._plan.mixing.model_weight * logprobs
            return ChildScores(edges=edges.tolist(), logprobs=logprobs.tolist(), scores=forced_scores.tolist())
        scores = logprobs * decoding_weight(self._gain[edges].astype(np.float64), self._plan.alpha)
        if self._mixer is not None:
            scores = self._mixer.mixed(node, edges, scores)
        best = np.lexsort((edges, -scores))[: self._keep]
        return ChildScores(edges=edges[best].tolist(), logprobs=logprobs[best].tolist(), scores=scores[best].tolist())

    def _normalised(self, logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log-probabilities of all children of a node, normalised as the plan asks."""
        wanted, given = self._plan.scored, self._shared.scored
        if wanted == given:
            return logprobs
        values = logprobs * (given.temperature / wanted.temperature)
        values = values - values.max()
        return np.asarray(values - np.log(np.exp(values).sum()))
