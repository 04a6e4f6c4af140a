"""Random trie nodes, on which kernels and processors are timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie


def random_nodes(trie: TokenTrie, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Inner nodes at random depths of random paths, ``(rows,)`` int64."""
    leaves = rng.integers(trie.num_leaves, size=rows, dtype=np.int32)
    depths = rng.integers(np.searchsorted(trie.level_start, trie.leaf_node[leaves], side="right") - 1)
    nodes = np.empty(rows, dtype=np.int64)
    for depth in np.unique(depths):
        start, end = trie.level_start[depth : depth + 2]
        chosen = depths == depth
        # Nodes of one depth are in the order of their leaves.
        nodes[chosen] = start + np.searchsorted(trie.node_first[start:end], leaves[chosen], side="right") - 1
    return nodes
