from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracles
from hypothesis import given
from hypothesis import strategies as st
from strategies import PathsAndPrior, catalogues, item_lists

from igd_core.ids import LeafIndex, NodeId
from igd_core.search.filters import ItemFilter, LeafFilter, Matching, first_admitted
from igd_core.search.session import ALL_LEAVES


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A filter, and by set arithmetic the items that it admits."""

    item_filter: ItemFilter
    admitted: set[int]
    names_admitted: bool

    def paths(self, catalogue: PathsAndPrior) -> set[oracles.Path]:
        return {catalogue.paths[item] for item in self.admitted}


@st.composite
def filters(draw: st.DrawFn, catalogue: PathsAndPrior) -> Asked:
    """Lists of items, and often marks on those that meet conditions: few of them or most."""
    count = len(catalogue.paths)
    allowed, barred = draw(item_lists(count))
    admitted = oracles.admitted_items(count, allowed, barred)
    matching = None
    if draw(st.booleans()):
        some = draw(st.sets(st.integers(0, count - 1)))
        marked = some if draw(st.booleans()) else set(range(count)) - some
        trie = catalogue.trie()
        marks = np.isin(np.arange(count), sorted(marked))
        matching = Matching.of(marks, trie, trie.leaf_of_item())
        admitted &= marked
    return Asked(
        item_filter=ItemFilter.of(allowed=allowed, barred=barred, matching=matching),
        admitted=admitted,
        names_admitted=allowed is not None or (matching is not None and not matching.leaves.barred),
    )


@given(data=st.data(), catalogue=catalogues())
def test_an_item_filter_admits_what_set_arithmetic_admits(data: st.DataObject, catalogue: PathsAndPrior) -> None:
    asked = data.draw(filters(catalogue))
    items = np.arange(len(catalogue.paths))
    assert set(items[asked.item_filter.admits(items)].tolist()) == asked.admitted


@given(data=st.data(), catalogue=catalogues())
def test_a_leaf_stays_while_one_of_its_items_is_admitted(data: st.DataObject, catalogue: PathsAndPrior) -> None:
    asked = data.draw(filters(catalogue))
    trie = catalogue.trie()
    leaves = asked.item_filter.leaves(trie, trie.leaf_of_item())
    expected = asked.paths(catalogue)
    assert leaves.count(trie.num_leaves) == len(expected)
    assert leaves.admits_all == (not asked.names_admitted and len(expected) == trie.num_leaves)
    assert leaves.admits(np.arange(trie.num_leaves)).tolist() == leaves.open_nodes(trie, trie.leaf_node).tolist()
    is_open = leaves.open_nodes(trie, trie.leaf_node)
    assert {tuple(trie.path(LeafIndex(leaf))) for leaf in np.flatnonzero(is_open).tolist()} == expected


@given(data=st.data(), catalogue=catalogues())
def test_open_nodes_edges_and_forced_edges_equal_enumeration(data: st.DataObject, catalogue: PathsAndPrior) -> None:
    asked = data.draw(filters(catalogue))
    trie = catalogue.trie()
    leaves = asked.item_filter.leaves(trie, trie.leaf_of_item())
    reachable = asked.paths(catalogue)
    for node in range(trie.num_nodes):
        prefix = tuple(trie.edge_token[trie.edges_to(NodeId(node))].tolist())
        below = oracles.paths_below(reachable, prefix)
        assert leaves.open_nodes(trie, np.array([node])).tolist() == [bool(below)]
        open_tokens = oracles.next_tokens(reachable, prefix)
        edges = leaves.open_edges(trie, NodeId(node))
        assert trie.edge_token[edges].tolist() == open_tokens
        if below:  # a search stands on open nodes only
            only = leaves.only_edge(trie, NodeId(node))
            assert (only is not None) == (len(open_tokens) == 1)
            if only is not None:
                assert [int(trie.edge_token[only])] == open_tokens


@given(data=st.data(), catalogue=catalogues())
def test_duplicates_come_by_popularity_then_catalogue_order(data: st.DataObject, catalogue: PathsAndPrior) -> None:
    asked = data.draw(filters(catalogue))
    trie = catalogue.trie()
    counts = np.array(catalogue.counts)
    for leaf in range(trie.num_leaves):
        path = tuple(trie.path(LeafIndex(leaf)))
        own = [item for item in sorted(asked.admitted) if catalogue.paths[item] == path]
        found = first_admitted(trie.items_of(LeafIndex(leaf)), counts, asked.item_filter)
        assert found == sorted(own, key=lambda item: -catalogue.counts[item])


def test_no_filter_admits_all_and_an_empty_allow_list_admits_nothing() -> None:
    trie = PathsAndPrior(paths=[(1, 0), (2, 0)], counts=[1, 1]).trie()
    nothing = ItemFilter.of(allowed=[]).leaves(trie, trie.leaf_of_item())
    assert nothing.count(2) == 0
    assert not nothing.open_nodes(trie, np.arange(trie.num_nodes)).any()
    assert ItemFilter.of().leaves(trie, trie.leaf_of_item()).admits_all
    assert ALL_LEAVES.count(2) == 2
    assert not LeafFilter(leaves=np.array([0, 1]), barred=True).open_nodes(trie, np.array([0])).any()
