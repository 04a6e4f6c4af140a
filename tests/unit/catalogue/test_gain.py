from __future__ import annotations

import hashlib
import math
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import oracles
import pytest
from factories import flat
from hypothesis import given
from hypothesis import strategies as st
from strategies import PathsAndPrior, catalogues, leaf_prior

from igd_core.catalogue import gain
from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of, node_entropy
from igd_core.catalogue.trie import TokenTrie
from igd_core.errors import CatalogueError
from igd_core.ids import LeafIndex, NodeId

if TYPE_CHECKING:
    from oracles import Path


def prefix_of(trie: TokenTrie, node: int) -> Path:
    return tuple(int(trie.edge_token[edge]) for edge in trie.edges_to(NodeId(node)))


def parent_and_token(trie: TokenTrie, edge: int) -> tuple[Path, int]:
    prefix = prefix_of(trie, edge + 1)
    return prefix[:-1], prefix[-1]


def possible_items(catalogue: PathsAndPrior, prefix: Path) -> int:
    """Items of positive prior that are consistent with a prefix."""
    return sum(
        count > 0 and path[: len(prefix)] == prefix
        for path, count in zip(catalogue.paths, catalogue.counts, strict=True)
    )


@given(catalogue=catalogues())
def test_entropy_of_every_node_equals_enumeration(catalogue: PathsAndPrior) -> None:
    trie = catalogue.trie()
    entropy = node_entropy(trie, leaf_prior(catalogue, trie))
    for node in range(trie.num_nodes):
        expected = oracles.entropy(catalogue.paths, catalogue.prior, prefix_of(trie, node))
        assert entropy[node] == pytest.approx(expected, abs=1e-9)


@given(catalogue=catalogues())
def test_information_gain_of_every_edge_equals_enumeration(catalogue: PathsAndPrior) -> None:
    trie = catalogue.trie()
    gains = InfoGainTable.build(trie, leaf_prior(catalogue, trie)).information_gain
    for edge in range(trie.num_edges):
        prefix, token = parent_and_token(trie, edge)
        before = oracles.entropy(catalogue.paths, catalogue.prior, prefix)
        after = oracles.entropy(catalogue.paths, catalogue.prior, (*prefix, token))
        assert gains[edge] == pytest.approx(before - after, rel=1e-6, abs=1e-9)
        assert gains[edge] >= 0


@given(catalogue=catalogues())
def test_gain_is_zero_exactly_where_no_item_of_positive_prior_is_ruled_out(catalogue: PathsAndPrior) -> None:
    trie = catalogue.trie()
    gains = InfoGainTable.build(trie, leaf_prior(catalogue, trie)).information_gain
    for edge in range(trie.num_edges):
        prefix, token = parent_and_token(trie, edge)
        rules_out = possible_items(catalogue, prefix) > possible_items(catalogue, (*prefix, token))
        assert (gains[edge] > 0) == rules_out


@given(catalogue=catalogues())
def test_sibling_gain_follows_its_formula_and_stays_below_one(catalogue: PathsAndPrior) -> None:
    trie = catalogue.trie()
    sibling_gain = InfoGainTable.build(trie, leaf_prior(catalogue, trie)).sibling_gain
    for edge in range(trie.num_edges):
        prefix, token = parent_and_token(trie, edge)
        expected = oracles.sibling_gains(catalogue.paths, catalogue.prior, prefix)[token]
        assert sibling_gain[edge] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert 0 <= sibling_gain[edge] < 1


@given(catalogue=catalogues())
def test_gains_along_a_path_sum_to_what_the_path_takes_from_the_entropy(catalogue: PathsAndPrior) -> None:
    trie = catalogue.trie()
    prior = leaf_prior(catalogue, trie)
    gains = InfoGainTable.build(trie, prior).information_gain
    whole = oracles.entropy(catalogue.paths, catalogue.prior, ())
    for leaf in range(trie.num_leaves):
        own = -prior[leaf] * math.log(prior[leaf]) if prior[leaf] else 0.0
        edges = trie.edges_to(NodeId(int(trie.leaf_node[leaf])))
        assert float(gains[edges].astype(np.float64).sum()) == pytest.approx(whole - own, rel=1e-6, abs=1e-9)


@given(catalogue=catalogues())
def test_items_of_one_path_are_one_outcome(catalogue: PathsAndPrior) -> None:
    trie = catalogue.trie()
    merged = leaf_prior_of(trie, np.array(catalogue.prior))
    for leaf in range(trie.num_leaves):
        path = tuple(trie.path(LeafIndex(leaf)))
        assert merged[leaf] == pytest.approx(
            math.fsum(p for own, p in zip(catalogue.paths, catalogue.prior, strict=True) if own == path)
        )


@given(catalogue=catalogues(), nodes=st.integers(1, 7))
def test_so_many_nodes_at_once_make_no_difference(catalogue: PathsAndPrior, nodes: int) -> None:
    trie = catalogue.trie()
    prior = leaf_prior(catalogue, trie)
    whole = InfoGainTable.build(trie, prior)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gain, "_NODES_AT_ONCE", nodes)
        blocks = InfoGainTable.build(trie, prior)
    for name, array in whole.arrays().items():
        assert array.tobytes() == blocks.arrays()[name].tobytes(), name


def test_a_decision_too_small_for_a_float_is_still_no_zero() -> None:
    """A billion to one: the gain of the popular branch is about 2e-8 nats, that of a still rarer one below float32."""
    trie = TokenTrie.build(*flat([(1, 0), (2, 0)]))
    gains = InfoGainTable.build(trie, np.array([1.0, 5e-324])).information_gain
    assert (gains[:2] > 0).all()
    assert (gains[2:] == 0).all()


def test_the_most_decisive_sibling_keeps_a_positive_weight_at_alpha_one() -> None:
    """Seven nats apart, float32 would round g up to 1."""
    paths = [(1, 0), *((2, token, 0) for token in range(1, 2000))]
    trie = TokenTrie.build(*flat(paths))
    sibling_gain = InfoGainTable.build(trie, np.full(len(paths), 1 / len(paths))).sibling_gain
    assert (1.0 - sibling_gain > 0).all()
    assert sibling_gain.max() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([1.0], r"shape \(1,\), the trie has 2 leaves"),
        ([[0.5, 0.5]], "shape"),
        ([1.5, -0.5], r"found \[-0.5\]"),
        ([float("nan"), 1.0], r"found \[nan\]"),
        ([float("inf"), 0.0], r"found \[inf\]"),
        ([0.5, 0.4], "sums to 0.9"),
    ],
)
def test_a_prior_that_is_no_distribution_is_refused_with_the_value(prior: list[float], message: str) -> None:
    trie = TokenTrie.build(*flat([(1, 0), (2, 0)]))
    with pytest.raises(CatalogueError, match=message):
        InfoGainTable.build(trie, np.array(prior))


def test_gains_are_the_same_bytes_on_every_machine() -> None:
    """Versions are named by a hash of them, and the last bit of a logarithm is the processor's own."""
    rng = np.random.default_rng(5)  # integers alone: its stream does not depend on the machine
    paths = sorted({(int(a), int(b), int(c), 0) for a, b, c in rng.integers(1, 20, size=(6000, 3))})
    counts = rng.integers(1, 100_000, size=len(paths))
    trie = TokenTrie.build(*flat(paths))
    gains = InfoGainTable.build(trie, leaf_prior_of(trie, counts / counts.sum()))
    digest = hashlib.sha256(gains.information_gain.tobytes() + gains.sibling_gain.tobytes()).hexdigest()
    assert digest == "444f3f997838df150b17a7413af63cbf601156b6540c68ac20a47b7bbdb14741"
    entropy = node_entropy(trie, leaf_prior_of(trie, counts / counts.sum()))
    assert entropy[0].hex() == "0x1.03006cee44287p+3"
    exact = -sum(Decimal(int(n)) / int(counts.sum()) * (Decimal(int(n)) / int(counts.sum())).ln() for n in counts)
    assert entropy[0] == pytest.approx(float(exact), rel=1e-13)
