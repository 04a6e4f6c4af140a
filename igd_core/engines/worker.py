"""One thread that runs the model, oldest request first, so that the event loop never waits for a forward pass."""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from igd_core.errors import EngineClosed

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed(Generic[T]):
    """A call's result, the seconds it waited and the seconds it ran."""

    value: T
    queue_s: float
    run_s: float


@dataclass(order=True, slots=True)
class _Call:
    priority: int
    sequence: int
    submitted: float = field(compare=False)
    function: Callable[[], Any] = field(compare=False)
    future: asyncio.Future[Any] = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)


class ModelThread:
    """Runs calls one at a time, an older request's before a younger one's.

    Taking turns instead would make every request finish as late as the last.
    """

    def __init__(self, name: str) -> None:
        self._calls: list[_Call] = []
        self._changed = threading.Condition()
        self._sequence = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether new calls are refused."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Calls queued, the running one not among them."""
        return len(self._calls)

    async def call(self, priority: int, function: Callable[[], T]) -> Timed[T]:
        """Run ``function`` on the thread; lower ``priority`` goes first. A cancelled call that waits never runs.

        Raises:
            EngineClosed: the thread has been closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Timed[T]] = loop.create_future()
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            self._sequence += 1
            heapq.heappush(self._calls, _Call(priority, self._sequence, time.monotonic(), function, future, loop))
            self._changed.notify()
        return await future

    def close(self) -> None:
        """Refuse new calls, end waiting ones with EngineClosed, and wait for the running one."""
        with self._changed:
            self._closed = True
            abandoned, self._calls = self._calls, []
            self._changed.notify()
        for call in abandoned:
            _deliver(call, error=EngineClosed("the engine is closed"))
        self._thread.join()

    def _next(self) -> _Call | None:
        with self._changed:
            while not self._calls and not self._closed:
                self._changed.wait()
            return heapq.heappop(self._calls) if self._calls else None

    def _work(self) -> None:
        while (call := self._next()) is not None:
            _run(call)
            del call  # a waiting thread must not keep the last request's tensors alive


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
