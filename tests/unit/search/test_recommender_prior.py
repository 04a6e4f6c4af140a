"""Recommendations with an item scorer in the search, against scoring every item in full in plain Python."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from subjects import paths_of

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.engines.fake import FakeEngine, FakeSession
from igd_core.errors import ModelFault
from igd_core.ids import ROOT, ItemIndex, NodeId
from igd_core.scorers.mass import ItemMass
from igd_core.scorers.network import NetworkPart, NetworkRecord
from igd_core.scorers.options import ScorerOptions
from igd_core.search.query import Query
from igd_core.search.recommender import Recommendation, Recommender
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from oracles import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.scorers.mass import ItemScorer
    from igd_core.scorers.options import Mixture

ALL = 150
HISTORY = [ItemIndex(3), ItemIndex(8), ItemIndex(21)]
SEQUENCES = [np.arange(start, ALL, step, dtype=np.int32) for start, step in ((0, 1), (1, 5), (0, 7), (3, 5))]


def random_network(catalogue: Catalogue, _sequences: Sequence[NDArray[np.int32]]) -> NetworkPart:
    rng = np.random.default_rng(3)
    network = NetworkRecord(width=8, layers=1, heads=2, length=2, temperature=0.7, background=0.05)
    shapes = network.shapes(len(catalogue))
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return NetworkPart(network=network, tensors=tensors)


@pytest.fixture(scope="module")
def scored(artifact: Artifact, tokenizer: TitleTokenizer) -> Artifact:
    """The 150 films, with a scorer counted from sequences that go by steps of 1, 5 and 7."""
    options = BuildOptions(
        name="films", instruction="Films, in order:\n", scorer=ScorerOptions(kind="transitions", gamma=0.0)
    )
    return build_artifact(artifact.catalogue, tokenizer, options, sequences=SEQUENCES)


@pytest.fixture(scope="module")
def dense(artifact: Artifact, tokenizer: TitleTokenizer) -> Artifact:
    """The same films, with a network of random weights, which gives every item a share."""

    options = ScorerOptions(kind="sasrec", makers={"sasrec": random_network})
    return build_artifact(artifact.catalogue, tokenizer, BuildOptions(name="films", scorer=options))


@pytest.fixture(scope="module")
def mean(artifact: Artifact, tokenizer: TitleTokenizer) -> Artifact:
    """The same films, with the mean of transitions, EASE and that network."""
    makers = {"sasrec": random_network}
    options = ScorerOptions(kind="transitions", also=("ease", "sasrec"), share=0.4, makers=makers)
    built = BuildOptions(name="films", scorer=options)
    return build_artifact(artifact.catalogue, tokenizer, built, sequences=SEQUENCES)


def ask(artifact: Artifact, query: Query, scorer: ItemScorer | None = None) -> Recommendation:
    async def run() -> Recommendation:
        engine = FakeEngine()
        await engine.load(artifact)
        return await Recommender(artifact, engine, scorer=scorer).recommend(query)

    return asyncio.run(run())


def model_logprobs(artifact: Artifact, *, over_children: bool) -> dict[Path, list[float]]:
    """What the model gives each token of every path, by the tree that the paths make."""

    async def session() -> FakeSession:
        engine = FakeEngine()
        await engine.load(artifact)
        return await engine.open(artifact.version, artifact.prompt(HISTORY), Scoring())

    asked, trie = asyncio.run(session()), artifact.trie
    found: dict[Path, list[float]] = {}
    for path in set(paths_of(artifact)):
        node, found[path] = ROOT, []
        for token in path:
            logprobs = asked.logprobs(node)
            tokens = trie.edge_token[trie.row_start[node] : trie.row_start[node + 1]].tolist()
            rest = math.log(sum(math.exp(each) for each in logprobs)) if over_children else 0.0
            found[path].append(float(logprobs[tokens.index(token)]) - rest)
            node = NodeId(int(trie.row_start[node]) + tokens.index(token) + 1)
    return found


def scorer_probabilities(artifact: Artifact) -> dict[Path, float]:
    assert artifact.scorer is not None
    mass, counted = artifact.scorer.mass(HISTORY), artifact.catalogue.frequency + 1
    of_item = mass.background * counted / counted.sum()
    np.add.at(of_item, np.arange(len(of_item)) if mass.items is None else mass.items, mass.mass)
    found: dict[Path, float] = {}
    for path, share in zip(paths_of(artifact), of_item.tolist(), strict=True):
        found[path] = found.get(path, 0.0) + share
    return found


def scores_by_path(artifact: Artifact, answer: Recommendation) -> dict[Path, float]:
    paths = paths_of(artifact)
    return {paths[found.item]: found.score for found in answer.items}


def everything(**more: Any) -> Query:
    return Query(history=HISTORY, k=100, beams=ALL, alpha=0.0, exclude_seen=False, **more)


@pytest.mark.parametrize("gamma", [0.25, 0.9, 1.0])
@pytest.mark.parametrize("mixture", ["log-linear", "linear"])
@pytest.mark.parametrize("kind", ["scored", "dense", "mean"])
def test_over_children_scores_are_the_mixture_of_two_distributions_over_items(
    kind: str, gamma: float, mixture: Mixture, request: pytest.FixtureRequest
) -> None:
    scored: Artifact = request.getfixturevalue(kind)
    answer = ask(scored, everything(gamma=gamma, mixture=mixture, normalise="children"))
    model, prior = model_logprobs(scored, over_children=True), scorer_probabilities(scored)
    expected = {
        path: math.log((1 - gamma) * math.exp(sum(model[path])) + gamma * prior[path])
        if mixture == "linear"
        else (1 - gamma) * sum(model[path]) + gamma * math.log(prior[path])
        for path in model
    }
    found = scores_by_path(scored, answer)
    assert found == pytest.approx({path: expected[path] for path in found}, abs=1e-6)
    assert list(found.values()) == pytest.approx(sorted(expected.values(), reverse=True)[:100], abs=1e-6)
    if mixture == "linear":
        assert sum(map(math.exp, expected.values())) == pytest.approx(1.0, abs=1e-6)
    assert all(math.isfinite(score) for score in found.values()), "cold items too"


@pytest.mark.parametrize(
    ("asked", "over"),
    [
        ({}, "vocabulary"),
        ({"gamma": 0.0}, "vocabulary"),
        ({"gamma": 0.4}, "children"),
        ({"gamma": 1.0}, "children"),
        ({"gamma": 0.4, "normalise": "vocabulary"}, "vocabulary"),
        ({"gamma": 0.4, "forced_weight": 0.5}, "vocabulary"),
        ({"gamma": 0.4, "forced_weight": 0.5, "mixture": "linear"}, "children"),
        ({"gamma": 0.0, "normalise": "children"}, "children"),
    ],
)
def test_a_mixture_is_over_children_unless_somebody_says_otherwise(
    scored: Artifact, asked: dict[str, Any], over: str
) -> None:
    answer = ask(scored, everything(**asked))
    assert answer.query.normalise == over, "the model was tuned over the vocabulary"
    assert (answer.items[0].probability is not None) == (over == "children")


@pytest.mark.parametrize("forced_weight", [1.0, 0.5, 0.0])
def test_over_the_vocabulary_forced_tokens_have_the_models_share_of_their_weight(
    scored: Artifact, forced_weight: float
) -> None:
    answer = ask(scored, everything(gamma=0.4, forced_weight=forced_weight, normalise="vocabulary"))
    model, prior = model_logprobs(scored, over_children=False), scorer_probabilities(scored)
    expected = {}
    for path, logprobs in model.items():
        decides = [len({each[: at + 1] for each in model if each[:at] == path[:at]}) > 1 for at in range(len(path))]
        weighted = [each * (1.0 if own else forced_weight) for each, own in zip(logprobs, decides, strict=True)]
        expected[path] = 0.6 * sum(weighted) + 0.4 * math.log(prior[path])
    found = scores_by_path(scored, answer)
    assert found == pytest.approx({path: expected[path] for path in found}, abs=1e-6)
    assert min(found.values()) >= max(score for path, score in expected.items() if path not in found) - 1e-6


@pytest.mark.parametrize("query", [{}, {"gamma": 0.0}, {"gamma": 0.0, "mixture": "linear"}])
def test_without_gamma_a_scorer_changes_not_one_bit(
    scored: Artifact, artifact: Artifact, query: dict[str, Any]
) -> None:
    for more in ({}, {"normalise": "children"}, {"forced_weight": 0.0}):
        plain = ask(artifact, Query(history=HISTORY, **more))
        beside = ask(scored, Query(history=HISTORY, **more, **query))
        assert [each.score for each in beside.items] == [each.score for each in plain.items]
        assert beside.items == plain.items


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize(
    "asked",
    [
        {"gamma": 0.4},
        {"gamma": 0.4, "normalise": "children"},
        {"gamma": 0.4, "mixture": "linear"},
        {"gamma": 1.0},
        {"gamma": 0.0},
        {"gamma": 0.4, "forced_weight": 0.0},
    ],
)
def test_an_explanation_adds_up_to_the_score(scored: Artifact, asked: dict[str, Any], alpha: float) -> None:
    answer = ask(scored, Query(history=HISTORY, alpha=alpha, **asked))
    prior, paths = scorer_probabilities(scored), paths_of(scored)
    for found in answer.items:
        assert sum(token.score for token in found.tokens) == pytest.approx(found.score)
        if not asked["gamma"]:
            assert {token.prior_logprob for token in found.tokens} == {None}
            continue
        shares = [token.prior_logprob for token in found.tokens if token.prior_logprob is not None]
        assert len(shares) == len(found.tokens)
        assert sum(shares) == pytest.approx(math.log(prior[paths[found.item]]))
        if asked.get("mixture") != "linear":
            for token, share in zip(found.tokens, shares, strict=True):
                parts = token.weight * (token.logprob or 0.0) + asked["gamma"] * share
                assert token.score == pytest.approx(parts)


def test_a_filter_changes_no_score(scored: Artifact) -> None:
    """Neither the model's probabilities nor the scorer's are handed on to what is left."""
    for mixture in ("log-linear", "linear"):
        asked = everything(gamma=0.5, mixture=mixture, normalise="children")
        whole = scores_by_path(scored, ask(scored, asked))
        some = [ItemIndex(row) for row in range(0, ALL, 3)]
        left = scores_by_path(
            scored, ask(scored, Query(**{name: getattr(asked, name) for name in asked.__slots__} | {"exclude": some}))
        )
        shared = left.keys() & whole.keys()
        assert len(shared) > 50
        assert {path: left[path] for path in shared} == pytest.approx({path: whole[path] for path in shared})


class Favourite:
    """A scorer of one's own."""

    fingerprint = "favourite"

    def __init__(self, item: int, mass: float = 0.9) -> None:
        self._item, self._mass = item, mass

    def mass(self, history: Sequence[ItemIndex]) -> ItemMass:
        assert list(history) == HISTORY
        return ItemMass(background=0.1, items=np.array([self._item]), mass=np.array([self._mass]))


def test_what_the_scorer_favours_is_not_lost_though_the_model_ranks_its_first_token_last(artifact: Artifact) -> None:
    """The prior goes in before children are left out: a search of one beam looks at two of many first tokens."""
    model, paths = model_logprobs(artifact, over_children=True), paths_of(artifact)
    item = min(range(ALL), key=lambda row: model[paths[row]][0])
    assert len({path[0] for path in paths}) > 4
    for mixture in ("log-linear", "linear"):
        asked = Query(history=HISTORY, k=1, beams=1, gamma=0.9, mixture=mixture, exclude_seen=False)
        (found,) = ask(artifact, asked, Favourite(item)).items
        assert paths[found.item] == paths[item]


def test_a_scorer_of_ones_own_takes_the_place_of_the_artifacts(scored: Artifact, artifact: Artifact) -> None:
    for catalogue, item in itertools.product((scored, artifact), (40, 77)):
        answer = ask(catalogue, Query(history=HISTORY, gamma=1.0), Favourite(item))
        first = answer.items[0]
        assert item in (first.item, *first.duplicates)
        assert answer.query.scorer == "favourite"


def test_a_scorer_that_says_what_is_no_distribution_is_a_fault_of_the_model(artifact: Artifact) -> None:
    with pytest.raises(ModelFault, match=r"item scorer: its shares sum to 0\.3"):
        ask(artifact, Query(history=HISTORY, gamma=0.5), Favourite(4, mass=0.2))


def test_without_a_history_popularity_answers_whatever_gamma(scored: Artifact) -> None:
    answer = ask(scored, Query(history=[], gamma=0.5))
    assert answer.source == "popularity"
    assert answer.items == ask(scored, Query(history=[])).items
