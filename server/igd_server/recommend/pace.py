"""How long recommendations take of late: what admission expects of the next one."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_GAIN = (
    1 / 32
)  # of the moving averages. 1/8 follows a change sooner, but at 3x overload 5 % of all wait in vain, not 2 %
_MAX_CALLERS = 1024  # whose own averages are kept, the latest
_SPREAD = 2.0  # mean deviations above the mean that a recommendation is expected to take at most


class _Average:
    """A moving average and its mean deviation, seconds (as TCP times its peers)."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._deviation = 0.0

    @property
    def most(self) -> float:
        """What all but unusual ones stay below."""
        return self.mean + _SPREAD * self._deviation

    def observe(self, value: float) -> None:
        if not self.mean:
            self.mean, self._deviation = value, value / 2
            return
        error = value - self.mean
        self.mean += _GAIN * error
        self._deviation += _GAIN * (abs(error) - self._deviation)


class Pace:
    """How long a slot is held for an ordinary request, and how long that would be with the model to itself.

    Costs are in ordinary requests. Two views, since a model may do several at once as fast as one (a GPU), or share
    itself among them: by the first an answer takes as long as the caller's answers of late, by the second it takes its
    own time and that of what the model does beside it. Where both apply, the shorter counts.
    """

    def __init__(self) -> None:
        self._held = _Average()
        self._alone = _Average()
        self._of_callers: OrderedDict[str, _Average] = OrderedDict()

    def mean_s(self, caller: str) -> float:
        """Seconds that a caller's slot is held, an ordinary request."""
        return self._of_callers.get(caller, self._held).mean

    def mean_of(self, caller: str, cost: float, beside: float) -> float:
        """Expected seconds of a request of this cost; ``beside``: cost of what the model does meanwhile."""
        return min(self.mean_s(caller) * cost, self._alone.mean * (cost + beside))

    def most_of(self, caller: str, cost: float, beside: float) -> float:
        """What it takes at most, unless it is unusual."""
        return min(self._of_callers.get(caller, self._held).most * cost, self.most_shared(cost, beside))

    def most_shared(self, cost: float, beside: float) -> float:
        """The same on a model that does one thing at a time."""
        return self._alone.most * (cost + beside)

    def observe(self, caller: str, held_s: float, share_s: float, cost: float, *, finished: bool) -> None:
        """Take one slot's time in. Of work broken off it is only known that it takes longer.

        Args:
            caller: who held it.
            held_s: how long the slot was held.
            share_s: of that, the caller's fair share of the model for it (`Shares`).
            cost: of the request.
            finished: whether the work was done.
        """
        if not finished and held_s < self.mean_s(caller) * cost:
            return
        self._held.observe(held_s / cost)
        self._alone.observe(share_s / cost)
        own = self._of_callers.pop(caller, None) or _Average()
        own.observe(held_s / cost)
        self._of_callers[caller] = own
        if len(self._of_callers) > _MAX_CALLERS:
            self._of_callers.popitem(last=False)


@dataclass(slots=True)
class _Share:
    """Of one caller: slots held, seconds of the model that each has had, and the common clock at the last change."""

    slots: int = 0
    had_s: float = 0.0
    changed_at: float = 0.0


class Shares:
    """Seconds of the model that a slot is due: time, divided among callers and then among each one's slots."""

    def __init__(self) -> None:
        self._callers: dict[str, _Share] = {}
        self._clock = 0.0  # seconds that each caller has been due
        self._seen_at = 0.0

    def of(self, caller: str, now: float) -> float:
        """Seconds that a slot of the caller has been due, since she last held none."""
        self._advance(now)
        share = self._callers[caller]
        return share.had_s + (self._clock - share.changed_at) / share.slots

    def change(self, caller: str, slots: int, now: float) -> None:
        """A caller takes a slot, or gives one back."""
        self._advance(now)
        share = self._callers.setdefault(caller, _Share())
        if share.slots:
            share.had_s += (self._clock - share.changed_at) / share.slots
        share.changed_at = self._clock
        share.slots += slots
        if not share.slots:
            del self._callers[caller]

    def _advance(self, now: float) -> None:
        if self._callers:
            self._clock += (now - self._seen_at) / len(self._callers)
        self._seen_at = now
