from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from igd_core.engines.embedded.worker import ModelThread
from igd_core.errors import EngineClosed
from igd_core.search.fairness import Meter, Turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture
async def thread() -> AsyncIterator[ModelThread]:
    worker = ModelThread("test-model")
    yield worker
    worker.close()


class Gate:
    """A call that keeps the thread busy until it is opened."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> str:
        self.running.set()
        assert self._open.wait(20), "nobody opened the gate"
        return "gate"

    def open(self) -> None:
        self._open.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what happens on another thread sets no asyncio event
            await asyncio.sleep(0.001)


async def test_a_call_returns_its_value_and_its_times(thread: ModelThread) -> None:
    timed = await thread.call(Turn(), 1, lambda: time.sleep(0.02) or threading.current_thread().name)  # type: ignore[func-returns-value]
    assert timed.value == "test-model"
    assert timed.run_s >= 0.02
    assert 0 <= timed.queue_s < 5


async def test_a_callers_oldest_request_goes_first_and_equals_go_in_order_of_arrival(thread: ModelThread) -> None:
    gate, order = Gate(), list[str]()
    busy = asyncio.ensure_future(thread.call(Turn(), 0, gate))
    await until(gate.running.is_set)
    names = [(7, "young"), (3, "old, first"), (5, "middle"), (3, "old, second")]
    waiting = []
    for priority, name in names:
        waiting.append(asyncio.ensure_future(thread.call(Turn(), priority, functools.partial(order.append, name))))
        await asyncio.sleep(0)
    assert thread.waiting == 4
    gate.open()
    await asyncio.gather(busy, *waiting)
    assert order == ["old, first", "old, second", "middle", "young"]
    assert thread.waiting == 0


def turn(caller: str, cost: float) -> Turn:
    return Turn(callers=(caller,), cost=cost)


async def test_a_caller_who_has_had_less_of_the_model_goes_before_anothers_older_calls(thread: ModelThread) -> None:
    gate, order = Gate(), list[str]()
    heavy, light = turn("heavy", 20.0), turn("light", 1.0)
    busy = asyncio.ensure_future(thread.call(heavy, 1, gate))
    await until(gate.running.is_set)
    calls = [
        thread.call(heavy, 1, functools.partial(order.append, "heavy")),
        thread.call(turn("heavy", 20.0), 2, functools.partial(order.append, "heavy, young")),
        thread.call(light, 3, functools.partial(order.append, "light")),
    ]
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0.02)  # the gate has cost the heavy caller something
    gate.open()
    await asyncio.gather(busy, *waiting)
    assert order == ["light", "heavy", "heavy, young"]
    assert heavy.spent > 0


async def test_a_light_request_that_thinks_between_its_calls_is_waited_for(
    thread: ModelThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igd_core.engines.embedded.worker._PATIENCE_S", 5.0)
    thread._meter = Meter(1000.0)  # of a slow model, whose ordinary request is far from over
    gate, order = Gate(), list[str]()
    light, heavy = turn("light", 1.0), turn("heavy", 20.0)
    busy = asyncio.ensure_future(thread.call(light, 1, gate))
    await until(gate.running.is_set)
    waiting = asyncio.ensure_future(thread.call(heavy, 2, functools.partial(order.append, "heavy")))
    await asyncio.sleep(0)
    gate.open()
    await busy
    await asyncio.sleep(0.05)  # its search thinks
    assert order == []
    await thread.call(light, 1, functools.partial(order.append, "light"))
    light.complete = True
    thread.finished(light, 0.1)
    await waiting
    assert order == ["light", "heavy"]


async def test_nobody_waits_for_a_request_that_has_ended_or_is_as_heavy(
    thread: ModelThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igd_core.engines.embedded.worker._PATIENCE_S", 60.0)
    ended, thinking = turn("ended", 0.1), turn("thinking", 1.0)
    await thread.call(ended, 1, lambda: None)
    thread.finished(ended, 0.0)
    await thread.call(thinking, 2, lambda: None)
    async with asyncio.timeout(PATIENCE_S):
        await thread.call(turn("other", 1.5), 3, lambda: None)


async def test_a_cancelled_call_that_waits_never_runs(thread: ModelThread) -> None:
    gate, ran = Gate(), list[str]()
    busy = asyncio.ensure_future(thread.call(Turn(), 0, gate))
    await until(gate.running.is_set)
    cancelled = asyncio.ensure_future(thread.call(Turn(), 1, lambda: ran.append("cancelled")))
    kept = asyncio.ensure_future(thread.call(Turn(), 2, lambda: ran.append("kept")))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.open()
    await asyncio.gather(busy, kept)
    assert ran == ["kept"]


async def test_a_call_cancelled_while_it_runs_does_not_disturb_the_next(thread: ModelThread) -> None:
    gate = Gate()
    running = asyncio.ensure_future(thread.call(Turn(), 0, gate))
    await until(gate.running.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gate.open()
    assert (await thread.call(Turn(), 0, lambda: "next")).value == "next"


async def test_the_event_loop_goes_on_while_the_model_runs(thread: ModelThread) -> None:
    gate = Gate()
    running = asyncio.ensure_future(thread.call(Turn(), 0, gate))
    await until(gate.running.is_set)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not running.done()
    gate.open()
    assert (await running).value == "gate"


async def test_an_error_reaches_its_caller_and_nobody_else(thread: ModelThread) -> None:
    def fail() -> None:
        raise ZeroDivisionError("model")

    with pytest.raises(ZeroDivisionError, match="model"):
        await thread.call(Turn(), 0, fail)
    assert (await thread.call(Turn(), 0, lambda: 1)).value == 1


async def test_closing_ends_waiting_calls_and_finishes_the_running_one(thread: ModelThread) -> None:
    gate, ran = Gate(), list[int]()
    running = asyncio.ensure_future(thread.call(Turn(), 0, gate))
    await until(gate.running.is_set)
    waiting = asyncio.ensure_future(thread.call(Turn(), 0, lambda: ran.append(1)))
    await asyncio.sleep(0)
    closed_before = thread.closed
    opener = threading.Timer(0.05, gate.open)
    opener.start()
    await asyncio.to_thread(thread.close)
    opener.join()
    assert (closed_before, thread.closed) == (False, True)
    assert (await running).value == "gate"
    with pytest.raises(EngineClosed):
        await waiting
    assert ran == []
    assert not thread._thread.is_alive()


async def test_a_closed_thread_refuses_calls_and_closes_again(thread: ModelThread) -> None:
    thread.close()
    thread.close()
    with pytest.raises(EngineClosed, match="the engine is closed"):
        await thread.call(Turn(), 0, lambda: 1)


def test_a_caller_whose_event_loop_has_ended_is_not_waited_for() -> None:
    thread, gate = ModelThread("test-model"), Gate()

    async def leave() -> None:
        task = asyncio.ensure_future(thread.call(Turn(), 0, gate))
        await until(gate.running.is_set)
        task.cancel()

    asyncio.run(leave())
    gate.open()

    async def call() -> int:
        return (await thread.call(Turn(), 0, lambda: 5)).value

    assert asyncio.run(call()) == 5
    thread.close()


class Tensors:
    """Stands for what a call holds on to."""


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_idle_thread_keeps_nothing_of_its_last_call(thread: ModelThread, cancelled: bool) -> None:
    gate, held = Gate(), Tensors()
    reference = weakref.ref(held)
    busy = asyncio.ensure_future(thread.call(Turn(), 0, gate))
    await until(gate.running.is_set)
    last = asyncio.ensure_future(thread.call(Turn(), 1, functools.partial(id, held)))
    await asyncio.sleep(0)
    del held
    if cancelled:
        last.cancel()
    gate.open()
    await asyncio.gather(busy, last, return_exceptions=True)
    del busy, last

    def gone() -> bool:
        gc.collect()
        return reference() is None

    await until(gone)
