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

# Beyond so many tokens a pass costs in proportion to them, so more of them would gain nothing and let everybody in it
# wait for all. A product of m rows does m / 2 operations for each byte of weights that it reads; CPUs do 10 to 30 in
# the time of reading one, so that a few times that many rows hide the reading. CPU time a token, behind a prompt of 150
# (one core with AVX2), of the whole pass of SmolLM2-135M's shape and of the demo's model, by tokens of a pass:
#
#     20          40          80          128         160         256         320
#     9.8, .277   7.6, .184   6.2, .126   5.7, .116   5.6, .106   5.7, .097   5.7, .099 ms
#
# With AVX-512 SmolLM2's row is 5.3, 3.9, 3.6, -, 3.2, 3.4: level from 80 on. So no machine is measured at its start.
MOST_TOKENS = 256


class Round(Protocol[T_co]):
    """What a session asks of a pass."""

    def growth(self) -> Growth:
        """What the pass has to feed."""
        ...

    def read(self, logits: torch.Tensor) -> T_co:
        """The answer, from ``(number wanted, vocabulary)`` logits."""
        ...


class JointRounds(Generic[T]):
    """Passes of one forward; several rounds a pass where it joins them."""

    def __init__(self, forward: Forward, most_tokens: int = MOST_TOKENS) -> None:
        self.most_tokens = most_tokens if forward.joins else 0
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
