"""Interactions: who chose which item, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.datasets.exposure import Exposure

Seconds: TypeAlias = "NDArray[np.int64] | NDArray[np.float64]"
"""Seconds since 1970; int64 when the source holds only whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interactions:
    """Interactions in file order; a user and an item may meet more than once.

    Attributes:
        user_ids: distinct users, in order of first appearance.
        user: ``(n,)`` int32, index into `user_ids`.
        item: ``(n,)`` int32, `ItemIndex`.
        timestamp: ``(n,)`` int64 or float64, seconds since 1970, finite.
        rating: ``(n,)`` float64, NaN where missing; None when the source has no ratings.
        exposure: what was shown with each; None when the source does not know.
    """

    user_ids: Sequence[str]
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    timestamp: Seconds
    rating: NDArray[np.float64] | None = None
    exposure: Exposure | None = None

    def __len__(self) -> int:
        return len(self.item)

    def take(self, chosen: NDArray[np.intp]) -> Interactions:
        """The interactions at these positions, in the given order; user codes stay."""
        return Interactions(
            user_ids=self.user_ids,
            user=self.user[chosen],
            item=self.item[chosen],
            timestamp=self.timestamp[chosen],
            rating=None if self.rating is None else self.rating[chosen],
            exposure=None if self.exposure is None else self.exposure.take(chosen),
        )
