"""The recent pace of recommendations: how long admission expects the next one to take."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# Of the moving averages. 1/8 would follow a change sooner, but at 3x overload up to 2 % less is done in time, for the
# models that tests/unit/server/recommend/test_admission.py simulates.
_GAIN = 1 / 32
_MAX_CALLERS = 1024  # callers with averages of their own, the latest
_SPREAD = 2.0  # mean deviations above the mean that count as the most a recommendation takes


class _Average:
    """A moving average and its mean deviation, in seconds (as TCP estimates round-trip times)."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._deviation = 0.0

    @property
    def most(self) -> float:
        """The value that all but unusual ones stay below."""
        return self.mean + _SPREAD * self._deviation

    def observe(self, value: float) -> None:
        if not self.mean:
            self.mean, self._deviation = value, value / 2
            return
        error = value - self.mean
        self.mean += _GAIN * error
        self._deviation += _GAIN * (abs(error) - self._deviation)


class Pace:
    """How long a slot is held for an ordinary request, and how long it would be with the model to itself.

    Costs are in ordinary requests. There are two estimates, since a model may do several requests at once as fast as
    one (a GPU), or share itself among them: by the first, an answer takes as long as the caller's recent answers; by
    the second, it takes its own time and that of what the model does meanwhile. The shorter one counts.
    """

    def __init__(self) -> None:
        self._held = _Average()
        self._alone = _Average()
        self._of_callers: OrderedDict[str, _Average] = OrderedDict()

    def mean_s(self, caller: str) -> float:
        """Seconds that a caller's slot is held for an ordinary request."""
        return self._of_callers.get(caller, self._held).mean

    def most_s(self, caller: str) -> float:
        """The most that it is held for one, unless it is unusual or the server becomes slower."""
        return self._of_callers.get(caller, self._held).most

    def mean_of(self, caller: str, cost: float, beside: float) -> float:
        """Expected seconds of a request of this cost; ``beside``: cost of what the model does meanwhile."""
        return min(self.mean_s(caller) * cost, self._alone.mean * (cost + beside))

    def most_of(self, caller: str, cost: float, beside: float) -> float:
        """The longest that such a request takes, unless it is unusual."""
        return min(self.most_s(caller) * cost, self.most_shared(cost, beside))

    def most_shared(self, cost: float, beside: float) -> float:
        """The same for a model that does one request at a time."""
        return self._alone.most * (cost + beside)

    def observe(self, caller: str, held_s: float, share_s: float, cost: float, *, finished: bool) -> None:
        """Add one slot's time to the averages. Work that was broken off only shows that it takes longer.

        Args:
            caller: who held the slot.
            held_s: how long the slot was held.
            share_s: the caller's fair share of the model during that time (`Shares`).
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
    """One caller's slots, the seconds of the model due to each, and the common clock at the last change."""

    slots: int = 0
    had_s: float = 0.0
    changed_at: float = 0.0


class Shares:
    """Seconds of the model due to a slot: time divided among callers, then among each one's slots."""

    def __init__(self) -> None:
        self._callers: dict[str, _Share] = {}
        self._clock = 0.0  # seconds that each caller has been due
        self._seen_at = 0.0

    def of(self, caller: str, now: float) -> float:
        """Seconds due to a slot of the caller, since the caller last held none."""
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
