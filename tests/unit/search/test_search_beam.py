from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PathsAndPrior, catalogues, item_lists

from igd_core.bench.reference import build_dict_trie, shares, weights_at
from igd_core.catalogue.trie import TokenTrie
from igd_core.engines.fake import FakeEngine, FakeSession
from igd_core.ids import ROOT, NodeId
from igd_core.search.beam import BeamSearch, Hypothesis, _Beam
from igd_core.search.filters import ItemFilter
from igd_core.search.normalisation import NORMALISATIONS
from igd_core.search.session import ChildScores, Scoring, SessionStats

if TYPE_CHECKING:
    from oracles import Path

    from igd_core.artifact import Artifact
    from igd_core.search.normalisation import Normalise

BEAMS = st.integers(1, 8)
ALPHAS = st.sampled_from([0.0, 0.2, 0.7])
LENGTH_PENALTIES = st.sampled_from([0.0, 0.5, 1.0])
FORCED_WEIGHTS = st.sampled_from([1.0, 0.5, 0.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A catalogue, a filter that leaves something, and how to search."""

    catalogue: PathsAndPrior
    allowed: list[int] | None
    barred: list[int]
    beams: int
    alpha: float
    length_penalty: float
    prompt: tuple[int, ...]
    forced_weight: float = 1.0
    normalise: Normalise = "vocabulary"

    @property
    def admitted(self) -> set[Path]:
        return {
            self.catalogue.paths[item]
            for item in oracles.admitted_items(len(self.catalogue.paths), self.allowed, self.barred)
        }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    catalogue = draw(catalogues())
    allowed, barred = draw(
        item_lists(len(catalogue.paths)).filter(
            lambda lists: bool(oracles.admitted_items(len(catalogue.paths), *lists))
        )
    )
    return Case(
        catalogue=catalogue,
        allowed=allowed,
        barred=barred,
        beams=draw(BEAMS),
        alpha=draw(ALPHAS),
        length_penalty=draw(LENGTH_PENALTIES),
        prompt=(draw(st.integers(0, 1 << 30)),),
        forced_weight=draw(FORCED_WEIGHTS),
        normalise=draw(st.sampled_from(NORMALISATIONS)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search found and cost, and the session's own log-probabilities for the oracle."""

    artifact: Artifact
    session: FakeSession
    hypotheses: list[Hypothesis]
    stats: SessionStats

    def ranked(self) -> list[tuple[float, Path]]:
        trie = self.artifact.trie
        return [(found.score, tuple(trie.path(found.leaf))) for found in self.hypotheses]


def search(case: Case, beams: int | None = None) -> Outcome:
    beams = beams or case.beams
    artifact = case.catalogue.artifact()
    leaves = ItemFilter.of(allowed=case.allowed, barred=case.barred).leaves(artifact.trie, artifact.leaf_of_item)

    async def run() -> Outcome:
        engine = FakeEngine()
        await engine.load(artifact)
        scoring = Scoring(alpha=case.alpha, keep=2 * beams, leaves=leaves, normalise=case.normalise)
        session = await engine.open(artifact.version, case.prompt, scoring)
        beam_search = BeamSearch(
            artifact.trie,
            beams=beams,
            length_penalty=case.length_penalty,
            forced_weight=case.forced_weight,
            normalise=case.normalise,
        )
        hypotheses = await beam_search.run(session)
        return Outcome(artifact=artifact, session=session, hypotheses=hypotheses, stats=session.stats)

    return asyncio.run(run())


class Witness:
    """Weighted log-probabilities of admitted tokens: the fake model's, weighed by the dict trie."""

    def __init__(self, case: Case, outcome: Outcome) -> None:
        self._root = build_dict_trie(case.catalogue.paths, case.catalogue.prior)
        self._alpha = case.alpha
        self._forced_weight = case.forced_weight
        self._over_children = case.normalise == "children"
        self._outcome = outcome
        self._admitted = {path[:length] for path in case.admitted for length in range(len(path) + 1)}

    def scores_after(self, prefix: Path) -> dict[int, float]:
        witness, node = self._root, ROOT
        for token in prefix:
            child = self._outcome.artifact.trie.child(node, token)
            assert child is not None
            witness, node = witness.children[token], child
        if not witness.children:
            return {}
        weights = weights_at(witness, self._alpha, self._forced_weight)
        logprobs = dict(zip(sorted(witness.children), self._outcome.session.logprobs(node).tolist(), strict=True))
        if self._over_children:
            logprobs = shares(logprobs, 1.0)
        return {
            token: value * weights[token] for token, value in logprobs.items() if (*prefix, token) in self._admitted
        }


def assert_same_ranking(found: list[tuple[float, Path]], expected: list[tuple[float, Path]]) -> None:
    assert [path for _, path in found] == [path for _, path in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5, abs=1e-5)


@given(case=cases())
def test_the_search_equals_the_reference_search_step_by_step(case: Case) -> None:
    outcome = search(case)
    expected = oracles.beam_search(Witness(case, outcome).scores_after, case.beams, case.length_penalty)
    assert_same_ranking(outcome.ranked(), expected)


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0])
@given(seed=st.integers(0, 1 << 32), beams=st.integers(2, 10))
@settings(max_examples=15)
def test_the_search_equals_the_reference_search_where_beams_decide_at_many_depths(
    length_penalty: float, seed: int, beams: int
) -> None:
    """Long paths of few tokens: beams come to their decisions in different rounds, and displace each other."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, size=200)
    paths = [(*rng.choice(3, p=[0.7, 0.2, 0.1], size=length).tolist(), 9) for length in lengths]
    case = Case(
        catalogue=PathsAndPrior(paths=paths, counts=rng.integers(0, 50, size=200).tolist()),
        allowed=None,
        barred=rng.integers(0, 200, size=30).tolist(),
        beams=beams,
        alpha=0.3,
        length_penalty=length_penalty,
        prompt=(seed,),
    )
    outcome = search(case)
    expected = oracles.beam_search(Witness(case, outcome).scores_after, beams, length_penalty)
    assert_same_ranking(outcome.ranked(), expected)


@given(case=cases())
def test_with_beams_for_every_leaf_the_ranking_is_the_exhaustive_one(case: Case) -> None:
    outcome = search(case, beams=len(case.admitted))
    scored, witness = [], Witness(case, outcome)
    for path in case.admitted:
        steps = [witness.scores_after(path[:at])[token] for at, token in enumerate(path)]
        scored.append((sum(steps) / len(path) ** case.length_penalty, path))
    assert_same_ranking(outcome.ranked(), sorted(scored, reverse=True))


@given(case=cases())
def test_k_admitted_paths_come_back_whenever_k_exist(case: Case) -> None:
    ranked = search(case).ranked()
    assert len(ranked) == min(case.beams, len(case.admitted))
    assert {path for _, path in ranked} <= case.admitted
    assert len({path for _, path in ranked}) == len(ranked)


@given(case=cases())
def test_a_single_beam_asks_once_per_decision_on_its_path_and_once_for_the_prompt(case: Case) -> None:
    outcome = search(case, beams=1)
    ((_, path),) = outcome.ranked()
    decisions = sum(len(oracles.next_tokens(case.admitted, path[:at])) > 1 for at in range(len(path)))
    assert outcome.stats.rounds <= decisions + 1


@given(case=cases())
def test_rounds_never_exceed_the_depths_at_which_decisions_fall(case: Case) -> None:
    """Beams decide at different depths, and each such depth costs at most one round."""
    outcome = search(case)
    depths = {
        at
        for path in case.admitted
        for at in range(len(path))
        if len(oracles.next_tokens(case.admitted, path[:at])) > 1
    }
    assert outcome.stats.rounds <= len(depths) + 1


@given(case=cases())
def test_with_beams_for_every_leaf_rounds_never_exceed_the_decisions_on_one_path(case: Case) -> None:
    outcome = search(case, beams=len(case.admitted))
    decisions = [
        sum(len(oracles.next_tokens(case.admitted, path[:at])) > 1 for at in range(len(path))) for path in case.admitted
    ]
    assert outcome.stats.rounds <= max(decisions) + 1


@given(case=cases())
def test_steps_explain_the_score_of_their_path(case: Case) -> None:
    outcome = search(case)
    trie, gains = outcome.artifact.trie, outcome.artifact.gains
    for found in outcome.hypotheses:
        path = trie.path(found.leaf)
        assert [int(trie.edge_token[step.edge]) for step in found.steps] == path
        total = sum(step.score for step in found.steps)
        assert found.score == pytest.approx(total / len(path) ** case.length_penalty)
        for at, step in enumerate(found.steps):
            if step.logprob is None:
                assert (case.forced_weight, case.normalise) == (0, "vocabulary")
                assert all(len(trie.children(node)) == 1 for node in nodes_from(trie, found, at)), "in a tail alone"
            forced = len(trie.children(parent_of(trie, step.edge))) == 1
            weight = case.forced_weight if forced else 1.0 - case.alpha * float(gains.sibling_gain[step.edge])
            assert step.score == pytest.approx(0 if step.logprob is None else step.logprob * weight)
            if forced and case.normalise == "children":
                assert step.logprob == 0


def parent_of(trie: TokenTrie, edge: int) -> NodeId:
    return NodeId(int(trie.parents(np.array([edge + 1]))[0]))


def nodes_from(trie: TokenTrie, found: Hypothesis, at: int) -> list[NodeId]:
    """The nodes at which the tokens from the one numbered ``at`` on were chosen."""
    return [parent_of(trie, step.edge) for step in found.steps[at:]]


def test_beams_that_decide_at_alternating_depths_share_their_rounds() -> None:
    """Three decisions a path, at depths 1, 3, 5 below one first token and at 2, 4, 6 below the other."""
    choices = list(itertools.product((1, 2), repeat=3))
    odd = [(1, a, 5, b, 5, c, 5, 0) for a, b, c in choices]
    even = [(2, 5, a, 5, b, 5, c, 0) for a, b, c in choices]
    catalogue = PathsAndPrior(paths=[*odd, *even], counts=[1] * 16)
    case = Case(catalogue=catalogue, allowed=None, barred=[], beams=16, alpha=0.0, length_penalty=0.0, prompt=(1,))
    outcome = search(case)
    assert len(outcome.hypotheses) == 16
    assert outcome.stats.rounds == 5, "the prompt's, then one a decision: the first token and three more"


def test_a_hundred_tokens_without_a_choice_take_one_round() -> None:
    catalogue = PathsAndPrior(paths=[(*([1] * 100), 0)], counts=[1])
    outcome = search(
        Case(catalogue=catalogue, allowed=None, barred=[], beams=3, alpha=0.2, length_penalty=0.0, prompt=(1,))
    )
    assert outcome.stats.rounds == 1
    assert len(outcome.hypotheses[0].steps) == 101


def test_the_frontier_is_asked_for_each_node_once() -> None:
    """A node that two rounds could ask for would be computed twice."""
    rng = np.random.default_rng(3)
    paths = [(*rng.integers(1, 4, size=int(rng.integers(1, 6))).tolist(), 0) for _ in range(60)]
    artifact = PathsAndPrior(paths=paths, counts=[1] * 60).artifact()

    async def run() -> list[NodeId]:
        engine = FakeEngine()
        await engine.load(artifact)
        session = await engine.open(artifact.version, [1], Scoring())
        asked: list[NodeId] = []
        scored: list[NodeId] = []

        class Watched:
            stats = session.stats

            async def expand(self, nodes: list[NodeId]) -> object:
                asked.extend(nodes)
                result = await session.expand(nodes)
                scored.extend(result)
                return result

            async def close(self) -> None:
                await session.close()

        await BeamSearch(artifact.trie, beams=5).run(Watched())  # type: ignore[arg-type]
        assert len(scored) == len(set(scored))
        return asked

    asked = asyncio.run(run())
    assert len(asked) == len(set(asked))


def test_decisions_alone_take_no_round_for_what_follows_the_last_decision() -> None:
    paths = [(first, *range(10, 40), second, *range(50, 90), 0) for first in (1, 2) for second in (3, 4)]
    catalogue = PathsAndPrior(paths=paths, counts=[1] * 4)
    case = Case(catalogue=catalogue, allowed=None, barred=[], beams=4, alpha=0.2, length_penalty=0.0, prompt=(1,))
    whole, decisions = search(case), search(replace(case, forced_weight=0.0))
    assert (whole.stats.rounds, decisions.stats.rounds) == (3, 2)
    alone = search(replace(case, catalogue=PathsAndPrior(paths=paths[:1], counts=[1]), forced_weight=0.0))
    assert alone.stats.rounds == 0, "nothing to decide: the model is not asked"
    assert [found.score for found in alone.hypotheses] == [0.0]
    over_children = search(replace(case, normalise="children"))
    assert over_children.stats.rounds == 2
    assert all(step.logprob is not None for found in over_children.hypotheses for step in found.steps)


@given(case=cases())
def test_over_children_the_probabilities_of_all_paths_sum_to_one_whatever_alpha(case: Case) -> None:
    everything = replace(case, normalise="children", allowed=None, barred=[])
    found = search(everything, beams=len(everything.admitted)).hypotheses
    assert sum(each.probability for each in found) == pytest.approx(1.0, abs=1e-9)
    if len(everything.admitted) == 1:
        assert [each.score for each in found] == [0.0]


ROWS = st.none() | st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0]), max_size=3).map(lambda row: sorted(row)[::-1])


@given(
    live=st.lists(st.tuples(st.sampled_from([-3.0, -2.5, -1.0]), ROWS), max_size=8),
    beams=st.integers(1, 4),
    forced=st.booleans(),
)
def test_continuations_are_ranked_as_by_sorting_all_of_them(
    live: list[tuple[float, list[float] | None]], beams: int, forced: bool
) -> None:
    """With ``forced``, each beam that has been scored has a single child. Children have the numbers 1000 and on."""
    search = BeamSearch(TokenTrie.build(np.array([0, 1]), np.array([1], dtype=np.int32)), beams=beams)
    placed = [(score, row[:1] or [0.0] if forced and row is not None else row) for score, row in live]
    expected: list[tuple[float, int]] = []
    for place, (score, row) in enumerate(placed):
        if row is None:
            expected.append((score, place))
            continue
        edges = [1000 * (place + 1) + child - 1 for child in range(len(row))]
        search._known[place] = ChildScores(edges, row, row)
        expected += [(score + of_child, edge + 1) for of_child, edge in zip(row, edges, strict=True)]
    expected.sort(key=lambda each: -each[0])
    ranked = search._ranked([_Beam(place, score) for place, (score, _) in enumerate(placed)])
    assert [(beam.score, beam.node) for beam in ranked] == expected[: 2 * beams]
