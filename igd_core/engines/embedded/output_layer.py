"""The output layer of the own forward: logits of the whole vocabulary, or of a few tokens of it.

Where scores are normalised over the children of trie nodes, only theirs are wanted: the weight's rows for them are
gathered, and the rest of it, a fifth of SmolLM2-135M's weights, is neither read nor multiplied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from igd_core.engines.embedded.packed_linear import filled_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from igd_core.engines.embedded.packed_linear import PackedLinear

# A gathered row costs more than one that is laid out. CPU ms of 1, 10, 30 and 60 rows of SmolLM2-135M's output layer,
# one core with AVX-512, all 49,152 tokens, and an eighth, a quarter and a half of them gathered:
#
#     all              eighth              quarter              half
#     7, 10, 18, 33    3.4, 4.6, 6.6, 8    6.2, 9.0, 12, 18     43, 48, 55, 66
_MOST_GATHERED = 1 / 4
_PROBES = 4
_TOLERANCE = 1e-4  # of the spread of the logits; an adapter on the output layer alone changes far more


class OutputLayer:
    """A model's output layer. Its weight is the embedding's, in most small models; then tokens can be picked."""

    def __init__(self, packed: PackedLinear, embedding: nn.Embedding, *, tied: bool) -> None:
        """Tokens are picked by ``embedding`` if it is ``tied``, and proves to give the same logits."""
        self._packed = packed
        self._embedding = embedding if tied and _same(packed, embedding) else None

    @property
    def picks(self) -> bool:
        """Whether it computes the logits of a few tokens alone."""
        return self._embedding is not None

    def __call__(
        self, hidden: Sequence[torch.Tensor], next_tokens: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor]:
        """Logits of each part: ``(rows, width)`` to ``(rows, vocabulary)``, or ``(rows, n)`` where tokens are given.

        The whole vocabulary is computed in one product for all parts that want it. What a part gets does not depend on
        the others.
        """
        whole = [at for at, tokens in enumerate(next_tokens) if tokens is None or not self._gathers(tokens)]
        logits: dict[int, torch.Tensor] = {}
        if whole:
            rows = [len(hidden[at]) for at in whole]
            filled = filled_up(torch.cat([hidden[at] for at in whole]))
            logits.update(zip(whole, self._packed(filled)[: sum(rows)].split(rows), strict=True))
        found = []
        for at, (rows_of, tokens) in enumerate(zip(hidden, next_tokens, strict=True)):
            if tokens is None:
                found.append(logits[at])
            elif at in logits:
                found.append(logits[at].index_select(1, tokens))
            else:
                found.append(self._picked(rows_of, tokens))
        return found

    def _gathers(self, tokens: torch.Tensor) -> bool:
        return self.picks and len(tokens) <= _MOST_GATHERED * self._packed.out_features

    def _picked(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if self._embedding is None:
            raise RuntimeError("the output layer has a weight of its own")
        return linear(hidden, self._embedding.weight.index_select(0, tokens))


def _same(packed: PackedLinear, embedding: nn.Embedding) -> bool:
    """Whether both weights are one, by their products with a few random vectors: the packed one is not unpacked."""
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(_PROBES, packed.in_features, generator=generator)
    with torch.inference_mode():
        one, other = packed(probes), linear(probes, embedding.weight)
        return one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * one.std())
