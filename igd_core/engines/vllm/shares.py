"""Whose requests go first in vLLM's queue: callers by what they have been served, each one's most urgent first."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from igd_core.search.fairness import Accounts, Meter

if TYPE_CHECKING:
    from igd_core.search.fairness import Turn

_ORDINARY_TOKENS = 500.0  # used until the first request has ended
_STEPS = 16  # resolution of shares: parts of an ordinary request
_DEADLINE_BITS = 22
_DEADLINE_UNIT_S = 0.01


class EngineShares:
    """Priorities of rounds, lower first, as vLLM compares them; all methods belong to one event loop.

    The embedded engine's thread chooses the next call when it is free (`embedded.worker`). vLLM has a queue of its own
    and takes a number with each request: the caller's account, then the deadline.
    """

    def __init__(self) -> None:
        self._accounts = Accounts()
        self._meter = Meter(_ORDINARY_TOKENS)
        self._open: Counter[str] = Counter()
        self._since = 0.0

    def begin(self, turn: Turn, now: float) -> None:
        """A session opens; ``now`` is the time of the event loop."""
        caller = turn.callers[0]
        if not self._open:
            self._accounts, self._since = Accounts(), now  # nobody waits: there are no numbers to stay comparable with
        if not self._open[caller]:
            self._accounts.begin(caller)
        self._open[caller] += 1

    def priority(self, turn: Turn) -> int:
        """Priority of the request's next round, >= 0 and less than 2^63."""
        rank = self._accounts.rank(turn.callers[0], turn.left)
        most = (1 << _DEADLINE_BITS) - 1
        left_s = turn.deadline - self._since
        urgency = most if math.isinf(left_s) else min(most, max(0, int(left_s / _DEADLINE_UNIT_S)))
        return int(_STEPS * rank) << _DEADLINE_BITS | urgency

    def charge(self, turn: Turn, tokens: int) -> None:
        """Charge a round that took ``tokens`` of the model's work."""
        spent = self._meter.units(tokens)
        self._accounts.serve(turn.callers[0])
        self._accounts.charge(turn.callers[0], spent)
        turn.spent += spent

    def end(self, turn: Turn, tokens: int) -> None:
        """A session has closed after ``tokens`` in all; if it is complete, they tell what an ordinary request takes."""
        caller = turn.callers[0]
        self._open[caller] -= 1
        if self._open[caller] <= 0:
            del self._open[caller]
        if turn.complete and tokens > 0:
            self._meter.observe(tokens, turn.cost)
