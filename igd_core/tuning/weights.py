"""The weight of each response token in the loss, from beta and the token's information gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from igd_core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weighting = Literal["igd", "position", "gain"]

WEIGHTINGS: tuple[Weighting, ...] = ("igd", "position", "gain")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWeights:
    """Weights in ``beta..1``; with ``beta = 1`` each of them is plain supervised tuning.

    Attributes:
        beta: the lowest weight, 0 < beta <= 1.
        weighting: ``igd``: ``beta`` where the information gain is 0, else 1 (arXiv 2506.13229).
            ``position``: from 1 at the first token evenly down to ``beta`` at the last, that paper's rival "Pos".
            ``gain``: ``beta + (1 - beta) * (1 - exp(-IG))``, which grows with the gain in nats; not from the paper.
    """

    beta: float = 0.2
    weighting: Weighting = "igd"

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise InputError(f"beta: {self.beta:g}; it must lie above 0 and be at most 1")
        if self.weighting not in WEIGHTINGS:
            raise InputError(f"weighting: {self.weighting!r}; one of {', '.join(WEIGHTINGS)}")

    def of_response(self, gain: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights of one response's tokens.

        Args:
            gain: ``(t,)`` float32, information gain of each of its tokens, nats.

        Returns:
            ``(t,)`` float32.
        """
        import numpy as np

        if self.weighting == "igd":
            decisive = (gain > 0).astype(np.float64)
        elif self.weighting == "position":
            decisive = np.linspace(1.0, 0.0, len(gain)) if len(gain) > 1 else np.ones(1)
        else:
            decisive = -np.expm1(-gain.astype(np.float64))
        return (self.beta + (1.0 - self.beta) * decisive).astype(np.float32)
