"""Rewards of ranked groups (ReRe, arXiv 2510.12211; MiniOneRec, 2510.24431) and their advantages (GRPO, 2402.03300).

A group is the list that the model itself gives for a row: ``(rows, g)`` integers, best first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def discounts(size: int) -> NDArray[np.float64]:
    """``1 / log2(rank + 1)`` of ranks 1 to ``size``, ``(size,)`` float64; what NDCG counts a place."""
    return np.asarray(1.0 / np.log2(np.arange(2, size + 2)))


def discounted_gain(lists: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """The discount of the target's place, 0 where the list lacks it: ``(rows,)`` float64; its mean is NDCG.

    >>> discounted_gain(np.array([[7, 3, 5], [4, 2, 9]]), np.array([5, 8])).tolist()
    [0.5, 0.0]
    """
    return np.asarray(((lists == target[:, None]) * discounts(lists.shape[1])).sum(axis=1))


def rewards(groups: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """``(rows, g)`` float64: 1 for the target, and for each miss beside it its share of -1, by its discount.

    A miss at a high rank is punished more. All are 0 where the group lacks the target; elsewhere they sum to 0.

    >>> rewards(np.array([[7, 3], [4, 2]]), np.array([3, 8])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    hit = groups == target[:, None]
    miss = np.where(hit, 0.0, discounts(groups.shape[1]))
    ranked = miss / miss.sum(axis=1, keepdims=True)
    return np.where(hit.any(axis=1, keepdims=True), hit - ranked, 0.0)


def advantages(reward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewards less their group's mean, over its standard deviation (of the group, not a sample): ``(rows, g)`` float64.

    0 throughout a group whose rewards are equal.
    """
    centred = reward - reward.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0))
