"""Numbers that flags of several commands take."""

from __future__ import annotations

from igd_core.ranges import MOST_SEED, Real, Several, Whole
from igd_core.search.query import MAX_BEAMS, MAX_K

__all__ = ["MOST_CUTOFF", "Real", "Several", "Whole", "alpha", "beams", "resamples", "seed", "wanted"]

MOST_CUTOFF = 10_000
"""Of a list: each row of an evaluation takes room for it."""


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
