"""What else was shown with a choice, and how likely the chosen item was to be looked at.

The propensity is that of the position-based model (Joachims, Swaminathan and Schnabel 2017, arXiv 1608.04468): an item
at rank r is looked at with probability ``r ** -power``, 1 at the first rank. With power 1 the tenth is looked at a
tenth as often as the first; with power 0 all are. Divide a row's loss by its propensity to weigh choices as if all
ranks were looked at alike. It says nothing of which items the server ranked: an answer's ranking has no chance in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exposure:
    """Of each interaction, where it was shown, and beside what.

    Attributes:
        propensity: ``(n,)`` float64 in (0, 1]; NaN where nobody knows that it was shown.
        negative_start: ``(n + 1,)`` int64; row i's negatives are ``negative_start[i]:negative_start[i + 1]``.
        negative_item: ``(negative_start[-1],)`` int32, `ItemIndex`, in the order of their ranks.
        negative_propensity: the same length, float64 in (0, 1].
    """

    propensity: NDArray[np.float64]
    negative_start: NDArray[np.int64]
    negative_item: NDArray[np.int32]
    negative_propensity: NDArray[np.float64]

    def take(self, chosen: NDArray[np.intp]) -> Exposure:
        """The rows at these positions, in the given order."""
        begin, end = self.negative_start[chosen], self.negative_start[chosen + 1]
        start = np.concatenate(([0], np.cumsum(end - begin))).astype(np.int64)
        gather = np.repeat(begin - start[:-1], end - begin) + np.arange(start[-1])
        return Exposure(
            propensity=self.propensity[chosen],
            negative_start=start,
            negative_item=self.negative_item[gather],
            negative_propensity=self.negative_propensity[gather],
        )


def propensity_at(rank: NDArray[np.int64], power: float) -> NDArray[np.float64]:
    """How likely an item at each rank, from 1, is to be looked at: ``rank ** -power``.

    >>> propensity_at(np.array([1, 2, 4]), 1.0).tolist()
    [1.0, 0.5, 0.25]
    """
    return np.asarray(rank, np.float64) ** -power
