"""Which items may come back: pruned from the trie before anything is scored.

A filter is a sorted list of leaves, either the allowed or the barred ones, whichever is shorter to hand. How many
allowed leaves lie below a node is then two binary searches, so nothing of the catalogue's size is touched per request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.ids import EdgeId, ItemIndex, NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.trie import TokenTrie


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFilter:
    """Items a request admits.

    Attributes:
        allowed: ``(n,)`` int64, sorted and unique item rows, or None for all.
        barred: ``(m,)`` int64, sorted and unique item rows; taken away from ``allowed``.
    """

    allowed: NDArray[np.int64] | None
    barred: NDArray[np.int64]

    @staticmethod
    def of(*, allowed: Sequence[int] | NDArray[Any] | None = None, barred: Sequence[int] = ()) -> ItemFilter:
        """Sort and deduplicate both lists."""
        return ItemFilter(
            allowed=None if allowed is None else np.unique(np.asarray(allowed, dtype=np.int64)),
            barred=np.unique(np.asarray(barred, dtype=np.int64)),
        )

    def admits(self, items: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Whether each item may come back; shape of ``items``."""
        admitted = ~_contains(self.barred, items)
        return admitted if self.allowed is None else admitted & _contains(self.allowed, items)

    def leaves(self, trie: TokenTrie, leaf_of_item: NDArray[np.int32]) -> LeafFilter:
        """The filter on leaves: a leaf stays while one of its items is admitted."""
        if self.allowed is not None:
            admitted = self.allowed[~_contains(self.barred, self.allowed)]
            return LeafFilter(leaves=np.unique(leaf_of_item[admitted]).astype(np.int64), barred=False)
        # Of a leaf whose items are all barred, as many are barred as it has. No loop: a list may hold 100,000 items.
        touched, barred = np.unique(leaf_of_item[self.barred], return_counts=True)
        emptied = touched[barred == trie.leaf_start[touched + 1] - trie.leaf_start[touched]]
        return LeafFilter(leaves=emptied.astype(np.int64), barred=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFilter:
    """Leaves a search may reach.

    Attributes:
        leaves: ``(n,)`` int64, sorted and unique.
        barred: whether ``leaves`` are the ones left out, rather than the only ones left.
    """

    leaves: NDArray[np.int64]
    barred: bool

    @property
    def admits_all(self) -> bool:
        """Whether no leaf is pruned."""
        return self.barred and not len(self.leaves)

    def count(self, num_leaves: int) -> int:
        """How many leaves are left of ``num_leaves``."""
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
        """The edge of ``node`` when just one is open: the token there is forced."""
        start, end = int(trie.row_start[node]), int(trie.row_start[node + 1])
        if end - start == 1:
            return EdgeId(start)
        if end == start or self.admits_all:
            return None
        edges = self.open_edges(trie, node)
        return EdgeId(int(edges[0])) if len(edges) == 1 else None


def _contains(sorted_values: NDArray[np.int64], wanted: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    if not len(sorted_values):
        return np.zeros(np.shape(wanted), dtype=bool)
    position = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return np.asarray(sorted_values[position] == wanted)


def first_admitted(items: NDArray[np.int32], frequency: NDArray[np.int64], item_filter: ItemFilter) -> list[ItemIndex]:
    """Admitted ones of ``items`` that share a leaf, the most popular first, ties in catalogue order."""
    admitted = items[item_filter.admits(items)]
    return [ItemIndex(int(item)) for item in admitted[np.lexsort((admitted, -frequency[admitted]))]]
