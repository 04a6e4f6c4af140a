"""Filters on items, as filters on leaves: they prune the trie before anything is scored.

A filter is a sorted list of leaves, allowed or barred, whichever was given. The number of allowed leaves below a node
is then a difference of two binary searches, so a search does no work of the catalogue's size. Conditions on attributes
may match most of a catalogue; for them there is a flag for every item (`Matching`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.ids import EdgeId, ItemIndex, NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFilter:
    """Leaves that a search may reach.

    Attributes:
        leaves: ``(n,)`` int64, sorted and unique.
        barred: whether ``leaves`` are the ones left out, or else the only ones allowed.
    """

    leaves: NDArray[np.int64]
    barred: bool

    @property
    def admits_all(self) -> bool:
        """Whether no leaf is pruned."""
        return self.barred and not len(self.leaves)

    def admits(self, leaves: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Whether each leaf may be reached; shape of ``leaves``."""
        return np.asarray(_contains(self.leaves, leaves) != self.barred)

    def without(self, leaves: NDArray[np.integer[Any]]) -> LeafFilter:
        """The filter that also bars these leaves, which are sorted, unique and admitted."""
        if not len(leaves):
            return self
        at = np.searchsorted(self.leaves, leaves)
        left = np.insert(self.leaves, at, leaves) if self.barred else np.delete(self.leaves, at)
        return LeafFilter(leaves=left, barred=self.barred)

    def count(self, num_leaves: int) -> int:
        """How many of ``num_leaves`` leaves are admitted."""
        return num_leaves - len(self.leaves) if self.barred else len(self.leaves)

    def open_nodes(self, trie: TokenTrie, nodes: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Whether an admitted leaf lies below each node; shape of ``nodes``."""
        first, end = trie.node_first[nodes], trie.node_end[nodes]
        listed = np.searchsorted(self.leaves, end) - np.searchsorted(self.leaves, first)
        return np.asarray(listed < end - first if self.barred else listed > 0)

    def open_edges(self, trie: TokenTrie, node: NodeId) -> NDArray[np.int64]:
        """Edges of ``node`` with an admitted leaf below, ascending, int64."""
        edges = np.arange(trie.row_start[node], trie.row_start[node + 1], dtype=np.int64)
        return edges if self.admits_all else edges[self.open_nodes(trie, edges + 1)]

    def only_edge(self, trie: TokenTrie, node: NodeId) -> EdgeId | None:
        """The only edge of ``node`` that is open; its token is forced. None if several or none are open."""
        start, end = int(trie.row_start[node]), int(trie.row_start[node + 1])
        if end - start == 1:
            return EdgeId(start)
        if end == start or self.admits_all:
            return None
        if self.barred and len(self.leaves) < end - start - 1:  # as nearly always: too few to bar all but one
            return None
        edges = self.open_edges(trie, node)
        return EdgeId(int(edges[0])) if len(edges) == 1 else None

    def forced_chain(self, trie: TokenTrie, node: NodeId) -> list[NodeId]:
        """``node`` and the nodes that forced tokens lead to, up to one with several open children, or before a leaf."""
        chain = [node]
        row_start = trie.row_start.data  # a memoryview gives int, where the array gives numpy's slower scalars
        while True:
            edge: int | None = row_start[node]
            if row_start[node + 1] - row_start[node] != 1:
                edge = self.only_edge(trie, node)
            if edge is None or row_start[edge + 1] == row_start[edge + 2]:
                return chain
            node = NodeId(edge + 1)
            chain.append(node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Items that meet conditions; immutable, so requests with the same conditions share it. 1 to 5 bytes an item.

    Attributes:
        items: ``(num_items,)`` bool.
        leaves: those with at least one such item.
    """

    items: NDArray[np.bool_]
    leaves: LeafFilter

    @staticmethod
    def of(items: NDArray[np.bool_], trie: TokenTrie, leaf_of_item: NDArray[np.int32]) -> Matching:
        """Find the leaves of these items; milliseconds at a million items."""
        is_open = np.zeros(trie.num_leaves, bool)
        is_open[leaf_of_item[items]] = True
        barred = 2 * int(np.count_nonzero(is_open)) > trie.num_leaves
        return Matching(items=items, leaves=LeafFilter(leaves=np.flatnonzero(is_open != barred), barred=barred))

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.items.nbytes + self.leaves.leaves.nbytes

    def items_of(self, leaves: NDArray[np.integer[Any]], trie: TokenTrie) -> NDArray[np.int64]:
        """How many items of each leaf match; shape of ``leaves``."""
        start, length = trie.leaf_start[leaves], trie.leaf_start[leaves + 1] - trie.leaf_start[leaves]
        ends = np.cumsum(length)
        places = np.repeat(start - (ends - length), length) + np.arange(ends[-1] if len(ends) else 0)
        matching = np.concatenate(([0], np.cumsum(self.items[trie.leaf_items[places]])))
        return np.asarray(matching[ends] - matching[ends - length])


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFilter:
    """Items that a request admits.

    Attributes:
        allowed: ``(n,)`` int64, sorted and unique item rows, or None for all.
        barred: ``(m,)`` int64, sorted and unique item rows; removed from ``allowed``.
        matching: conditions that items must also meet; None for none, and where ``allowed`` is given.
    """

    allowed: NDArray[np.int64] | None
    barred: NDArray[np.int64]
    matching: Matching | None = None

    @staticmethod
    def of(
        *,
        allowed: Sequence[int] | NDArray[Any] | None = None,
        barred: Sequence[int] = (),
        matching: Matching | None = None,
    ) -> ItemFilter:
        """Sort and deduplicate both lists."""
        listed = None if allowed is None else np.unique(np.asarray(allowed, dtype=np.int64))
        if listed is not None and matching is not None:
            listed, matching = listed[matching.items[listed]], None
        return ItemFilter(allowed=listed, barred=np.unique(np.asarray(barred, dtype=np.int64)), matching=matching)

    def admits(self, items: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Whether each item may come back; shape of ``items``."""
        admitted = ~_contains(self.barred, items)
        if self.matching is not None:
            admitted &= self.matching.items[items]
        return admitted if self.allowed is None else admitted & _contains(self.allowed, items)

    def leaves(self, trie: TokenTrie, leaf_of_item: NDArray[np.int32]) -> LeafFilter:
        """The filter on leaves: a leaf stays while one of its items is admitted."""
        if self.allowed is not None:
            admitted = self.allowed[~_contains(self.barred, self.allowed)]
            return LeafFilter(leaves=np.unique(leaf_of_item[admitted]).astype(np.int64), barred=False)
        # A leaf is barred if as many of its items are barred as it has. No loop: a list may hold 100,000 items.
        if self.matching is None:
            touched, barred = np.unique(leaf_of_item[self.barred], return_counts=True)
            emptied = touched[barred == trie.leaf_start[touched + 1] - trie.leaf_start[touched]]
            return LeafFilter(leaves=emptied.astype(np.int64), barred=True)
        out = self.barred[self.matching.items[self.barred]]
        touched, barred = np.unique(leaf_of_item[out], return_counts=True)
        return self.matching.leaves.without(touched[barred == self.matching.items_of(touched, trie)])


def _contains(sorted_values: NDArray[np.int64], wanted: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    if not len(sorted_values):
        return np.zeros(np.shape(wanted), dtype=bool)
    position = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return np.asarray(sorted_values[position] == wanted)


def first_admitted(items: NDArray[np.int32], frequency: NDArray[np.int64], item_filter: ItemFilter) -> list[ItemIndex]:
    """The admitted ones of ``items``, which share a leaf: the most popular first, ties in catalogue order."""
    admitted = items[item_filter.admits(items)]
    return [ItemIndex(int(item)) for item in admitted[np.lexsort((admitted, -frequency[admitted]))]]
