"""The prefix tree of a catalogue's token paths, as flat arrays.

Paths are sorted once and nodes are numbered breadth first. So edge ``e`` leads to node ``e + 1`` and needs no target
array; and every node covers a contiguous range of the sorted paths, so a sum over all items below a node is a
difference of two entries of a cumulative sum.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import CatalogueError
from igd_core.ids import EdgeId, LeafIndex, NodeId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]

_TOKEN_BITS = 32
_MAX_NODES = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrie:
    """Prefix tree over token paths in compressed sparse rows; immutable, so all requests share one copy.

    No path is a prefix of another (each ends with EOS), so leaves and distinct paths are the same thing. Items with
    equal paths share a leaf.

    Attributes:
        row_start: ``(num_nodes + 1,)`` int32; edges of node n are ``row_start[n]:row_start[n + 1]``.
        edge_token: ``(num_edges,)`` int32, ascending within a node; edge e leads to node ``e + 1``.
        node_first: ``(num_nodes,)`` int32; first leaf below the node, in lexicographic order of paths.
        node_end: ``(num_nodes,)`` int32; one past the last leaf below the node.
        leaf_node: ``(num_leaves,)`` int32; the node of each leaf.
        leaf_start: ``(num_leaves + 1,)`` int32; items of leaf l are ``leaf_items[leaf_start[l]:leaf_start[l + 1]]``.
        leaf_items: ``(num_items,)`` int32; item rows, in catalogue order within a leaf.
        level_start: ``(depth + 2,)`` int32; nodes at depth d are ``level_start[d]:level_start[d + 1]``.
    """

    row_start: Int32
    edge_token: Int32
    node_first: Int32
    node_end: Int32
    leaf_node: Int32
    leaf_start: Int32
    leaf_items: Int32
    level_start: Int32

    @property
    def num_nodes(self) -> int:
        """Nodes, the root among them."""
        return len(self.node_first)

    @property
    def num_edges(self) -> int:
        """Edges: one fewer than nodes."""
        return len(self.edge_token)

    @property
    def num_leaves(self) -> int:
        """Distinct paths."""
        return len(self.leaf_node)

    @property
    def num_items(self) -> int:
        """Items; more than leaves where items share a path."""
        return len(self.leaf_items)

    @property
    def depth(self) -> int:
        """Tokens of the longest path."""
        return len(self.level_start) - 2

    def arrays(self) -> dict[str, Int32]:
        """The arrays that an artifact stores, by attribute name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def children(self, node: NodeId) -> range:
        """Edges that leave ``node``, as a range of edge ids; edge e leads to node e + 1."""
        return range(int(self.row_start[node]), int(self.row_start[node + 1]))

    def is_leaf(self, node: NodeId) -> bool:
        """Whether a path ends at ``node``."""
        return bool(self.row_start[node] == self.row_start[node + 1])

    def child(self, node: NodeId, token: int) -> NodeId | None:
        """The node that ``token`` leads to from ``node``, or None; a binary search in the row."""
        start, end = int(self.row_start[node]), int(self.row_start[node + 1])
        edge = start + int(np.searchsorted(self.edge_token[start:end], np.int32(token)))
        return NodeId(edge + 1) if edge < end and self.edge_token[edge] == token else None

    def parents(self, nodes: NDArray[np.integer[Any]]) -> Int64:
        """The parent of each node, shape of ``nodes``, int64; the root has none and must not be passed."""
        edges = np.asarray(nodes, dtype=np.int32) - np.int32(1)
        # Leaves have empty rows; the last row that starts at or before the edge holds it. Give searchsorted a needle of
        # the array's own type, or numpy copies the array: 15 ms instead of 15 us at 10 M nodes.
        return np.searchsorted(self.row_start, edges, side="right") - 1

    def edges_to(self, node: NodeId) -> list[EdgeId]:
        """Edges from the root to ``node``, in order."""
        row_start = self.row_start.data  # a memoryview gives int: a path takes 14 us so, and 95 with NumPy's search
        edges: list[EdgeId] = []
        while node:
            edges.append(EdgeId(node - 1))
            node = NodeId(bisect_right(row_start, node - 1, 0, node) - 1)
        return edges[::-1]

    def paths(self, leaves: NDArray[np.integer[Any]]) -> list[list[int]]:
        """`path` of each leaf."""
        return [self.edge_token[self.edges_to(NodeId(node))].tolist() for node in self.leaf_node[leaves].tolist()]

    def path(self, leaf: LeafIndex) -> list[int]:
        """Token ids of a leaf's path, EOS included."""
        edges = self.edges_to(NodeId(int(self.leaf_node[leaf])))
        return [int(token) for token in self.edge_token[edges]]

    def items_of(self, leaf: LeafIndex) -> Int32:
        """Item rows that share the leaf, ``(n,)`` int32, n >= 1."""
        return self.leaf_items[self.leaf_start[leaf] : self.leaf_start[leaf + 1]]

    def leaf_of_item(self) -> Int32:
        """Leaf of every item: ``(num_items,)`` int32."""
        leaf = np.empty(self.num_items, dtype=np.int32)
        leaf[self.leaf_items] = np.repeat(np.arange(self.num_leaves, dtype=np.int32), np.diff(self.leaf_start))
        return leaf

    @staticmethod
    def build(offsets: Int64, tokens: Int32) -> TokenTrie:
        """Build the trie of ``n`` paths; no Python loop over items or tokens, one pass per depth.

        Args:
            offsets: ``(n + 1,)`` int64; path i is ``tokens[offsets[i]:offsets[i + 1]]``.
            tokens: ``(offsets[-1],)`` int32, token ids >= 0.

        Raises:
            CatalogueError: no paths, an empty path, a negative token, or a path that is a prefix of another.
        """
        _check_paths(offsets, tokens)
        return _Builder(offsets, tokens).run()


def _check_paths(offsets: Int64, tokens: Int32) -> None:
    if len(offsets) < 2:
        raise CatalogueError("a catalogue needs at least one item")
    if len(tokens) >= _MAX_NODES:  # a token makes at most one node, and node ids are int32
        raise CatalogueError(f"the paths hold {len(tokens)} tokens; fewer than {_MAX_NODES} fit")
    if offsets[0] != 0 or offsets[-1] != len(tokens):
        raise CatalogueError(f"path offsets run from {offsets[0]} to {offsets[-1]}, tokens number {len(tokens)}")
    lengths = np.diff(offsets)
    if lengths.min() < 1:
        raise CatalogueError(f"item {int(lengths.argmin())}: empty token path")
    if tokens.min() < 0:
        raise CatalogueError(f"token id {int(tokens.min())} is negative")


class _Builder:
    """Sort the paths depth by depth, and read each depth's nodes off the sorted order.

    ``order`` holds items at their sorted positions as far as known. ``active`` are the positions of paths longer than
    this depth; ``group`` is the number, among this depth's nodes, of each one's node.
    """

    def __init__(self, offsets: Int64, tokens: Int32) -> None:
        self.offsets = offsets
        self.tokens = tokens
        self.lengths = np.diff(offsets)
        num_items = len(self.lengths)
        self.order = np.arange(num_items)
        self.active = np.arange(num_items)
        self.group = np.zeros(num_items, dtype=np.int64)

    def run(self) -> TokenTrie:
        first, end = [np.zeros(1, dtype=np.int32)], [np.array([len(self.order)], dtype=np.int32)]
        degrees, tokens, level_start = [], [], [0, 1]
        depth = 0
        while len(self.active):
            key = self._sorted_keys(depth)
            starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
            bounds = np.append(starts, len(key))
            edge_key = key[starts]
            degrees.append(np.bincount(edge_key >> _TOKEN_BITS, minlength=len(first[-1])).astype(np.int32))
            tokens.append((edge_key & ((1 << _TOKEN_BITS) - 1)).astype(np.int32))
            first.append(self.active[starts].astype(np.int32))
            end.append((self.active[bounds[1:] - 1] + 1).astype(np.int32))
            level_start.append(level_start[-1] + len(starts))
            self._descend(depth, bounds)
            depth += 1
        degrees.append(np.zeros(len(first[-1]), dtype=np.int32))
        del key, starts, bounds, edge_key
        return self._finish(
            degree=_joined(degrees),
            edge_token=_joined(tokens),
            first=_joined(first),
            end=_joined(end),
            level_start=np.asarray(level_start, dtype=np.int32),
        )

    def _sorted_keys(self, depth: int) -> Int64:
        """Sort active positions by (node, token); returns the keys in that order."""
        items = self.order[self.active]
        key: Int64 = (self.group << _TOKEN_BITS) | self.tokens[self.offsets[items] + depth]
        unsorted = key[1:] < key[:-1]
        if not unsorted.any():
            return key
        # Only nodes with several items can be out of order; deep down these are few.
        crowded = np.bincount(self.group)[self.group] > 1
        where = np.flatnonzero(crowded)
        shuffle = where[np.argsort(key[where], kind="stable")]
        key[where] = key[shuffle]
        self.order[self.active[where]] = items[shuffle]
        return key

    def _descend(self, depth: int, bounds: Int64) -> None:
        """Move every active position to its child, and drop those whose path ends there."""
        size = np.diff(bounds)
        ends = self.lengths[self.order[self.active]] == depth + 1
        ending = np.add.reduceat(ends, bounds[:-1], dtype=np.int64)
        mixed = np.flatnonzero((ending > 0) & (ending < size))
        if len(mixed):
            position = self.active[bounds[mixed[0]] : bounds[mixed[0] + 1]]
            items = self.order[position]
            shorter = items[self.lengths[items] == depth + 1][0]
            longer = items[self.lengths[items] > depth + 1][0]
            raise CatalogueError(f"the path of item {shorter} is a prefix of the path of item {longer}")
        self.group = np.repeat(np.arange(len(size)), size)[~ends]
        self.active = self.active[~ends]

    def _finish(self, *, degree: Int32, edge_token: Int32, first: Int32, end: Int32, level_start: Int32) -> TokenTrie:
        row_start = np.zeros(len(degree) + 1, dtype=np.int32)
        np.cumsum(degree, out=row_start[1:])
        leaf_node = np.flatnonzero(degree == 0)
        leaf_node = leaf_node[np.argsort(first[leaf_node], kind="stable")]
        leaf_start = np.append(first[leaf_node], len(self.order)).astype(np.int32)
        leaf_at = np.repeat(np.arange(len(leaf_node), dtype=np.int32), np.diff(leaf_start))
        return TokenTrie(
            row_start=row_start,
            edge_token=edge_token,
            node_first=leaf_at[first],
            node_end=leaf_at[end - 1] + np.int32(1),
            leaf_node=leaf_node.astype(np.int32),
            leaf_start=leaf_start,
            leaf_items=self.order.astype(np.int32),
            level_start=level_start,
        )


def _joined(parts: list[Int32]) -> Int32:
    """The parts as one array; each is let go as soon as it is copied."""
    whole = np.empty(sum(map(len, parts)), dtype=np.int32)
    at = 0
    while parts:
        part = parts.pop(0)
        whole[at : at + len(part)] = part
        at += len(part)
    return whole
