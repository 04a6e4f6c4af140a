"""`igd bench serve`: an open loop at a given rate, or a search for the highest rate that a server answers in time."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from igd_core.bench.http_pool import Answer, HttpPool
from igd_core.bench.load import (
    MAX_REQUESTS,
    LoadArrays,
    LoadLimits,
    closed_loop,
    open_loop,
    planned_arrivals,
)
from igd_core.bench.load_report import is_accepted, is_good, percentiles, summary, timeline
from igd_core.bench.traffic import HistoryTraffic
from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.bench.http_pool import Target
    from igd_core.bench.traffic import Mix, UserHistory

T = TypeVar("T")

MAX_SECONDS = 4 * 3600.0
MAX_CONCURRENCY = 256

_PATIENCE_S = 5.0  # beyond the deadline, to receive answers that are late
_GAIN = 1.05
_MAX_WARM_UP_S = 1.0
_SCRAPES = 300
_MEMORY_VALUES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBench:
    """What to run.

    Attributes:
        target: the server.
        histories: of the users to ask for.
        mix: kinds of requests, and their fields.
        deadline_s: an answer after it does not count as good.
        seconds: length of the run, or of each step of the search for the capacity.
        connections: most connections at once.
        seed: of arrivals and users.
        metrics: URL of the server's Prometheus metrics, for its memory.
    """

    target: Target
    histories: Sequence[UserHistory]
    mix: Mix
    deadline_s: float
    seconds: float
    connections: int = 512
    seed: int = 0
    metrics: Target | None = None

    def __post_init__(self) -> None:
        """Refuse values with which a run might not end.

        Raises:
            InputError: a value out of range.
        """
        if not 0 < self.seconds <= MAX_SECONDS:
            raise InputError(f"seconds: {self.seconds} is not in 0..{MAX_SECONDS:g}")
        if not 1 <= self.connections <= 10_000:
            raise InputError(f"connections: {self.connections} is not in 1..10000")

    @property
    def limits(self) -> LoadLimits:
        """When to give up a request."""
        return LoadLimits(timeout_s=self.deadline_s + _PATIENCE_S, max_connections=self.connections)

    def traffic(self) -> HistoryTraffic:
        """New traffic; every run draws its own."""
        return HistoryTraffic(self.target, self.histories, self.mix, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeResult:
    """The result of `bench_rate`: ``report`` as JSON, and every request."""

    report: Mapping[str, Any]
    requests: LoadArrays


def bench_rate(bench: ServeBench, *, rate: float, even: bool) -> ServeResult:
    """Send ``rate`` requests a second, whatever the answers do. After an interrupt, the report is of what there is.

    Raises:
        InputError: more requests than a run may have.
    """
    if not 0 < rate * bench.seconds <= MAX_REQUESTS or rate * bench.seconds < 1:
        raise InputError(f"rate: {rate:g} for {bench.seconds:g} s; a run has 1 to {MAX_REQUESTS:,} requests")
    plan = planned_arrivals(rate, bench.seconds, even=even, rng=np.random.default_rng(bench.seed))
    traffic = bench.traffic()
    memory = _Memory(bench.metrics, bench.mix.keys[0] if bench.mix.keys else None)

    async def run() -> LoadArrays:
        watching = asyncio.create_task(memory.watch(max(1.0, bench.seconds / _SCRAPES)))
        try:
            return await open_loop(bench.target, traffic, plan, bench.limits)
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    requests = _run(run())
    lasted = bench.seconds if len(requests.planned) == len(plan) else float(requests.planned[-1:].sum())
    report = {
        "mode": "open loop",
        "rate_per_s": rate,
        "arrivals": "even" if even else "poisson",
        "seconds": lasted,
        "deadline_ms": bench.deadline_s * 1000,
        **summary(requests, lasted, bench.deadline_s),
        "reasons": dict(traffic.reasons.most_common()),
        "server_memory_bytes": memory.report(),
        "server_memory_timeline_bytes": memory.timeline(),
        "timeline": timeline(requests, lasted, bench.deadline_s),
    }
    return ServeResult(report=report, requests=requests)


def find_capacity(bench: ServeBench) -> Mapping[str, Any]:
    """Double the number of clients that wait for their answers, until two more doublings bring nothing.

    The capacity is the highest number of good answers a second; ``bench.seconds`` is the length of a step.
    """
    warm_up_s = min(_MAX_WARM_UP_S, bench.seconds)
    steps: list[dict[str, Any]] = []
    best, since = 0.0, 0
    concurrency = 1
    while since < 2 and concurrency <= min(MAX_CONCURRENCY, bench.connections):
        traffic = bench.traffic()
        seconds = bench.seconds + warm_up_s
        requests = _run(
            closed_loop(bench.target, traffic, concurrency=concurrency, seconds=seconds, limits=bench.limits)
        )
        warm = _where(requests, requests.planned >= warm_up_s)
        # Count answers within the time, of whatever requests: those still running at its end are not waited for.
        inside = (requests.done >= warm_up_s) & (requests.done < seconds)
        good = float(np.count_nonzero(is_good(requests, bench.deadline_s) & inside)) / bench.seconds
        steps.append(
            {
                "concurrency": concurrency,
                "good_per_s": round(good, 2),
                "answered_per_s": round(float(np.count_nonzero(inside & (requests.status > 0))) / bench.seconds, 2),
                "latency_ms": percentiles(warm.latency_s[is_accepted(warm)]),
                "reasons": dict(traffic.reasons.most_common()),
            }
        )
        since = 0 if good > best * _GAIN else since + 1
        best = max(best, good)
        concurrency *= 2
    chosen = max(steps, key=lambda step: float(step["good_per_s"]))
    return {
        "mode": "closed loop",
        "seconds_a_step": bench.seconds,
        "deadline_ms": bench.deadline_s * 1000,
        "capacity_per_s": chosen["good_per_s"],
        "concurrency": chosen["concurrency"],
        "steps": steps,
    }


def _where(requests: LoadArrays, chosen: NDArray[np.bool_]) -> LoadArrays:
    return LoadArrays(
        planned=requests.planned[chosen],
        sent=requests.sent[chosen],
        done=requests.done[chosen],
        status=requests.status[chosen],
        verdict=requests.verdict[chosen],
    )


@dataclass(slots=True)
class _Memory:
    """The server's resident memory, read while it is under load."""

    target: Target | None
    key: str | None
    seen: list[float] = field(default_factory=list)

    async def watch(self, every_s: float) -> None:
        """Read it at intervals; runs for ever."""
        if self.target is None:
            await asyncio.Event().wait()
            return
        answers: asyncio.Queue[Answer] = asyncio.Queue()
        pool = HttpPool(
            self.target,
            max_connections=1,
            on_sent=lambda _: None,
            on_answer=lambda _, answer: answers.put_nowait(answer),
        )
        number = 0
        try:
            while True:
                number += 1
                pool.send(number, self.target.message("GET", "", key=self.key))
                self._take((await answers.get()).body)
                await asyncio.sleep(every_s)
        finally:
            await pool.close()

    def _take(self, text: bytes) -> None:
        for line in text.splitlines():
            if line.startswith(b"process_resident_memory_bytes "):
                self.seen.append(float(line.split()[1]))

    def report(self) -> dict[str, float] | None:
        """After a tenth of the run (the warm-up), at its end, and the highest."""
        if not self.seen:
            return None
        return {"warm": self.seen[len(self.seen) // 10], "end": self.seen[-1], "max": max(self.seen)}

    def timeline(self) -> list[float]:
        """Values at even intervals, to tell growth that ends from growth that does not."""
        places = np.linspace(0, len(self.seen) - 1, min(len(self.seen), _MEMORY_VALUES)).round().astype(int)
        return [self.seen[place] for place in places]


def _run(main: Coroutine[Any, Any, T]) -> T:
    loop_factory = None
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)
