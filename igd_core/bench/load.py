"""Load on a server: an open loop, in which requests arrive as planned, or a closed loop.

A closed loop waits for an answer before the next request, so a server that stalls gets fewer requests while it stalls,
and the stall nearly vanishes from the percentiles (coordinated omission). The open loop plans every arrival beforehand;
a latency begins at the planned arrival, whether or not a connection was free.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from igd_core.bench.http_pool import Answer, HttpPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from igd_core.bench.http_pool import Target

MAX_REQUESTS = 20_000_000
TIMED_OUT = -1
NO_ANSWER = 0

_SWEEP_S = 0.02
_BURST = 32  # requests sent before answers are read, when sending is late
_LEAD_S = 0.05


class Traffic(Protocol):
    """The requests to send, and a judge of their answers."""

    def request(self, number: int) -> bytes:
        """The request with this number."""
        ...

    def judge(self, number: int, answer: Answer) -> int:
        """A small non-negative code for an answer, stored with the request."""
        ...


@dataclass(slots=True, kw_only=True)
class LoadLog:
    """Every request of a run, by number; times are seconds since its start, NaN for what did not happen.

    Attributes:
        planned: when it should arrive.
        sent: when it was written to a connection.
        done: when its answer was complete, or it was given up.
        status: HTTP status, ``NO_ANSWER`` or ``TIMED_OUT``.
        verdict: the traffic's code for the answer.
    """

    planned: array[float] = field(default_factory=lambda: array("d"))
    sent: array[float] = field(default_factory=lambda: array("d"))
    done: array[float] = field(default_factory=lambda: array("d"))
    status: array[int] = field(default_factory=lambda: array("h"))
    verdict: array[int] = field(default_factory=lambda: array("b"))

    def begin(self, planned: float) -> int:
        """Add a request; returns its number."""
        self.planned.append(planned)
        self.sent.append(np.nan)
        self.done.append(np.nan)
        self.status.append(NO_ANSWER)
        self.verdict.append(-1)
        return len(self.planned) - 1

    def arrays(self) -> LoadArrays:
        """A copy as arrays."""
        return LoadArrays(
            planned=np.array(self.planned),
            sent=np.array(self.sent),
            done=np.array(self.done),
            status=np.array(self.status, dtype=np.int16),
            verdict=np.array(self.verdict, dtype=np.int8),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadArrays:
    """A `LoadLog` as arrays, ``(requests,)`` each."""

    planned: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int16]
    verdict: NDArray[np.int8]

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """Seconds from the planned arrival to the answer."""
        return self.done - self.planned

    @property
    def service_s(self) -> NDArray[np.float64]:
        """Seconds from sending to the answer; hides the wait for a connection."""
        return self.done - self.sent

    @property
    def lag_s(self) -> NDArray[np.float64]:
        """Seconds from the planned arrival to sending."""
        return self.sent - self.planned


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """Limits of a run: a request without an answer ``timeout_s`` after its planned arrival is given up."""

    timeout_s: float = 10.0
    max_connections: int = 512


class _Run:
    """One run: its log, its connections, and the requests without an answer."""

    def __init__(self, target: Target, traffic: Traffic, limits: LoadLimits) -> None:
        self._traffic = traffic
        self._limits = limits
        self._start = time.perf_counter() + _LEAD_S  # uvloop's clock counts whole milliseconds
        self._pending: deque[int] = deque()
        self.log = LoadLog()
        self.on_settled: Callable[[], None] = lambda: None
        self.pool = HttpPool(
            target, max_connections=limits.max_connections, on_sent=self._sent, on_answer=self._answered
        )

    @property
    def now(self) -> float:
        """Seconds since the run's start; negative before it."""
        return time.perf_counter() - self._start

    def ask(self, planned: float) -> None:
        """Send one more request."""
        number = self.log.begin(planned)
        self._pending.append(number)
        self.pool.send(number, self._traffic.request(number))

    async def sweep(self) -> None:
        """Give up requests that are too late; runs for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._drop_late()

    def _drop_late(self) -> None:
        log, latest = self.log, self.now - self._limits.timeout_s
        while self._pending:  # ordered by planned arrival
            number = self._pending[0]
            if np.isnan(log.done[number]):
                if log.planned[number] > latest:
                    return
                log.done[number], log.status[number] = self.now, TIMED_OUT
                self.pool.abandon(number)
                self.on_settled()
            self._pending.popleft()

    async def finish(self) -> None:
        """Wait until every request is settled."""
        while self._pending:
            await asyncio.sleep(_SWEEP_S)
            self._drop_late()

    def _sent(self, number: int) -> None:
        self.log.sent[number] = self.now

    def _answered(self, number: int, answer: Answer) -> None:
        log = self.log
        log.done[number] = self.now
        log.status[number] = answer.status
        log.verdict[number] = self._traffic.judge(number, answer)
        self.on_settled()


async def open_loop(target: Target, traffic: Traffic, plan: NDArray[np.float64], limits: LoadLimits) -> LoadArrays:
    """Send a request at each of the times in ``plan``, ascending seconds from the start; wait for the answers.

    A cancelled run returns what it has so far.
    """
    run = _Run(target, traffic, limits)
    sweeping = asyncio.create_task(run.sweep())
    try:
        for number, planned in enumerate(plan.tolist()):
            late_s = run.now - planned
            if late_s < 0:
                await asyncio.sleep(-late_s)
            elif number % _BURST == 0:
                await asyncio.sleep(0)
            run.ask(planned)
        await run.finish()
    except asyncio.CancelledError:
        pass
    finally:
        sweeping.cancel()
        await run.pool.close()
    return run.log.arrays()


async def closed_loop(
    target: Target, traffic: Traffic, *, concurrency: int, seconds: float, limits: LoadLimits
) -> LoadArrays:
    """Keep ``concurrency`` requests running for ``seconds``: each answer is followed by the next request."""
    run = _Run(target, traffic, limits)
    await asyncio.sleep(-run.now)
    loop = asyncio.get_running_loop()

    def ask() -> None:
        now = run.now
        if now < seconds and len(run.log.planned) < MAX_REQUESTS:
            run.ask(now)

    def ask_again() -> None:
        # Not from within the callback: with a server that refuses every connection it would never end.
        loop.call_soon(ask)

    run.on_settled = ask_again
    sweeping = asyncio.create_task(run.sweep())
    try:
        for _ in range(concurrency):
            run.ask(run.now)
        await asyncio.sleep(seconds - run.now)
        await run.finish()
    finally:
        sweeping.cancel()
        await run.pool.close()
    return run.log.arrays()


def planned_arrivals(rate: float, seconds: float, *, even: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times at ``rate`` a second: evenly spaced, or random as of independent users (a Poisson process)."""
    count = int(rate * seconds)
    if even:
        return np.arange(count) / rate
    return np.sort(rng.uniform(0.0, seconds, count))
