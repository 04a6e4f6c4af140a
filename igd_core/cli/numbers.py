"""Flags that take numbers: each has its range, so that a value that means nothing is refused before any work.

``parser.add_argument("--keep", type=Whole("keep", least=1))``: what is out of range ends the command with one line that
names the flag and the value.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from igd_core.errors import InputError
from igd_core.search.query import MAX_BEAMS, MAX_K

MOST = 2**31 - 1
"""Of what has no narrower bound."""
MOST_CUTOFF = 10_000
"""Of a list: each row of an evaluation takes room for it."""
MOST_SEED = 2**32 - 1
"""Every library that draws takes a seed up to here."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from ``least`` to ``most``, both included."""

    name: str
    least: int = 0
    most: int = MOST

    def __call__(self, text: str) -> int:
        """Read it.

        Raises:
            InputError: it is no whole number, or out of range.
        """
        if not _WHOLE.fullmatch(text.strip()):
            raise InputError(f"{self.name}: {text[:40]!r} is not a whole number in {self.least}..{self.most}")
        value = int(text)
        if not self.least <= value <= self.most:
            raise InputError(f"{self.name}: {value} is not in {self.least}..{self.most}")
        return value


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number from ``least`` to ``most``, both included; ``above`` leaves ``least`` itself out."""

    name: str
    least: float = 0.0
    most: float = 1e9
    above: bool = False

    def __call__(self, text: str) -> float:
        """Read it.

        Raises:
            InputError: it is no number, not finite, or out of range.
        """
        bounds = f"{self.least:g}..{self.most:g}" + (f", {self.least:g} itself left out" if self.above else "")
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"{self.name}: {text[:40]!r} is not a number in {bounds}") from None
        fits = self.least <= value <= self.most and not (self.above and value == self.least)
        if not (fits and math.isfinite(value)):
            raise InputError(f"{self.name}: {value:g} is not in {bounds}")
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


def seed() -> Whole:
    """Of ``--seed``."""
    return Whole("seed", most=MOST_SEED)


def beams() -> Whole:
    """Of ``--beams``."""
    return Whole("beams", least=1, most=MAX_BEAMS)


def alpha() -> Real:
    """Of ``--alpha``."""
    return Real("alpha", most=1.0)


def resamples() -> Whole:
    """Of ``--resamples``: fewer give no interval, and more take memory for nothing."""
    return Whole("resamples", least=100, most=100_000)


def wanted() -> Whole:
    """Of ``--k``, the items of an answer."""
    return Whole("k", least=1, most=MAX_K)
