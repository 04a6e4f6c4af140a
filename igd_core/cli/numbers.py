"""Numbers that flags of several commands take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from igd_core.ranges import MOST_SEED, Real, Several, Whole
from igd_core.search.query import MAX_BEAMS, MAX_K, MAX_LENGTH_PENALTY, MAX_TEMPERATURE, MIN_TEMPERATURE

__all__ = ["Real", "Several", "Whole", "alpha", "beams", "resamples", "seed", "wanted"]

Beams = Annotated[int, Field(ge=1, le=MAX_BEAMS)]
Wanted = Annotated[int, Field(ge=1, le=MAX_K)]
"""Items of an answer."""
LengthPenalty = Annotated[float, Field(ge=0, le=MAX_LENGTH_PENALTY)]
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
Resamples = Annotated[int, Field(ge=100, le=100_000)]
"""Of a bootstrap: fewer give no interval, and more take memory for nothing."""
Concurrency = Annotated[int, Field(ge=1, le=4096)]


def seed() -> Whole:
    """Of ``--seed``."""
    return Whole("seed", most=MOST_SEED)


def beams() -> Whole:
    """Of ``--beams``."""
    return Whole("beams", least=1, most=MAX_BEAMS)


def alpha() -> Real:
    """Of ``--alpha``."""
    return Real("alpha", most=1.0)


def gamma() -> Real:
    """Of ``--gamma``."""
    return Real("gamma", most=1.0)


def resamples() -> Whole:
    """Of ``--resamples``."""
    return Whole("resamples", least=100, most=100_000)


def wanted() -> Whole:
    """Of ``--k``, the items of an answer."""
    return Whole("k", least=1, most=MAX_K)
