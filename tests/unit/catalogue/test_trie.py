from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import oracles
import pytest
from factories import flat
from hypothesis import given
from hypothesis import strategies as st
from strategies import token_paths

from igd_core.catalogue.trie import TokenTrie
from igd_core.errors import CatalogueError
from igd_core.ids import ROOT, LeafIndex, NodeId

if TYPE_CHECKING:
    import random

    from oracles import Path


def prefix_of(trie: TokenTrie, node: NodeId) -> Path:
    return tuple(int(trie.edge_token[edge]) for edge in trie.edges_to(node))


def walk(trie: TokenTrie, node: NodeId = ROOT, prefix: Path = ()) -> list[tuple[NodeId, Path]]:
    """Every node with the tokens that lead to it, by children alone."""
    found = [(node, prefix)]
    for edge in trie.children(node):
        found += walk(trie, NodeId(edge + 1), (*prefix, int(trie.edge_token[edge])))
    return found


@given(paths=token_paths())
def test_walking_every_path_yields_exactly_the_catalogue(paths: list[Path]) -> None:
    trie = TokenTrie.build(*flat(paths))
    ends = [prefix for node, prefix in walk(trie) if trie.is_leaf(node)]
    assert sorted(ends) == sorted(set(paths))


@given(paths=token_paths())
def test_every_item_hangs_on_the_leaf_of_its_path_and_items_of_a_leaf_are_in_catalogue_order(paths: list[Path]) -> None:
    trie = TokenTrie.build(*flat(paths))
    distinct = sorted(set(paths))
    assert [tuple(trie.path(LeafIndex(leaf))) for leaf in range(trie.num_leaves)] == distinct
    assert trie.leaf_of_item().tolist() == [distinct.index(path) for path in paths]
    for leaf, path in enumerate(distinct):
        own = [item for item, other in enumerate(paths) if other == path]
        assert trie.items_of(LeafIndex(leaf)).tolist() == own


@given(paths=token_paths())
def test_children_are_the_tokens_that_may_follow_and_child_finds_only_these(paths: list[Path]) -> None:
    trie = TokenTrie.build(*flat(paths))
    for node, prefix in walk(trie):
        following = oracles.next_tokens(paths, prefix)
        assert [int(trie.edge_token[edge]) for edge in trie.children(node)] == following
        assert trie.is_leaf(node) == (not following)
        for token in range(5):
            child = trie.child(node, token)
            assert (child is not None) == (token in following)
            if child is not None:
                assert prefix_of(trie, child) == (*prefix, token)


@given(paths=token_paths())
def test_arrays_keep_every_promise_of_their_docstring(paths: list[Path]) -> None:
    trie = TokenTrie.build(*flat(paths))
    prefixes = {path[:length] for path in paths for length in range(len(path) + 1)}
    assert trie.num_nodes == len(prefixes) == trie.num_edges + 1
    assert trie.num_leaves == len(set(paths))
    assert trie.num_items == len(paths)
    assert trie.depth == max(map(len, paths))
    # Breadth first: shorter prefixes before longer ones, and each depth in lexicographic order.
    assert [prefix_of(trie, NodeId(node)) for node in range(trie.num_nodes)] == sorted(
        prefixes, key=lambda prefix: (len(prefix), prefix)
    )
    for depth, (start, end) in enumerate(zip(trie.level_start[:-1], trie.level_start[1:], strict=True)):
        assert end - start == sum(len(prefix) == depth for prefix in prefixes)
    distinct = sorted(set(paths))
    for node, prefix in walk(trie):
        below = oracles.paths_below(paths, prefix)
        assert distinct[trie.node_first[node] : trie.node_end[node]] == below
    for leaf, path in enumerate(distinct):
        assert prefix_of(trie, NodeId(int(trie.leaf_node[leaf]))) == path
    assert sorted(trie.leaf_items.tolist()) == list(range(len(paths)))
    assert all(array.dtype == np.int32 for array in trie.arrays().values())


@given(paths=token_paths())
def test_parents_and_edges_to_lead_back_up(paths: list[Path]) -> None:
    trie = TokenTrie.build(*flat(paths))
    assert trie.edges_to(ROOT) == []
    for node, _ in walk(trie):
        for edge in trie.children(node):
            assert trie.parents(np.array([edge + 1])).tolist() == [node]
            assert trie.edges_to(NodeId(edge + 1)) == [*trie.edges_to(node), edge]
    everything = trie.parents(np.arange(1, trie.num_nodes).reshape(1, -1))
    assert everything.shape == (1, trie.num_edges)
    assert everything.dtype == np.int64


@given(paths=token_paths())
def test_many_leaves_have_the_paths_that_each_has(paths: list[Path]) -> None:
    trie = TokenTrie.build(*flat(paths))
    leaves = np.arange(trie.num_leaves)[::-1]
    assert trie.paths(leaves) == [trie.path(LeafIndex(leaf)) for leaf in leaves.tolist()]
    assert trie.paths(leaves[:0]) == []


@given(paths=token_paths(), order=st.randoms(use_true_random=False))
def test_the_order_of_items_changes_nothing_but_item_rows(paths: list[Path], order: random.Random) -> None:
    rows = list(range(len(paths)))
    order.shuffle(rows)
    trie, shuffled = TokenTrie.build(*flat(paths)), TokenTrie.build(*flat([paths[row] for row in rows]))
    for name, array in trie.arrays().items():
        if name != "leaf_items":
            assert array.tolist() == shuffled.arrays()[name].tolist()


@given(paths=token_paths(), at=st.data())
def test_a_path_that_is_a_prefix_of_another_is_refused_naming_both_items(paths: list[Path], at: st.DataObject) -> None:
    longer = at.draw(st.integers(0, len(paths) - 1))
    cut = at.draw(st.integers(1, len(paths[longer])))
    whole = (*paths[longer], 7)  # goes on behind EOS, so no other path of the strategy equals it
    paths = [*paths[:longer], whole, *paths[longer + 1 :]]
    paths = [path for path in paths if path == whole or path != whole[: len(path)]]
    paths.insert(at.draw(st.integers(0, len(paths))), whole[:cut])
    nested = {
        (short, long)
        for short, one in enumerate(paths)
        for long, other in enumerate(paths)
        if len(one) < len(other) and other[: len(one)] == one
    }
    with pytest.raises(CatalogueError) as caught:
        TokenTrie.build(*flat(paths))
    assert str(caught.value) in {
        f"the path of item {short} is a prefix of the path of item {long}" for short, long in nested
    }


@pytest.mark.parametrize(
    ("offsets", "tokens", "message"),
    [
        ([0], [], "at least one item"),
        ([], [], "at least one item"),
        ([0, 1, 1], [5], "item 1: empty token path"),
        ([0, 2, 1], [5], "item 1: empty token path"),
        ([0, 2], [5, -3], "token id -3 is negative"),
        ([0, 2], [5], "offsets run from 0 to 2, tokens number 1"),
        ([1, 2], [5, 6], "offsets run from 1 to 2"),
    ],
)
def test_paths_that_cannot_be_are_refused_with_the_value(offsets: list[int], tokens: list[int], message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        TokenTrie.build(np.array(offsets, dtype=np.int64), np.array(tokens, dtype=np.int32))


def test_more_tokens_than_node_ids_are_refused_before_anything_is_built() -> None:
    too_many = 2**31 - 1
    tokens = np.broadcast_to(np.int32(5), (too_many,))  # no memory behind it
    with pytest.raises(CatalogueError, match=f"{too_many} tokens"):
        TokenTrie.build(np.array([0, too_many]), tokens)


def test_token_ids_up_to_int32_sort_as_numbers() -> None:
    top = 2**31 - 1
    trie = TokenTrie.build(*flat([(top, 0), (3, 0), (0, top, 0)]))
    assert [trie.path(LeafIndex(leaf)) for leaf in range(3)] == [[0, top, 0], [3, 0], [top, 0]]


def test_one_item_is_a_chain() -> None:
    trie = TokenTrie.build(*flat([(4, 4, 4)]))
    assert (trie.num_nodes, trie.num_leaves, trie.depth) == (4, 1, 3)
    assert trie.path(LeafIndex(0)) == [4, 4, 4]
