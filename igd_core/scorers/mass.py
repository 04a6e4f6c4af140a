"""What an item scorer is, and what it says: a distribution over items, sparse where that is enough.

A scorer of your own has the two members of `ItemScorer`, and is handed to `Recommender`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from igd_core.errors import ModelFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.ids import ItemIndex

_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemMass:
    """A distribution over all items of a catalogue: a background, and what single items have besides.

    The background is popularity, each item counted once more than it was chosen, so that no item is without mass:
    ``p(i) = background * (freq(i) + 1) / (sum freq + num_items) + (sum of mass where items == i)``.

    Attributes:
        background: above 0 and at most 1; its share.
        items: ``(n,)`` integers, item rows in any order; one may occur several times. None: ``mass`` has a share for
            every item of the catalogue, in order.
        mass: ``(n,)`` float64, >= 0; with ``background`` they sum to 1.
    """

    background: float
    items: NDArray[np.integer] | None
    mass: NDArray[np.float64]

    def check(self, num_items: int) -> None:
        """Refuse what is no distribution.

        Raises:
            ModelFault: a share that is negative or not finite, a sum other than 1, no background, or a row that the
                catalogue of ``num_items`` has not.
        """
        if not 0.0 < self.background <= 1.0:
            raise ModelFault(f"item scorer: a background of {self.background}; above 0 and at most 1 can be")
        shape = (num_items,) if self.items is None else self.items.shape
        if shape != self.mass.shape or len(shape) != 1:
            raise ModelFault(f"item scorer: {shape} items and {self.mass.shape} shares")
        total = self.background + float(self.mass.sum())
        if len(self.mass) and not self.mass.min() >= 0.0:  # NaN fails this too
            raise ModelFault(f"item scorer: a share of {self.mass.min()}")
        if self.items is not None and len(self.items) and not 0 <= self.items.min() <= self.items.max() < num_items:
            raise ModelFault(f"item scorer: item rows {self.items.min()} to {self.items.max()} of {num_items}")
        if not abs(total - 1.0) <= _SUM_TOLERANCE:
            raise ModelFault(f"item scorer: its shares sum to {total}, not 1")


class ItemScorer(Protocol):
    """Says how likely each item comes next; immutable, and safe to ask from several threads."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever what it says may: answers are kept under it."""
        ...

    def mass(self, history: Sequence[ItemIndex]) -> ItemMass:
        """A distribution over items after ``history``, item rows, oldest first; it may be empty."""
        ...


BACKGROUND_ALONE = ItemMass(background=1.0, items=np.empty(0, np.int32), mass=np.empty(0, np.float64))
"""What a scorer says that knows nothing of a history: popularity."""
