"""BEAR's settings; `children` computes its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BearSettings:
    """BEAR: more weight for tokens that a beam is about to drop, or only just keeps (arXiv 2601.22925, SIGIR 2026).

    ``1 + weight * sigmoid((log p_target - log p_K) / xi)``, where ``p_K`` is the K-th highest probability among the
    siblings, the lowest where there are fewer. Without a gradient of its own, it is the gradient of the regulariser
    ``log sigmoid((log p_K - log p_target) / xi)`` up to a factor. Scaled to a mean of 1 over the branching tokens of a
    micro-batch, so that the learning rate means the same.

    Attributes:
        weight: their lambda, 0 for none.
        beams: K.
        xi: nats within which a token is near the edge of the beam.
    """

    weight: float = 0.0
    beams: int = 10
    xi: float = 2.75
