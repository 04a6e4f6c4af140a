"""What the model's thread is asked for: parts of passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """What came of one part of a pass: its value, or its error; and the tokens that were fed for it."""

    value: T | None = None
    error: Exception | None = None
    tokens: int = 0


class Passes(Protocol[P_contra, T]):
    """What computes parts, several in one pass."""

    @property
    def most_tokens(self) -> int:
        """Parts are added to a pass up to so many tokens; the first may have more. 0: none is added."""
        ...

    def run(self, parts: Sequence[P_contra]) -> Sequence[Outcome[T]]:
        """The outcome of each part. An error of one leaves the others as they are without it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[P, T]):
    """What a call wants to be computed.

    Attributes:
        passes: what computes it; calls share a pass only if theirs is the same object.
        what: the part itself.
        tokens: that are fed for it, at most.
        begins: whether it feeds a prompt. A pass has one such part at most: two would compute twice what their prompts
            share, which the second otherwise finds cached; and a prompt has tokens enough to be worth reading the
            weights for.
    """

    passes: Passes[P, T]
    what: P
    tokens: int = 0
    begins: bool = False
