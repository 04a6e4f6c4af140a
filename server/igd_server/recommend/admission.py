"""Admission: how many recommendations run at once, who runs next, and which requests are refused for load."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.errors import DeadlineExceeded
from igd_core.search.fairness import FairQueue, Turn
from igd_server.api.problems import OVERLOADED, Finding, Refused
from igd_server.observe.tracing import Tracing
from igd_server.recommend.pace import Pace, Shares

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from igd_core.search.fairness import Ticket
    from igd_server.observe.metrics import Metrics

RefusalReason: TypeAlias = Literal["queue-full", "expected-wait"]

_SPARE_SHARE = 4  # spare slots: one for so many, for callers who hold none
_MAX_RETRY_AFTER_S = 60


class Overloaded(Refused):
    """The server could not answer this request in time; it may be sent again after ``retry_after_s``.

    Attributes:
        reason: which limit was reached.
        retry_after_s: whole seconds, as in the ``Retry-After`` header.
    """

    def __init__(self, reason: RefusalReason, detail: str, *, retry_after_s: int) -> None:
        super().__init__(Finding(kind=OVERLOADED, detail=detail, headers={"Retry-After": str(retry_after_s)}))
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(slots=True, eq=False, kw_only=True)
class _Waiting:
    """A waiting request: ``handed`` gets the caller who pays for its slot; it gives up at ``deadline``."""

    handed: asyncio.Future[str]
    deadline: float


@dataclass(slots=True, kw_only=True)
class _Held:
    """What one caller holds: slots, and the cost of the requests in them."""

    slots: int = 0
    cost: float = 0.0


class Admission:
    """At most ``max_running`` recommendations run at once; callers take turns by the cost of what they were served.

    Under overload, a queue with only a bounded length fills: every answer is late, and work may be done for clients
    that have given up. So a request is also refused if the requests before it, at the recent pace, leave it too little
    time; and one whose turn comes too late to be worth starting is skipped.

    Slots share one model. On a slow machine, ``max_running`` recommendations at once may all miss their deadlines. So a
    request is also refused while slots are free, if one more recommendation would, at the recent pace, make all of them
    late.

    Callers (see `search.fairness`) get equal shares, and a caller's most urgent request goes first. No caller can keep
    others out: for each four slots there is a spare one, at least one in all, for callers who hold none. If the queue
    is full, the caller with the most entries makes room for others. A caller alone may use everything.

    All methods belong to one event loop, and use its clock.
    """

    def __init__(
        self, max_running: int, max_waiting: int, *, metrics: Metrics | None = None, tracing: Tracing | None = None
    ) -> None:
        """``metrics`` counts refusals and waits, ``tracing`` records waits."""
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._tracing = tracing or Tracing()
        self._running = 0
        self._held: dict[str, _Held] = {}
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._tickets: dict[Turn, Ticket[_Waiting]] = {}
        self._rejected: Counter[RefusalReason] = Counter()
        self._pace = Pace()
        self._shares = Shares()

    @property
    def running(self) -> int:
        """Slots held."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def rejected(self) -> Mapping[RefusalReason, int]:
        """Refusals so far, by reason."""
        return self._rejected

    @contextlib.asynccontextmanager
    async def slot(self, timeout_s: float, turn: Turn | None = None) -> AsyncIterator[float]:
        """Hold a slot for the block; yields the seconds waited for it.

        Args:
            timeout_s: the request's remaining time, for waiting and for the work.
            turn: the request's caller, cost and deadline.

        Raises:
            Overloaded: at once, if the queue is full or ``timeout_s`` is too short; or while waiting, if the queue is
                full and the caller has the most entries.
            DeadlineExceeded: the time ran out in the queue, or too little was left to begin.
        """
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        turn = Turn() if turn is None else turn
        with self._tracing.span("igd.queue"):
            caller = await self.enter(timeout_s, turn)
        started = loop.time()
        shared = self._shares.of(caller, started)
        finished = False
        try:
            if self._metrics is not None:
                self._metrics.observe_admitted(started - arrived)
            yield started - arrived
            finished = True
        finally:
            now = loop.time()
            self._settle(caller, turn, now - started, finished=finished)
            share_s = self._shares.of(caller, now) - shared
            self._pace.observe(caller, now - started, share_s, turn.cost, finished=finished)
            self._release(caller, turn)
            self._pass_on()

    async def enter(self, timeout_s: float, turn: Turn) -> str:
        """Take a slot, which `slot` gives back, or wait for one; returns the caller who pays. Raises as `slot`."""
        caller = turn.callers[0]
        if not self._has_room(caller):
            self._refuse_if_too_late(timeout_s, turn)
            return await self._turn(asyncio.get_running_loop().time() + timeout_s, turn)
        self._refuse_if_one_more_is_too_slow(timeout_s, turn)
        self._queue.accounts.begin(caller)
        self._queue.accounts.serve(caller)  # its turn has come at once: time goes on, and forgets who was here long ago
        self._take(caller, turn)
        return caller

    def join(self, turn: Turn, caller: str, deadline: float) -> None:
        """A caller waits for the same: the request runs at the turn of whichever caller comes first."""
        turn.join(caller, deadline)
        ticket = self._tickets.get(turn)
        if ticket is not None:
            self._queue.join(ticket, caller, deadline)
            self._pass_on()

    # --- slots --------------------------------------------------------------------------------------------------------

    def _has_room(self, caller: str) -> bool:
        if self._running < self._max_running:
            return True
        spare = max(1, self._max_running // _SPARE_SHARE)
        return caller not in self._held and self._running < self._max_running + spare

    def _take(self, caller: str, turn: Turn) -> None:
        """Charge the caller in advance: the caller's next turn comes after those of callers who have had less."""
        self._shares.change(caller, +1, asyncio.get_running_loop().time())
        self._running += 1
        held = self._held.setdefault(caller, _Held())
        held.slots += 1
        held.cost += turn.cost
        self._queue.accounts.charge(caller, turn.cost)

    def _settle(self, caller: str, turn: Turn, held_s: float, *, finished: bool) -> None:
        """Replace the expected cost in the caller's account by the actual one."""
        if turn.spent:
            cost = turn.spent
        elif finished:
            return
        else:  # a client that left is charged for the part that was done
            usual_s = self._pace.mean_s(caller) * turn.cost
            cost = turn.cost * min(1.0, held_s / usual_s if usual_s else 1.0)
        self._queue.accounts.charge(caller, cost - turn.cost)

    def _release(self, caller: str, turn: Turn) -> None:
        self._shares.change(caller, -1, asyncio.get_running_loop().time())
        self._running -= 1
        held = self._held[caller]
        held.slots -= 1
        held.cost -= turn.cost
        if not held.slots:
            del self._held[caller]

    # --- the queue ----------------------------------------------------------------------------------------------------

    async def _turn(self, deadline: float, turn: Turn) -> str:
        """Wait for a slot; returns the caller who pays for it."""
        waiting = _Waiting(handed=asyncio.get_running_loop().create_future(), deadline=deadline)
        ticket = self._tickets[turn] = self._queue.add(waiting, turn)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting.handed
        except BaseException as error:
            handed = waiting.handed
            if not self._queue.remove(ticket) and handed.done() and not handed.cancelled() and not handed.exception():
                self._release(handed.result(), turn)  # it got a slot in the very moment in which it left
                self._pass_on()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the time ran out in the queue") from None
            raise
        finally:
            del self._tickets[turn]

    def _pass_on(self) -> None:
        """Give free slots to the next requests that still have time to use them."""
        now = asyncio.get_running_loop().time()
        while (chosen := self._queue.pop(self._has_room)) is not None:
            caller, ticket = chosen
            waiting, turn = ticket.entry, ticket.turn
            if waiting.handed.done():  # cancelled, and its task has not run since
                continue
            if now + self._pace.mean_of(caller, turn.cost, self._beside(caller, turn)) <= waiting.deadline:
                self._take(caller, turn)
                waiting.handed.set_result(caller)
            else:
                waiting.handed.set_exception(DeadlineExceeded("too little time was left when the turn came"))

    # --- who is refused -----------------------------------------------------------------------------------------------

    def _beside(self, caller: str, turn: Turn) -> float:
        """Cost of what the model does meanwhile: all of the caller's own, and the shares of others."""
        own = self._held.get(caller)
        others = sum(min(held.cost, turn.cost) for name, held in self._held.items() if name != caller)
        return others + (0.0 if own is None else own.cost)

    def _refuse_if_one_more_is_too_slow(self, timeout_s: float, turn: Turn) -> None:
        """Refuse a request though slots are free, if one more recommendation at once would make all of them late.

        The time of each is assumed to grow with their number, as on a machine without a spare core. While they take
        less than half of the time that they have, nothing is refused: a GPU may do a burst at once.
        """
        caller = turn.callers[0]
        usual_s = self._pace.mean_s(caller) * turn.cost
        if not self._running or usual_s <= timeout_s / 2:
            return
        expected_s = self._pace.most_shared(turn.cost, self._beside(caller, turn))
        if expected_s > timeout_s:
            detail = f"{self._running} run, one more would take {expected_s:.2f} s; {timeout_s:.2f} s are left"
            self._refuse("expected-wait", detail, usual_s)

    def _refuse_if_too_late(self, timeout_s: float, turn: Turn) -> None:
        """Refuse a request that has no place in the queue, or no fair chance of being answered in time."""
        caller = turn.callers[0]
        running = sum(held.cost for held in self._held.values()) / self._running
        ahead = self._queue.ahead_of(turn) + min(running, turn.cost)
        wait_s = self._pace.mean_s(caller) * ahead / self._max_running
        # By the most and not the mean: the requests ahead are slow together, when the server is. Of those accepted by
        # the mean a tenth ran out of time (tests/bench/calm.py), in the queue or with work of the model lost.
        most_s = self._pace.most_s(caller) * ahead / self._max_running
        if most_s + self._pace.most_of(caller, turn.cost, self._beside(caller, turn)) > timeout_s:
            self._refuse("expected-wait", f"the queue may take {most_s:.2f} s; {timeout_s:.2f} s are left", wait_s)
        if len(self._queue) >= self._max_waiting:
            self._make_room(turn, wait_s)

    def _make_room(self, turn: Turn, wait_s: float) -> None:
        """Refuse the last request of the caller with the most entries in the full queue; that may be the newcomer."""
        waiting = len(self._queue)
        longest = self._queue.last_of_longest()
        if longest is not None:
            caller, ticket = longest
            mine = self._queue.waiting_of(turn.callers[0])
            if mine + 1 < self._queue.waiting_of(caller):
                self._queue.remove(ticket)
                handed = ticket.entry.handed
                if not handed.done():
                    self._count("queue-full")
                    detail = f"{waiting} requests are waiting, and others have fewer among them"
                    handed.set_exception(Overloaded("queue-full", detail, retry_after_s=_retry_after_s(wait_s)))
                return
        self._refuse("queue-full", f"{waiting} requests are waiting", wait_s)

    def _refuse(self, reason: RefusalReason, detail: str, wait_s: float) -> None:
        self._count(reason)
        raise Overloaded(reason, detail, retry_after_s=_retry_after_s(wait_s))

    def _count(self, reason: RefusalReason) -> None:
        self._rejected[reason] += 1
        if self._metrics is not None:
            self._metrics.observe_rejected(reason)


def _retry_after_s(wait_s: float) -> int:
    """Whole seconds for ``Retry-After``."""
    return min(max(1, math.ceil(wait_s)), _MAX_RETRY_AFTER_S)
