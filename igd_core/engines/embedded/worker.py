"""The thread that runs the model, so that no forward pass blocks the event loop; callers get fair shares of it."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from igd_core.errors import EngineClosed
from igd_core.search.fairness import FairQueue, Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.search.fairness import Turn

T = TypeVar("T")

_ORDINARY_S = 0.1  # until the first request has ended
# A search pauses for a millisecond or two between calls. If a heavy call began in each pause, a light request would
# take as long as all of them: the thread waits a little instead, if the other request is twice as heavy.
# request would take as long as all of them: the thread waits a little instead, where the other is twice as heavy.
_PATIENCE_S = 0.01
_HEAVIER = 2.0
_ALIKE = 1e-6  # ranks that differ by less differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed(Generic[T]):
    """A call's result, the seconds it waited and the seconds it ran."""

    value: T
    queue_s: float
    run_s: float


@dataclass(slots=True, kw_only=True)
class _Call:
    turn: Turn
    submitted: float
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class ModelThread:
    """Runs calls one at a time: next, the most urgent one of the caller who has had the least time.

    Each call is charged with the time that it took. Between callers with ordinary requests the older request goes
    first: taking turns would make every request finish as late as the last (see `igd_core.search.fairness`).
    """

    def __init__(self, name: str) -> None:
        self._calls: FairQueue[_Call] = FairQueue()
        self._meter = Meter(_ORDINARY_S)
        self._thinking: dict[Turn, tuple[str, float]] = {}  # between two calls: who paid the last, and its end
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether new calls are refused."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Calls queued, without the running one."""
        return len(self._calls)

    async def call(self, turn: Turn, order: int, function: Callable[[], T]) -> Timed[T]:
        """Run ``function`` on the thread, for the request of this ``turn``. A call cancelled while it waits never runs.

        Of a caller's requests with the same deadline, the lower ``order`` goes first.

        Raises:
            EngineClosed: the thread has been closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Timed[T]] = loop.create_future()
        call = _Call(turn=turn, submitted=time.monotonic(), function=function, future=future, loop=loop)
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            self._thinking.pop(turn, None)
            self._calls.add(call, turn, order=order)
            self._changed.notify()
        return await future

    def finished(self, turn: Turn, seconds: float) -> None:
        """A request has ended. If it is complete, its ``seconds`` of the model tell what an ordinary request takes."""
        with self._changed:
            self._thinking.pop(turn, None)
            if turn.complete and seconds > 0:
                self._meter.observe(seconds, turn.cost)

    def close(self) -> None:
        """Refuse new calls, end waiting ones with EngineClosed, and wait for the running one."""
        with self._changed:
            self._closed = True
            abandoned = self._calls.clear()
            self._changed.notify()
        for call in abandoned:
            _deliver(call, error=EngineClosed("the engine is closed"))
        self._thread.join()

    def _next(self) -> tuple[str, _Call] | None:
        with self._changed:
            while not len(self._calls) and not self._closed:
                self._changed.wait()
            while not self._closed and (wait_s := self._worth_waiting_s()) > 0:
                self._changed.wait(wait_s)
            chosen = self._calls.pop()
        return None if chosen is None else (chosen[0], chosen[1].entry)

    def _worth_waiting_s(self) -> float:
        """Seconds to wait for the next call of a request that comes before all that wait, and is much lighter."""
        oldest = time.monotonic() - _PATIENCE_S
        self._thinking = {turn: ended for turn, ended in self._thinking.items() if ended[1] > oldest}
        best = self._calls.best() if self._thinking else None
        if best is None:
            return 0.0
        rank, first = best
        return max(
            (
                ended - oldest
                for turn, (caller, ended) in self._thinking.items()
                if _HEAVIER * turn.cost <= first.turn.cost
                and self._calls.accounts.rank(caller, turn.left) <= rank + _ALIKE
            ),
            default=0.0,
        )

    def _work(self) -> None:
        while (chosen := self._next()) is not None:
            caller, call = chosen
            started = time.monotonic()
            _run(call)
            ended = time.monotonic()
            with self._changed:
                spent = self._meter.units(ended - started)
                self._calls.accounts.charge(caller, spent)
                self._thinking[call.turn] = caller, ended
            call.turn.spent += spent
            del chosen, call  # a waiting thread must not keep the last request's tensors alive


def _run(call: _Call) -> None:
    if call.future.cancelled():
        return
    started = time.monotonic()
    try:
        value = call.function()
    except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to the caller
        _deliver(call, error=error)
    else:
        ended = time.monotonic()
        _deliver(call, Timed(value=value, queue_s=started - call.submitted, run_s=ended - started))


def _deliver(call: _Call, value: object = None, error: Exception | None = None) -> None:
    def settle() -> None:
        if call.future.done():
            return
        if error is None:
            call.future.set_result(value)
        else:
            call.future.set_exception(error)

    try:
        call.loop.call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the caller's event loop has ended; nobody waits
