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
        entropy = node_entropy(trie, leaf_prior)
        degree = np.diff(trie.row_start)
        parent = np.repeat(np.arange(trie.num_nodes, dtype=np.int32), degree)
        gain = entropy[parent] - entropy[1:]
        # Whether a token rules out an item is a question of sets: compare item counts, not floats.
        possible = _range_sum(trie, _cumulative(leaf_prior > 0, np.int64))
        decides = possible[parent] != possible[1:]
        gain = np.where(decides, np.maximum(gain, _SMALLEST), 0.0)
        sibling_gain = _normalise_siblings(gain, degree, trie.row_start).astype(np.float32)
        return InfoGainTable(
            information_gain=gain.astype(np.float32),
            # float32 rounds a gain of a few nats up to 1. With alpha 1 the weight would be 0, and 0 x -inf is no score.
            sibling_gain=np.minimum(sibling_gain, _LARGEST_BELOW_ONE),
        )


def node_entropy(trie: TokenTrie, leaf_prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy at each node, ``(num_nodes,)`` float64, nats: ``H(y) = -sum p(i) ln p(i)`` over the leaves below.

    ``p`` is normalised over the whole catalogue (arXiv 2506.13229); a leaf with prior 0 adds 0.
    """
    terms = np.zeros_like(leaf_prior)
    positive = leaf_prior > 0
    terms[positive] = -leaf_prior[positive] * _log(leaf_prior[positive])
    return np.asarray(_range_sum(trie, _cumulative(terms, np.float64)), dtype=np.float64)


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


def _range_sum(trie: TokenTrie, cumulative: NDArray[np.number]) -> NDArray[np.number]:
    return cumulative[trie.node_end] - cumulative[trie.node_first]


def _normalise_siblings(
    gain: NDArray[np.float64], degree: NDArray[np.int32], row_start: NDArray[np.int32]
) -> NDArray[np.float64]:
    inner = degree > 0
    starts = row_start[:-1][inner]
    lowest = np.repeat(np.minimum.reduceat(gain, starts), degree[inner])
    highest = np.repeat(np.maximum.reduceat(gain, starts), degree[inner])
    return np.asarray((gain - lowest) / (highest - lowest + SIBLING_EPSILON))
