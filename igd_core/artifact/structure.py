"""Check that stored arrays form a trie. A file with a correct hash can still hold wrong indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie


def check_structure(trie: TokenTrie, vocab_size: int, part: str) -> None:
    """Check every array of a trie. The arrays must have the right lengths, none of them 0.

    Raises:
        ArtifactError: an index points outside its array, or an edge leads back up; names the array.
    """
    for name, sound in _checks(trie, vocab_size):
        if not sound:
            raise ArtifactError(f"{part}: {name} is not a trie's")


def _checks(trie: TokenTrie, vocab_size: int) -> Iterator[tuple[str, bool]]:
    """One array after another: later checks index with arrays that earlier checks found sound."""
    start, end = trie.row_start[:-1], trie.row_start[1:]
    is_leaf = start == end
    # Edge e leads to node e + 1: if rows begin behind their own node, no edge leads back, and every walk ends.
    downward = is_leaf | (start >= np.arange(trie.num_nodes, dtype=np.int32))
    yield "row_start", _runs(trie.row_start, 0, trie.num_edges) and bool((start <= end).all() and downward.all())
    yield "edge_token", bool(trie.edge_token.min() >= 0 and trie.edge_token.max() < vocab_size)
    yield "node_first", bool(trie.node_first.min() >= 0 and (trie.node_first < trie.node_end).all())
    yield "node_end", bool(trie.node_end.max() <= trie.num_leaves)
    yield "leaf_node", bool(trie.leaf_node.min() > 0 and trie.leaf_node.max() < trie.num_nodes)
    own_leaf = trie.node_first[trie.leaf_node] == np.arange(trie.num_leaves, dtype=np.int32)
    yield "leaf_node", bool(own_leaf.all() and is_leaf[trie.leaf_node].all() and is_leaf.sum() == trie.num_leaves)
    yield "leaf_start", _runs(trie.leaf_start, 0, trie.num_items) and _rises(trie.leaf_start)
    yield "leaf_items", bool((np.sort(trie.leaf_items) == np.arange(trie.num_items, dtype=np.int32)).all())
    yield "level_start", _runs(trie.level_start, 0, trie.num_nodes) and _rises(trie.level_start)


def _runs(array: NDArray[np.int32], first: int, last: int) -> bool:
    return bool(array[0] == first and array[-1] == last)


def _rises(array: NDArray[np.int32]) -> bool:
    # Not np.diff: int32 differences wrap around, so elements far outside the array would pass.
    return bool((array[:-1] < array[1:]).all())
