"""How many recommendations run at once, who waits, and who is told at once that waiting would be in vain."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.errors import DeadlineExceeded
from server.problems import OVERLOADED, Finding, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from server.metrics import Metrics

RefusalReason: TypeAlias = Literal["queue-full", "expected-wait"]

_GAIN = (
    1 / 32
)  # of the moving averages. 1/8 follows a change sooner, but at 3x overload 5 % of all wait in vain, not 2 %
_SPREAD = 2.0  # mean deviations above the mean that a recommendation is expected to take at most
_MAX_RETRY_AFTER_S = 60


class Overloaded(Refused):
    """More waits than can be served in time; the same request may be taken after ``retry_after_s``.

    Attributes:
        reason: what there was too much of.
        retry_after_s: whole seconds, as the ``Retry-After`` header says.
    """

    def __init__(self, reason: RefusalReason, detail: str, *, retry_after_s: int) -> None:
        super().__init__(Finding(kind=OVERLOADED, detail=detail, headers={"Retry-After": str(retry_after_s)}))
        self.reason = reason
        self.retry_after_s = retry_after_s


class Admission:
    """At most ``max_running`` slots are held at once; the rest wait in order of arrival, ``max_waiting`` at most.

    Under overload a queue that is only bounded in length fills, every answer is as late as the queue is long, and all
    work may be done for clients that have given up. So a request is also refused when those before it, at the pace of
    late, leave it too little time; and one whose turn comes too late to be worth starting gives its turn on.

    Slots share one model. On a machine that has become slow, ``max_running`` recommendations at once may each take
    longer than they may, and then none is of use. So a slot that is free is refused too where one more would, at the
    pace of late, make all of them late.

    All methods belong to one event loop, whose clock is the only one used.
    """

    def __init__(self, max_running: int, max_waiting: int, *, metrics: Metrics | None = None) -> None:
        """``metrics`` is told of every refusal and every wait; nobody else need count them."""
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._running = 0
        # Turn to the loop's time at which it is too late. Ordered, with cheap removal anywhere: clients leave.
        self._waiting: OrderedDict[asyncio.Future[None], float] = OrderedDict()
        self._rejected: Counter[RefusalReason] = Counter()
        self._pace = _Pace()
        self._slot_seconds_sum = 0.0
        self._counted_at = 0.0

    @property
    def running(self) -> int:
        """Slots held."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def rejected(self) -> Mapping[RefusalReason, int]:
        """Refusals so far, by reason."""
        return self._rejected

    @contextlib.asynccontextmanager
    async def slot(self, timeout_s: float) -> AsyncIterator[float]:
        """Hold one slot; gives the seconds that were waited for it.

        Args:
            timeout_s: what is left of the request's time, for waiting and for the work itself.

        Raises:
            Overloaded: at once; the queue is full, or ``timeout_s`` will not do.
            DeadlineExceeded: the time ran out in the queue, or so nearly that the work was not worth starting.
        """
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        if self._running < self._max_running:
            self._refuse_if_crowded(timeout_s)
            self._take()
        else:
            self._refuse_if_in_vain(timeout_s)
            await self._turn(arrived + timeout_s)
        started, shared = loop.time(), self._slot_seconds()
        finished = False
        try:
            if self._metrics is not None:
                self._metrics.observe_admitted(started - arrived)
            yield started - arrived
            finished = True
        finally:
            held_s = loop.time() - started
            together = (self._slot_seconds() - shared) / held_s if held_s > 0 else float(self._running)
            self._pace.observe(held_s, together, finished=finished)
            self._pass_on()

    def _slot_seconds(self) -> float:
        """Time times slots held, since the beginning: a difference over its time is how many were held on average."""
        now = asyncio.get_running_loop().time()
        self._slot_seconds_sum += (now - self._counted_at) * self._running
        self._counted_at = now
        return self._slot_seconds_sum

    def _take(self) -> None:
        self._slot_seconds()
        self._running += 1

    def _refuse_if_crowded(self, timeout_s: float) -> None:
        """Raise Overloaded where slots are free, but one more recommendation at once makes all too late.

        What each takes is thought to grow with how many run, as on a machine without a core to spare. While they take
        less than half of the time that there is, nothing is refused: a burst may be what a GPU can do at once.
        """
        if not self._running or self._pace.mean_s <= timeout_s / 2:
            return
        expected_s = self._pace.most_s * (self._running + 1) / self._pace.together
        if expected_s > timeout_s:
            detail = f"{self._running} run, one more would take {expected_s:.2f} s; {timeout_s:.2f} s are left"
            self._refuse("expected-wait", detail, self._pace.mean_s)

    def _refuse_if_in_vain(self, timeout_s: float) -> None:
        """Raise Overloaded unless a newcomer has a place in the queue, and a fair chance of being answered in time."""
        wait_s = self._pace.mean_s * (len(self._waiting) + 1) / self._max_running
        if len(self._waiting) >= self._max_waiting:
            self._refuse("queue-full", f"{len(self._waiting)} requests are waiting", wait_s)
        if wait_s + self._pace.most_s > timeout_s:
            self._refuse("expected-wait", f"the queue is {wait_s:.2f} s long; {timeout_s:.2f} s are left", wait_s)

    def _refuse(self, reason: RefusalReason, detail: str, wait_s: float) -> None:
        self._rejected[reason] += 1
        if self._metrics is not None:
            self._metrics.observe_rejected(reason)
        raise Overloaded(reason, detail, retry_after_s=min(max(1, math.ceil(wait_s)), _MAX_RETRY_AFTER_S))

    async def _turn(self, deadline: float) -> None:
        """Wait to be handed a slot."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = deadline
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            if self._waiting.pop(turn, None) is None and not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # it was handed a slot in the very moment in which it left
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the time ran out in the queue") from None
            raise

    def _pass_on(self) -> None:
        """Hand a slot to the first in the queue who can still use it."""
        now = asyncio.get_running_loop().time()
        while self._waiting:
            turn, deadline = self._waiting.popitem(last=False)
            if turn.done():  # cancelled, and its task has not run since
                continue
            if now + self._pace.mean_s <= deadline:
                turn.set_result(None)
                return
            turn.set_exception(DeadlineExceeded("too little time was left when the turn came"))
        self._slot_seconds()
        self._running -= 1


class _Pace:
    """Moving averages of how long a slot is held, and of how far that is off, seconds (as TCP times its peers).

    Attributes:
        mean_s: how long.
        together: how many slots were held meanwhile, this one included.
    """

    def __init__(self) -> None:
        self.mean_s = 0.0
        self.together = 1.0
        self._deviation_s = 0.0

    @property
    def most_s(self) -> float:
        """What all but unusual recommendations stay below."""
        return self.mean_s + _SPREAD * self._deviation_s

    def observe(self, seconds: float, together: float, *, finished: bool) -> None:
        """Take one slot's time in. Of work broken off it is only known that it takes longer."""
        if not finished and seconds < self.mean_s:
            return
        if not self.mean_s:
            self.mean_s, self._deviation_s, self.together = seconds, seconds / 2, max(1.0, together)
            return
        error = seconds - self.mean_s
        self.mean_s += _GAIN * error
        self._deviation_s += _GAIN * (abs(error) - self._deviation_s)
        self.together += _GAIN * (max(1.0, together) - self.together)
