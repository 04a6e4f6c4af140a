"""Numbers as people write them, each with its range: what means nothing is refused before any work.

``Whole("keep", least=1)("0")``: what is out of range is one line that names the setting and the value.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from igd_core.errors import InputError

MOST = 2**31 - 1
"""Of a whole number that has no narrower bound."""
MOST_WHOLE = 1 << 59
"""Of one that is bytes."""
MOST_REAL = 1e9
"""Of any other number without one."""
MOST_SEED = 2**32 - 1
"""Every library that draws takes a seed up to here."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from ``least`` to ``most``, both included."""

    name: str
    least: int = 0
    most: int = MOST

    def __str__(self) -> str:
        return f"{self.least}..{self.most}"

    def __call__(self, text: str) -> int:
        """Read it.

        Raises:
            InputError: it is no whole number, or out of range.
        """
        if not _WHOLE.fullmatch(text.strip()):
            raise InputError(f"{self.name}: {text[:40]!r} is not a whole number in {self}")
        value = int(text)
        if not self.least <= value <= self.most:
            raise InputError(f"{self.name}: {value} is not in {self}")
        return value


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number from ``least`` to ``most``, both included; ``above`` leaves out ``least``, ``below`` ``most``."""

    name: str
    least: float = 0.0
    most: float = MOST_REAL
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        left_out = [f"{at:g}" for at, out in ((self.least, self.above), (self.most, self.below)) if out]
        return f"{self.least:g}..{self.most:g}" + "".join(f", {at} itself left out" for at in left_out)

    def __call__(self, text: str) -> float:
        """Read it.

        Raises:
            InputError: it is no number, not finite, or out of range.
        """
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"{self.name}: {text[:40]!r} is not a number in {self}") from None
        left_out = (self.above and value == self.least) or (self.below and value == self.most)
        if left_out or not (math.isfinite(value) and self.least <= value <= self.most):
            raise InputError(f"{self.name}: {text.strip()[:40]} is not in {self}")
        return value


@dataclass(frozen=True, slots=True)
class Several:
    """Numbers with commas between them, each kept once; at least one."""

    one: Whole | Real

    @property
    def name(self) -> str:
        """Of the flag."""
        return self.one.name

    def __call__(self, text: str) -> list[int | float]:
        """Read them.

        Raises:
            InputError: there is none, or one is not what `one` takes.
        """
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise InputError(f"{self.name}: at least one value is needed")
        return list(dict.fromkeys(self.one(part) for part in parts))
