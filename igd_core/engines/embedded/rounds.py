"""Rounds of several sessions in one forward pass: what the model's thread runs for the embedded engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from igd_core.engines.embedded.parts import Outcome
from igd_core.engines.embedded.token_tree import grow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.engines.embedded.forward import Forward
    from igd_core.engines.embedded.token_tree import Growth

T = TypeVar("T")


class Round(Protocol):
    """What a session asks of a pass."""

    def growth(self) -> Growth:
        """What the pass has to feed."""
        ...


R = TypeVar("R", bound=Round)


class JointRounds(Generic[R, T]):
    """Passes of one forward; several rounds a pass where it computes them so."""

    def __init__(
        self,
        forward: Forward,
        read: Callable[[Sequence[R], Sequence[torch.Tensor]], Sequence[T | Exception]],
        most_tokens: int | None = None,
    ) -> None:
        """Compute by ``forward``.

        Args:
            forward: runs the model.
            read: the answers of rounds, or the errors of some, from the ``(number wanted, vocabulary)`` logits of each.
            most_tokens: of several rounds in a pass; 0 gives each a pass of its own, None leaves it to the forward.
        """
        self.most_tokens = forward.most_tokens if most_tokens is None or not forward.most_tokens else most_tokens
        self.most_prompt_tokens = self.most_tokens or sys.maxsize
        """Of one prompt in a pass: a longer one is fed in several, since all others would wait for the whole of it."""
        self.split = 0
        """Passes that failed with several rounds in them, so that each was run by itself."""
        self._read = read

    @torch.inference_mode()
    def run(self, parts: Sequence[R]) -> list[Outcome[T]]:
        """Compute and read rounds; one that fails before, in or after the pass leaves the others as they are."""
        outcomes: list[Outcome[T]] = [Outcome()] * len(parts)
        growths: dict[int, Growth] = {}
        for place, part in enumerate(parts):
            try:
                growths[place] = part.growth()
            except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to this part's caller
                outcomes[place] = Outcome(error=error)
        tokens = {place: growth.num_tokens for place, growth in growths.items()}
        computed: dict[int, torch.Tensor] = {}
        for place, logits in self._logits(growths).items():
            if isinstance(logits, Exception):
                outcomes[place] = Outcome(error=logits)
            else:
                computed[place] = logits
        answers = self._answers([parts[place] for place in computed], list(computed.values()))
        for place, answer in zip(computed, answers, strict=True):
            fed = tokens[place]
            if isinstance(answer, Exception):
                outcomes[place] = Outcome(error=answer, tokens=fed)
            else:
                outcomes[place] = Outcome(value=answer, tokens=fed)
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

    def _answers(self, parts: Sequence[R], logits: Sequence[torch.Tensor]) -> Sequence[T | Exception]:
        if not parts:
            return []
        try:
            return self._read(parts, logits)
        except Exception as error:  # noqa: BLE001 - as above
            if len(parts) == 1:
                return [error]
        return [answer for each in zip(parts, logits, strict=True) for answer in self._answers([each[0]], [each[1]])]
