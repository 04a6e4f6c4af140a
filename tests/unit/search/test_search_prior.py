"""The collaborative prior against sums over all items, one by one."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import artifact_of_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PathsAndPrior, catalogues

from igd_core.errors import ModelFault
from igd_core.ids import ROOT, LeafIndex, NodeId
from igd_core.scorers.mass import BACKGROUND_ALONE, ItemMass
from igd_core.search.filters import LeafFilter
from igd_core.search.prior import LeafCounts, Mixing, PriorMixer, TriePrior

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from oracles import Path

    from igd_core.artifact import Artifact
    from igd_core.scorers.options import Mixture


ROUNDING = 1e-15
"""Of masses beside others that sum to 1: a share of 1e-12 is known to a thousandth."""


@st.composite
def masses(draw: st.DrawFn, num_items: int) -> ItemMass:
    """A background and shares of some items, some of them twice, or of all; from even ones to next to nothing."""
    background = draw(st.sampled_from([1e-6, 0.2, 3.0]))
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        of_all = rng.choice([0.0, 1e-9, 0.1, 1.0, 50.0], num_items)
        total = float(of_all.sum()) + background
        return ItemMass(background=background / total, items=None, mass=of_all / total)
    items = draw(st.lists(st.integers(0, num_items - 1), max_size=8))
    weights = [draw(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 50.0])) for _ in items]
    total = sum(weights) + background
    return ItemMass(
        background=background / total, items=np.array(items, np.int64), mass=np.array(weights, np.float64) / total
    )


@st.composite
def catalogues_with_mass(draw: st.DrawFn) -> tuple[PathsAndPrior, ItemMass]:
    catalogue = draw(catalogues())
    return catalogue, draw(masses(len(catalogue.paths)))


def item_probabilities(catalogue: PathsAndPrior, mass: ItemMass) -> list[float]:
    counted = [count + 1 for count in catalogue.counts]
    shares = [mass.background * count / sum(counted) for count in counted]
    items = range(len(shares)) if mass.items is None else mass.items.tolist()
    for item, share in zip(items, mass.mass.tolist(), strict=True):
        shares[item] += share
    return shares


def path_probabilities(catalogue: PathsAndPrior, mass: ItemMass) -> dict[Path, float]:
    found: dict[Path, list[float]] = {}
    for path, share in zip(catalogue.paths, item_probabilities(catalogue, mass), strict=True):
        found.setdefault(path, []).append(share)
    return {path: math.fsum(shares) for path, shares in found.items()}


def prior_of(artifact: Artifact, mass: ItemMass) -> TriePrior:
    return TriePrior(LeafCounts.of(artifact), mass)


def nodes_to(artifact: Artifact, leaf: int) -> list[NodeId]:
    """The root, and the nodes down to a leaf."""
    end = NodeId(int(artifact.trie.leaf_node[leaf]))
    return [ROOT, *(NodeId(edge + 1) for edge in artifact.trie.edges_to(end))]


def edges_of(artifact: Artifact, node: NodeId) -> NDArray[np.int64]:
    return np.array(artifact.trie.children(node), np.int64)


@settings(max_examples=40)
@given(drawn=catalogues_with_mass())
def test_shares_along_a_path_multiply_to_the_mass_of_its_items(drawn: tuple[PathsAndPrior, ItemMass]) -> None:
    catalogue, mass = drawn
    artifact = catalogue.artifact()
    prior, expected, total = prior_of(artifact, mass), path_probabilities(catalogue, mass), 0.0
    for leaf in range(artifact.trie.num_leaves):
        nodes = nodes_to(artifact, leaf)
        log_share = sum(
            float(prior.log_shares(parent)[child - 1 - int(artifact.trie.row_start[parent])])
            for parent, child in pairwise(nodes)
        )
        path = tuple(artifact.trie.path(LeafIndex(leaf)))
        assert math.exp(log_share) == pytest.approx(expected[path], rel=1e-6, abs=ROUNDING)
        assert math.exp(prior.log_mass(nodes[-1])) == pytest.approx(expected[path], rel=1e-6, abs=ROUNDING)
        total += math.exp(log_share)
    assert total == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=40)
@given(drawn=catalogues_with_mass(), barred=st.booleans(), seed=st.integers(0, 9))
def test_a_filter_changes_no_items_mass_and_counts_nothing_else_on_the_way(
    drawn: tuple[PathsAndPrior, ItemMass], barred: bool, seed: int
) -> None:
    catalogue, mass = drawn
    artifact = catalogue.artifact()
    trie, expected = artifact.trie, path_probabilities(catalogue, mass)
    listed = np.flatnonzero(np.random.default_rng(seed).random(trie.num_leaves) < 0.5)
    leaves = LeafFilter(leaves=listed, barred=barred)
    prior = TriePrior(LeafCounts.of(artifact), mass, leaves)
    admitted = [leaf for leaf in range(trie.num_leaves) if (leaf in listed) != barred]
    for leaf in admitted:
        nodes, log_share = nodes_to(artifact, leaf), 0.0
        for parent, child in pairwise(nodes):
            log_share += float(prior.log_shares(parent)[child - 1 - int(trie.row_start[parent])])
            below = [other for other in admitted if trie.node_first[child] <= other < trie.node_end[child]]
            mass_below = sum(expected[tuple(trie.path(LeafIndex(other)))] for other in below)
            if trie.node_end[child] - trie.node_first[child] < trie.num_leaves:
                assert math.exp(log_share) == pytest.approx(mass_below, rel=1e-6, abs=ROUNDING)
        if trie.num_leaves > 1:
            assert math.exp(log_share) == pytest.approx(
                expected[tuple(trie.path(LeafIndex(leaf)))], rel=1e-6, abs=ROUNDING
            )
    for edge in trie.children(ROOT) if trie.num_leaves > 1 and len(trie.children(ROOT)) > 1 else ():
        is_open = any(trie.node_first[edge + 1] <= leaf < trie.node_end[edge + 1] for leaf in admitted)
        assert np.isfinite(prior.log_shares(ROOT)[edge]) == is_open


@settings(max_examples=40)
@given(drawn=catalogues_with_mass())
def test_the_shares_of_siblings_sum_to_1_and_none_is_nothing(drawn: tuple[PathsAndPrior, ItemMass]) -> None:
    catalogue, mass = drawn
    artifact = catalogue.artifact()
    prior = prior_of(artifact, mass)
    for node in map(NodeId, range(artifact.trie.num_nodes)):
        if artifact.trie.is_leaf(node):
            continue
        shares = prior.log_shares(node)
        assert np.isfinite(shares).all()
        assert (shares <= 0).all()
        assert np.exp(shares).sum() == pytest.approx(1.0)


def model_scores(artifact: Artifact, seed: int) -> dict[int, NDArray[np.float64]]:
    """Of each node with children: log-probabilities over them, as a session normalised over children gives them."""
    rng = np.random.default_rng(seed)
    scores = {}
    for node in map(NodeId, range(artifact.trie.num_nodes)):
        if artifact.trie.is_leaf(node):
            continue
        logits = rng.normal(size=len(artifact.trie.children(node)), scale=3.0)
        scores[int(node)] = logits - np.log(np.exp(logits).sum())
    return scores


@settings(max_examples=60)
@given(
    drawn=catalogues_with_mass(),
    gamma=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
    mixture=st.sampled_from(["log-linear", "linear"]),
    seed=st.integers(0, 3),
)
def test_a_paths_score_is_the_mixture_of_what_model_and_scorer_give_it(
    drawn: tuple[PathsAndPrior, ItemMass], gamma: float, mixture: Mixture, seed: int
) -> None:
    catalogue, mass = drawn
    artifact = catalogue.artifact()
    trie, model = artifact.trie, model_scores(artifact, seed)
    mixer = PriorMixer(prior_of(artifact, mass), Mixing(gamma=gamma, mixture=mixture))
    expected = path_probabilities(catalogue, mass)
    # Breadth first: a node's children are mixed after those of its parent. Of a node's children a search may drop some,
    # and nodes with one child may never be asked about.
    mixed = {
        node: mixer.mixed(NodeId(node), edges_of(artifact, NodeId(node))[::-1], model[node][::-1])[::-1]
        for node in range(trie.num_nodes)
        if len(trie.children(NodeId(node))) > 1
    }
    of_a_round = np.array(list(mixed), dtype=np.int64)
    together = PriorMixer(prior_of(artifact, mass), Mixing(gamma=gamma, mixture=mixture))
    both = together.mixed_rows(
        of_a_round,
        np.repeat(np.arange(len(mixed)), [len(each) for each in mixed.values()]),
        np.concatenate([np.empty(0, np.int64), *(edges_of(artifact, NodeId(node)) for node in mixed)]),
        np.concatenate([np.empty(0), *(model[node] for node in mixed)]),
    )
    assert both.tolist() == [score for each in mixed.values() for score in each]
    assert len(together.terms(of_a_round)) == len(mixed)
    total = 0.0
    for leaf in range(trie.num_leaves):
        nodes = nodes_to(artifact, leaf)
        score = log_model = 0.0
        for parent, child in pairwise(nodes):
            at = child - 1 - int(trie.row_start[parent])
            step = mixed[parent][at] if parent in mixed else 0.0
            assert step <= 1e-9
            score += step
            log_model += model[parent][at]
        share = expected[tuple(trie.path(LeafIndex(leaf)))]
        if mixture == "linear":
            expected_share = (1 - gamma) * math.exp(log_model) + gamma * share
            assert math.exp(score) == pytest.approx(expected_share, rel=1e-6, abs=ROUNDING)
        else:
            assert score == pytest.approx((1 - gamma) * log_model + gamma * math.log(share), abs=1e-4)
        total += math.exp(score)
    if mixture == "linear":
        assert total == pytest.approx(1.0, abs=1e-6)


def test_a_cold_item_counts_as_if_it_had_been_chosen_once() -> None:
    artifact = artifact_of_paths([(5, 0), (6, 0), (7, 0)], [3, 0, 4])
    prior = prior_of(artifact, BACKGROUND_ALONE)
    assert np.exp(prior.log_shares(ROOT)).tolist() == pytest.approx([0.4, 0.1, 0.5])


def test_a_rare_item_behind_very_many_keeps_its_exact_share() -> None:
    """Sums of floats would lose it: 1 in 4e15 is below what is left of a cumulative sum near 1."""
    artifact = artifact_of_paths([(5, 0), (6, 0), (7, 0)], [4 * 10**15, 0, 10])
    prior = prior_of(artifact, BACKGROUND_ALONE)
    assert prior.log_shares(ROOT)[1] == pytest.approx(-math.log(4 * 10**15 + 13))


def test_what_is_no_distribution_is_refused() -> None:
    artifact = artifact_of_paths([(5, 0), (6, 0)], [1, 1])
    with pytest.raises(ModelFault, match="item scorer: item rows 2 to 2 of 2"):
        prior_of(artifact, ItemMass(background=0.5, items=np.array([2]), mass=np.array([0.5])))
