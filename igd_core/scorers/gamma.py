"""Gamma, the weight of an item scorer in a search: one number, or one for each length of history.

A scorer knows other things after one choice than after fifty, and so does the model. So gamma may be a table,
``((0, 0.8), (5, 0.5))``: 0.8 for histories of up to four interactions, 0.5 from five on.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

GammaSteps: TypeAlias = tuple[tuple[int, float], ...]
"""``(interactions, gamma)``: gamma from that many interactions on, up to the next. The first begins at 0; they rise."""
Gamma: TypeAlias = float | GammaSteps
MAX_STEPS = 64


def gamma_after(gamma: Gamma, interactions: int) -> float:
    """Gamma after a history of so many interactions.

    >>> [gamma_after(((0, 0.8), (5, 0.5)), length) for length in (0, 4, 5, 900)]
    [0.8, 0.8, 0.5, 0.5]
    """
    if not isinstance(gamma, tuple):
        return gamma
    return next(value for least, value in reversed(gamma) if least <= interactions)


def checked_gamma(gamma: object) -> Gamma:
    """What a file or a setting says of gamma, lists as tuples.

    Raises:
        ValueError: no number from 0 to 1 and no table of such; says what is wrong.
    """
    if not isinstance(gamma, (list, tuple)):
        if type(gamma) not in {int, float} or not 0 <= gamma <= 1:  # type: ignore[operator]  # NaN fails this too
            raise ValueError(f"is {gamma!r}; 0 to 1 can be, or [[0, GAMMA], [INTERACTIONS, GAMMA], ...]")
        return gamma  # type: ignore[return-value]  # int or float
    if not 1 <= len(gamma) <= MAX_STEPS:
        raise ValueError(f"has {len(gamma)} steps; 1 to {MAX_STEPS} can be")
    steps = tuple(_step(each) for each in gamma)
    if steps[0][0] != 0:
        raise ValueError(f"begins at {steps[0][0]} interactions; its first step begins at 0")
    for (before, _), (least, _) in pairwise(steps):
        if least <= before:
            raise ValueError(f"has {least} interactions after {before}; they must rise")
    return steps


def shown_gamma(gamma: Gamma) -> str:
    """As people read it, and as reports name it.

    >>> shown_gamma(0.5), shown_gamma(((0, 0.8), (5, 0.5)))
    ('0.5', '0:0.8,5:0.5')
    """
    return ",".join(f"{least}:{value:g}" for least, value in gamma) if isinstance(gamma, tuple) else f"{gamma:g}"


def _step(step: object) -> tuple[int, float]:
    if not isinstance(step, (list, tuple)) or len(step) != 2:
        raise ValueError(f"has a step {step!r}; [INTERACTIONS, GAMMA] is one")
    least, value = step
    if type(least) is not int or not 0 <= least < 1 << 31:
        raise ValueError(f"has a step at {least!r} interactions; a whole number from 0 on is needed")
    if type(value) not in {int, float} or not 0 <= value <= 1:
        raise ValueError(f"is {value!r} from {least} interactions on; 0 to 1 can be")
    return least, value
