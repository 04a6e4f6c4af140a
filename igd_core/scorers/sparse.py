"""The scorer that an artifact holds: weights between items, summed over a history, backed off to popularity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.scorers.mass import BACKGROUND_ALONE, ItemMass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.ids import ItemIndex
    from igd_core.scorers.rows import SparseRows

_LEAST_SHARE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseScorer:
    """``p(j) = (sum over a of d^a w(h_a, j) + b * popularity(j)) / (sum over a and j of d^a w(h_a, j) + b)``.

    ``h_0`` is the history's last item, ``h_1`` the different one before it, and so on. With counts of transitions for w
    and d = 0 this is a first-order Markov chain under a Dirichlet prior. An item without entries says nothing, so
    earlier ones speak up, and popularity where none does.

    Attributes:
        rows: w.
        decay: d, 0..1.
        backoff: b, > 0; what popularity counts as beside the weights.
        fingerprint: of the rows and both settings.
    """

    rows: SparseRows
    decay: float
    backoff: float
    fingerprint: str

    @property
    def part(self) -> SparseRows:
        """What its file holds."""
        return self.rows

    def mass(self, history: Sequence[ItemIndex]) -> ItemMass:
        """After ``history``, item rows, oldest first; an item that occurs twice counts where it stands last."""
        share, items, weights = 1.0, [], []
        for item in dict.fromkeys(reversed(history)):
            found, weight = self.rows.of(item)
            items.append(found)
            weights.append(weight * np.float64(share))
            share *= self.decay
            if share < _LEAST_SHARE:
                break
        if not items:
            return BACKGROUND_ALONE
        mass = np.concatenate(weights)
        total = float(mass.sum()) + self.backoff
        return ItemMass(background=self.backoff / total, items=np.concatenate(items), mass=mass / total)
