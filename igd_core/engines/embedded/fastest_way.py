"""How many cores compute a pass fastest, here and now.

It depends on the model's size, on the processor, on how long the system takes to wake a thread, and on what else runs;
the last changes while a server runs. So nothing is assumed: each way is tried, the fastest is used, and each other one
is tried again now and then. All ways give the same (`lanes`).
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ONE_CORE = 1
"""The way that leaves the other cores to others."""
_RECENT = 3
_TRY_AFTER = 64
"""Passes between two trials. A way that takes three times as long then costs 3 % of the time."""
_FIXED_TOKENS = 32
"""A pass costs about as much as so many tokens before its first one (tests/bench/passes.py, 1 and 80 tokens)."""
_WORTH_IT = 1.1
"""How much faster than `ONE_CORE` a way must be."""


class FastestWay:
    """Remembers what passes took; those of about as many tokens are compared with one another.

    A way is a number of lanes; 0 is none, where torch splits each step among all cores.
    """

    def __init__(self) -> None:
        self._took: defaultdict[tuple[int, int], deque[float]] = defaultdict(_no_passes)
        self._used: Counter[int] = Counter()

    def choose(self, tokens: int, ways: Sequence[int]) -> int:
        """The way for a pass of so many tokens, of those that are possible."""
        if len(ways) == 1:
            return ways[0]
        size = tokens.bit_length()
        took = {way: self._took[size, way] for way in ways}
        least_known = min(ways, key=lambda way: len(took[way]))
        if len(took[least_known]) < _RECENT:
            return least_known
        median = {way: statistics.median(took[way]) for way in ways}
        fastest = min(ways, key=lambda way: median[way])
        others = [way for way in ways if way != fastest]
        promising = next((way for way in others if took[way][-1] < median[fastest]), None)
        if promising is not None:
            return promising
        self._used[size] += 1
        trial, passes = divmod(self._used[size], _TRY_AFTER)
        return fastest if passes else others[trial % len(others)]

    def took(self, tokens: int, way: int, seconds: float) -> None:
        """A pass of so many tokens took so long; infinity if it failed."""
        cost = seconds / (tokens + _FIXED_TOKENS)
        self._took[tokens.bit_length(), way].append(cost if way == ONE_CORE else cost * _WORTH_IT)


def _no_passes() -> deque[float]:
    return deque(maxlen=_RECENT)
