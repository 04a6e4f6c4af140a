"""Information gain of every token, and the decoding weight that alpha and the gain make.

Source: arXiv 2506.13229. The prior stays normalised over the whole catalogue, never over a subtree, and items that
share a path are one outcome, so ``H(node)`` is a sum over the node's leaf range: one difference of a cumulative sum.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from igd_core.errors import CatalogueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie

F = TypeVar("F", bound=np.floating[Any])

SIBLING_EPSILON = 1e-7
"""Keeps the sibling normalisation finite where all siblings have the same gain (the reference's constant)."""

_NODES_AT_ONCE = 1 << 20
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST_BELOW_ONE = np.nextafter(np.float32(1.0), np.float32(0.0))


def decoding_weight(sibling_gain: NDArray[F], alpha: float | NDArray[F]) -> NDArray[F]:
    """The factor of a token's log-probability: ``1 - alpha * g`` (arXiv 2506.13229).

    Args:
        sibling_gain: of any shape, in [0, 1).
        alpha: 0..1; 0 leaves log-probabilities as they are.
    """
    return np.asarray(1.0 - alpha * sibling_gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoGainTable:
    """Information gain of every trie edge.

    Attributes:
        information_gain: ``(num_edges,)`` float32, nats, >= 0; exactly 0 where the token rules out no item of positive
            prior, and only there.
        sibling_gain: ``(num_edges,)`` float32 in [0, 1); ``(IG - min) / (max - min + 1e-7)`` over the edges of one
            node. Decoding multiplies a log-probability by the `decoding_weight` that it gives.
    """

    information_gain: NDArray[np.float32]
    sibling_gain: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays that an artifact stores, by attribute name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def build(trie: TokenTrie, leaf_prior: NDArray[np.float64]) -> InfoGainTable:
        """Compute both arrays from the prior of each leaf.

        Args:
            trie: the catalogue's trie.
            leaf_prior: ``(num_leaves,)`` float64, >= 0, sums to 1.

        Raises:
            CatalogueError: wrong shape, a negative or non-finite prior, or a sum other than 1.
        """
        _check_prior(leaf_prior, trie.num_leaves)
        sums = _Sums(
            entropy=_cumulative(_terms(leaf_prior), np.float64),
            possible=_cumulative(leaf_prior > 0, np.int64),
        )
        information_gain = np.empty(trie.num_edges, dtype=np.float32)
        sibling_gain = np.empty(trie.num_edges, dtype=np.float32)
        # Block by block: arrays of doubles for all edges of 20 million items would be gigabytes each.
        for start in range(0, trie.num_nodes, _NODES_AT_ONCE):
            nodes = slice(start, min(start + _NODES_AT_ONCE, trie.num_nodes))
            edges = slice(int(trie.row_start[nodes.start]), int(trie.row_start[nodes.stop]))
            if edges.start < edges.stop:
                gain = _gain_of(trie, sums, nodes, edges)
                degree = np.diff(trie.row_start[nodes.start : nodes.stop + 1])
                information_gain[edges] = gain
                sibling_gain[edges] = _normalise_siblings(gain, degree)
        # float32 rounds a gain of a few nats up to 1. With alpha 1 the weight would be 0, and 0 x -inf is no score.
        np.minimum(sibling_gain, _LARGEST_BELOW_ONE, out=sibling_gain)
        return InfoGainTable(information_gain=information_gain, sibling_gain=sibling_gain)


def node_entropy(trie: TokenTrie, leaf_prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy at each node, ``(num_nodes,)`` float64, nats: ``H(y) = -sum p(i) ln p(i)`` over the leaves below.

    ``p`` is normalised over the whole catalogue (arXiv 2506.13229); a leaf with prior 0 adds 0.
    """
    return np.asarray(_range_sum(trie, _cumulative(_terms(leaf_prior), np.float64), slice(None)), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """Cumulative sums over the leaves, ``(num_leaves + 1,)``: entropy terms, and leaves of positive prior."""

    entropy: NDArray[np.number]
    possible: NDArray[np.number]


def _gain_of(trie: TokenTrie, sums: _Sums, nodes: slice, edges: slice) -> NDArray[np.float64]:
    """Information gain of the ``edges`` that leave some ``nodes``, ``(num_edges,)`` float64."""
    children = slice(edges.start + 1, edges.stop + 1)
    degree = np.diff(trie.row_start[nodes.start : nodes.stop + 1])
    gain = np.repeat(_range_sum(trie, sums.entropy, nodes), degree) - _range_sum(trie, sums.entropy, children)
    # Whether a token rules out an item is a question of sets: compare item counts, not floats.
    decides = np.repeat(_range_sum(trie, sums.possible, nodes), degree) != _range_sum(trie, sums.possible, children)
    return np.where(decides, np.maximum(gain, _SMALLEST), 0.0)


def _terms(leaf_prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """``-p ln p`` of each leaf; 0 where p is 0."""
    terms = np.zeros_like(leaf_prior)
    positive = leaf_prior > 0
    terms[positive] = -leaf_prior[positive] * _log(leaf_prior[positive])
    return terms


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of positive ``values``, the same to the bit on every machine.

    A version hashes the gains. numpy does not promise that its logarithm agrees in the last bit between processors,
    and a gain is a difference of sums of logarithms. A decimal logarithm is rounded correctly everywhere.
    Priors are ratios of counts, so there are few distinct ones (40 us each).
    """
    distinct, place = np.unique(values, return_inverse=True)
    with decimal.localcontext(prec=20):
        logs = [float(decimal.Decimal(value).ln()) for value in distinct.tolist()]
    return np.array(logs, dtype=np.float64)[place]


def leaf_prior_of(trie: TokenTrie, item_prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prior of each leaf, ``(num_leaves,)`` float64: items that share a path are one outcome."""
    return np.add.reduceat(item_prior[trie.leaf_items], trie.leaf_start[:-1])


def _check_prior(prior: NDArray[np.float64], num_leaves: int) -> None:
    if prior.shape != (num_leaves,):
        raise CatalogueError(f"prior has shape {prior.shape}, the trie has {num_leaves} leaves")
    wrong = ~(np.isfinite(prior) & (prior >= 0))
    if wrong.any():
        raise CatalogueError(f"prior must be finite and >= 0, found {prior[wrong][:1]}")
    if abs(prior.sum() - 1.0) > 1e-6:
        raise CatalogueError(f"prior sums to {prior.sum()}, not 1")


def _cumulative(values: NDArray[np.generic], dtype: type[np.number]) -> NDArray[np.number]:
    total = np.zeros(len(values) + 1, dtype=dtype)
    np.cumsum(values, out=total[1:])
    return total


def _range_sum(trie: TokenTrie, cumulative: NDArray[np.number], nodes: slice) -> NDArray[np.number]:
    """Of each of these nodes, the sum over the leaves below it."""
    return cumulative[trie.node_end[nodes]] - cumulative[trie.node_first[nodes]]


def _normalise_siblings(gain: NDArray[np.float64], degree: NDArray[np.int32]) -> NDArray[np.float64]:
    """``(IG - min) / (max - min + 1e-7)`` among siblings; ``degree`` of nodes whose edges follow one another."""
    inner = degree > 0
    starts = (np.cumsum(degree) - degree)[inner]
    lowest = np.repeat(np.minimum.reduceat(gain, starts), degree[inner])
    highest = np.repeat(np.maximum.reduceat(gain, starts), degree[inner])
    return np.asarray((gain - lowest) / (highest - lowest + SIBLING_EPSILON))
