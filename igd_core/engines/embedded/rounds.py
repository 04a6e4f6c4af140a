"""Rounds of several sessions in one forward pass: what the model's thread runs for the embedded engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from igd_core.engines.embedded.parts import Outcome
from igd_core.engines.embedded.token_tree import grow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.engines.embedded.forward import Forward
    from igd_core.engines.embedded.token_tree import Growth

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Round(Protocol[T_co]):
    """What a session asks of a pass."""

    def growth(self) -> Growth:
        """What the pass has to feed."""
        ...

    def read(self, logits: torch.Tensor) -> T_co:
        """The answer, from ``(number wanted, vocabulary)`` logits."""
        ...


class JointRounds(Generic[T]):
    """Passes of one forward; several rounds a pass where it computes them so."""

    def __init__(self, forward: Forward, most_tokens: int | None = None) -> None:
        self.most_tokens = forward.most_tokens if most_tokens is None or not forward.most_tokens else most_tokens
        self.most_prompt_tokens = self.most_tokens or sys.maxsize
        """Of one prompt in a pass: a longer one is fed in several, since all others would wait for the whole of it."""
        self.split = 0
        """Passes that failed with several rounds in them, so that each was run by itself."""

    @torch.inference_mode()
    def run(self, parts: Sequence[Round[T]]) -> list[Outcome[T]]:
        """Compute and read rounds; one that fails before, in or after the pass leaves the others as they are."""
        outcomes: list[Outcome[T]] = [Outcome()] * len(parts)
        growths: dict[int, Growth] = {}
        for place, part in enumerate(parts):
            try:
                growths[place] = part.growth()
            except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to this part's caller
                outcomes[place] = Outcome(error=error)
        tokens = {place: growth.num_tokens for place, growth in growths.items()}
        for place, logits in self._logits(growths).items():
            outcomes[place] = _read(parts[place], logits, tokens[place])
        return outcomes

    def _logits(self, growths: Mapping[int, Growth]) -> dict[int, torch.Tensor | Exception]:
        if not growths:
            return {}
        try:
            return dict(zip(growths, grow(list(growths.values())), strict=True))
        except Exception as error:  # noqa: BLE001 - as above
            if len(growths) == 1:
                return dict.fromkeys(growths, error)
        self.split += 1
        return {place: found for each in growths.items() for place, found in self._logits(dict([each])).items()}


def _read(part: Round[T], logits: torch.Tensor | Exception, tokens: int) -> Outcome[T]:
    if isinstance(logits, Exception):
        return Outcome(error=logits)
    try:
        return Outcome(value=part.read(logits), tokens=tokens)
    except Exception as error:  # noqa: BLE001 - as above
        return Outcome(error=error, tokens=tokens)
