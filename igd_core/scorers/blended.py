"""Several scorers as one: the weighted mean of their distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.scorers.mass import ItemMass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.ids import ItemIndex
    from igd_core.scorers.network import NetworkPart
    from igd_core.scorers.rows import SparseRows
    from igd_core.scorers.sasrec import SASRecScorer
    from igd_core.scorers.sparse import SparseScorer


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendedPart:
    """What one file holds of several scorers.

    Attributes:
        parts: of each, two or more.
    """

    parts: tuple[SparseRows | NetworkPart, ...]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array; the names of the second scorer's begin with ``also1.``, and so on."""
        return {
            f"{name_prefix(place)}{name}": array
            for place, part in enumerate(self.parts)
            for name, array in part.arrays().items()
        }

    def fault(self, num_items: int) -> str | None:
        """The array that is not such a scorer's of ``num_items`` items; None where all are."""
        for place, part in enumerate(self.parts):
            if (found := part.fault(num_items)) is not None:
                return f"{name_prefix(place)}{found}"
        return None


def name_prefix(place: int) -> str:
    """What the names of arrays of the scorer at this place begin with."""
    return f"also{place}." if place else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendedScorer:
    """``p(j) = sum over k of share_k * p_k(j)``.

    Where one scorer knows little of a history it is near popularity, and the others speak up. Which kinds help one
    another is a matter of the data; validation rows say it.

    Attributes:
        scorers: two or more.
        shares: of each, above 0; they sum to 1.
        fingerprint: of all of them and their shares.
    """

    scorers: tuple[SparseScorer | SASRecScorer, ...]
    shares: tuple[float, ...]
    fingerprint: str

    @property
    def part(self) -> BlendedPart:
        """What its file holds."""
        return BlendedPart(parts=tuple(each.part for each in self.scorers))

    def mass(self, history: Sequence[ItemIndex]) -> ItemMass:
        """After ``history``, item rows, oldest first; sparse where all of the scorers are.

        Raises:
            ModelFault: the scores of a network are not finite.
        """
        found = [(share, each.mass(history)) for share, each in zip(self.shares, self.scorers, strict=True)]
        background = sum(share * each.background for share, each in found)
        sparse = [(each.items, share * each.mass) for share, each in found if each.items is not None]
        dense = [share * each.mass for share, each in found if each.items is None]
        if not dense:
            items, mass = (np.concatenate(column) for column in zip(*sparse, strict=True))
            return ItemMass(background=background, items=items, mass=mass)
        total = np.sum(dense, axis=0)
        for items, mass in sparse:
            np.add.at(total, items, mass)
        return ItemMass(background=background, items=None, mass=total)
