from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from patience import PATIENCE_S

from igd_core.engines.embedded.parts import Outcome, Part
from igd_core.engines.embedded.worker import ModelThread, Timed
from igd_core.errors import EngineClosed
from igd_core.search.fairness import Meter, Turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

T = TypeVar("T")


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


class Calls:
    """Passes of plain functions, one at a time."""

    most_tokens = 0

    def run(self, parts: Sequence[Callable[[], object]]) -> list[Outcome[Any]]:
        return [Outcome(value=function()) for function in parts]


def call(thread: ModelThread, turn: Turn, order: int, function: Callable[[], T]) -> Coroutine[Any, Any, Timed[T]]:
    return thread.call(turn, order, Part(passes=Calls(), what=function))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what happens on another thread sets no asyncio event
            await asyncio.sleep(0.001)


async def test_a_call_returns_its_value_and_its_times(thread: ModelThread) -> None:
    timed = await call(thread, Turn(), 1, lambda: time.sleep(0.02) or threading.current_thread().name)  # type: ignore[func-returns-value]
    assert timed.value == "test-model"
    assert timed.run_s >= 0.02
    assert 0 <= timed.queue_s < 5


async def test_a_callers_oldest_request_goes_first_and_equals_go_in_order_of_arrival(thread: ModelThread) -> None:
    gate, order = Gate(), list[str]()
    busy = asyncio.ensure_future(call(thread, Turn(), 0, gate))
    await until(gate.running.is_set)
    names = [(7, "young"), (3, "old, first"), (5, "middle"), (3, "old, second")]
    waiting = []
    for priority, name in names:
        waiting.append(asyncio.ensure_future(call(thread, Turn(), priority, functools.partial(order.append, name))))
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
    busy = asyncio.ensure_future(call(thread, heavy, 1, gate))
    await until(gate.running.is_set)
    calls = [
        call(thread, heavy, 1, functools.partial(order.append, "heavy")),
        call(thread, turn("heavy", 20.0), 2, functools.partial(order.append, "heavy, young")),
        call(thread, light, 3, functools.partial(order.append, "light")),
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
    busy = asyncio.ensure_future(call(thread, light, 1, gate))
    await until(gate.running.is_set)
    waiting = asyncio.ensure_future(call(thread, heavy, 2, functools.partial(order.append, "heavy")))
    await asyncio.sleep(0)
    gate.open()
    await busy
    await asyncio.sleep(0.05)  # its search thinks
    assert order == []
    await call(thread, light, 1, functools.partial(order.append, "light"))
    light.complete = True
    thread.finished(light, 0.1)
    await waiting
    assert order == ["light", "heavy"]


async def test_nobody_waits_for_a_request_that_has_ended_or_is_as_heavy(
    thread: ModelThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igd_core.engines.embedded.worker._PATIENCE_S", 60.0)
    ended, thinking = turn("ended", 0.1), turn("thinking", 1.0)
    await call(thread, ended, 1, lambda: None)
    thread.finished(ended, 0.0)
    await call(thread, thinking, 2, lambda: None)
    async with asyncio.timeout(PATIENCE_S):
        await call(thread, turn("other", 1.5), 3, lambda: None)


async def test_a_cancelled_call_that_waits_never_runs(thread: ModelThread) -> None:
    gate, ran = Gate(), list[str]()
    busy = asyncio.ensure_future(call(thread, Turn(), 0, gate))
    await until(gate.running.is_set)
    cancelled = asyncio.ensure_future(call(thread, Turn(), 1, lambda: ran.append("cancelled")))
    kept = asyncio.ensure_future(call(thread, Turn(), 2, lambda: ran.append("kept")))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.open()
    await asyncio.gather(busy, kept)
    assert ran == ["kept"]


async def test_a_call_cancelled_while_it_runs_does_not_disturb_the_next(thread: ModelThread) -> None:
    gate = Gate()
    running = asyncio.ensure_future(call(thread, Turn(), 0, gate))
    await until(gate.running.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gate.open()
    assert (await call(thread, Turn(), 0, lambda: "next")).value == "next"


async def test_the_event_loop_goes_on_while_the_model_runs(thread: ModelThread) -> None:
    gate = Gate()
    running = asyncio.ensure_future(call(thread, Turn(), 0, gate))
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
        await call(thread, Turn(), 0, fail)
    assert (await call(thread, Turn(), 0, lambda: 1)).value == 1


async def test_closing_ends_waiting_calls_and_finishes_the_running_one(thread: ModelThread) -> None:
    gate, ran = Gate(), list[int]()
    running = asyncio.ensure_future(call(thread, Turn(), 0, gate))
    await until(gate.running.is_set)
    waiting = asyncio.ensure_future(call(thread, Turn(), 0, lambda: ran.append(1)))
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
        await call(thread, Turn(), 0, lambda: 1)


def test_a_caller_whose_event_loop_has_ended_is_not_waited_for() -> None:
    thread, gate = ModelThread("test-model"), Gate()

    async def leave() -> None:
        task = asyncio.ensure_future(call(thread, Turn(), 0, gate))
        await until(gate.running.is_set)
        task.cancel()

    asyncio.run(leave())
    gate.open()

    async def five() -> int:
        return (await call(thread, Turn(), 0, lambda: 5)).value

    assert asyncio.run(five()) == 5
    thread.close()


class Tensors:
    """Stands for what a call holds on to."""


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_idle_thread_keeps_nothing_of_its_last_call(thread: ModelThread, cancelled: bool) -> None:
    gate, held = Gate(), Tensors()
    reference = weakref.ref(held)
    busy = asyncio.ensure_future(call(thread, Turn(), 0, gate))
    await until(gate.running.is_set)
    last = asyncio.ensure_future(call(thread, Turn(), 1, functools.partial(id, held)))
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


class Recorded:
    """Passes that note what they computed together; a part that is an error ends with it."""

    def __init__(self, most_tokens: int = 100) -> None:
        self.most_tokens = most_tokens
        self.passes: list[list[object]] = []

    def run(self, parts: Sequence[Any]) -> list[Outcome[Any]]:
        self.passes.append(list(parts))
        time.sleep(0.01)  # a time that can be shared
        return [
            Outcome(error=part, tokens=10) if isinstance(part, Exception) else Outcome(value=part, tokens=10)
            for part in parts
        ]

    def part(self, what: object, tokens: int = 10, *, begins: bool = False) -> Part[Any, Any]:
        return Part(passes=self, what=what, tokens=tokens, begins=begins)


async def held(thread: ModelThread, *calls: tuple[Turn, int, Part[Any, Any]]) -> list[Any]:
    """What becomes of calls that all wait at the same moment."""
    gate = Gate()
    busy = asyncio.ensure_future(call(thread, Turn(), 0, gate))
    await until(gate.running.is_set)
    waiting = []
    for each in calls:
        waiting.append(asyncio.ensure_future(thread.call(*each)))
        await asyncio.sleep(0)
    gate.open()
    results = await asyncio.gather(busy, *waiting, return_exceptions=True)
    return results[1:]


async def test_calls_that_wait_share_a_pass_in_the_order_of_their_turns(thread: ModelThread) -> None:
    shared = Recorded()
    found = await held(thread, *((Turn(), order, shared.part(f"{order}")) for order in (3, 1, 2)))
    assert shared.passes == [["1", "2", "3"]]
    assert [timed.value for timed in found] == ["3", "1", "2"]
    run_s = {timed.run_s for timed in found}
    assert len(run_s) == 1
    assert sum(timed.share_s for timed in found) == pytest.approx(run_s.pop())
    assert (thread.counts.passes, thread.counts.parts, thread.counts.tokens) == (2, 4, 30)


async def test_a_pass_is_filled_up_to_its_tokens_and_a_larger_part_is_next(thread: ModelThread) -> None:
    shared = Recorded(50)
    sizes = (("a", 30), ("too large", 30), ("b", 20), ("c", 1), ("larger than a pass", 70))
    await held(thread, *((Turn(), order, shared.part(*size)) for order, size in enumerate(sizes)))
    assert shared.passes == [["a", "b"], ["too large", "c"], ["larger than a pass"]]


async def test_only_one_prompt_begins_in_a_pass(thread: ModelThread) -> None:
    shared = Recorded()
    begins = (("a", True), ("b", False), ("c", True), ("d", False))
    await held(thread, *((Turn(), 1, shared.part(name, begins=begun)) for name, begun in begins))
    assert shared.passes == [["a", "b", "d"], ["c"]]


async def test_no_call_joins_the_pass_of_a_request_half_as_heavy_but_rides_along_in_a_heavier_ones(
    thread: ModelThread,
) -> None:
    shared = Recorded()
    light, heavy = (turn("one", 0.5), 0, shared.part("light")), (turn("one", 1.0), 1, shared.part("heavy"))
    await held(thread, light, heavy)
    assert shared.passes == [["light"], ["heavy"]]
    await held(thread, (*heavy[:1], 0, heavy[2]), (*light[:1], 1, light[2]))
    assert shared.passes[2:] == [["heavy", "light"]]


async def test_calls_of_other_passes_wait_for_their_own(thread: ModelThread) -> None:
    one, other = Recorded(), Recorded()
    parts = (one.part("1"), other.part("2"), one.part("3"), other.part("4"))
    await held(thread, *((Turn(), order, part) for order, part in enumerate(parts)))
    assert (one.passes, other.passes) == ([["1", "3"]], [["2", "4"]])


async def test_an_error_of_one_part_reaches_its_caller_alone_and_one_of_the_pass_all(thread: ModelThread) -> None:
    shared, error = Recorded(), ZeroDivisionError("bad token")
    found = await held(thread, *((Turn(), 1, shared.part(what)) for what in ("a", error, "b")))
    assert (found[0].value, found[1], found[2].value) == ("a", error, "b")

    class Broken(Recorded):
        def run(self, _: Sequence[Any]) -> list[Outcome[Any]]:
            raise RuntimeError("broken")

    broken = Broken()
    assert [str(each) for each in await held(thread, *((Turn(), 1, broken.part(what)) for what in "ab"))] == [
        "broken",
        "broken",
    ]
    assert (await call(thread, Turn(), 0, lambda: 1)).value == 1


async def test_a_cancelled_call_is_in_no_pass(thread: ModelThread) -> None:
    shared, gate = Recorded(), Gate()
    busy = asyncio.ensure_future(call(thread, Turn(), 0, gate))
    await until(gate.running.is_set)
    calls = [asyncio.ensure_future(thread.call(Turn(), order, shared.part(order))) for order in range(4)]
    await asyncio.sleep(0)
    for place in (0, 2):
        calls[place].cancel()
    await asyncio.sleep(0)
    gate.open()
    assert [each.value for each in await asyncio.gather(calls[1], calls[3])] == [1, 3]
    await busy
    assert shared.passes == [[1, 3]]


async def test_callers_share_a_pass_by_what_they_have_had(thread: ModelThread) -> None:
    """Each caller's ordinary requests wait; without charges while a pass is filled, one caller would fill it alone."""
    shared = Recorded(40)
    thread._token_s, thread._meter = 1.0, Meter(10.0)  # a part of 10 tokens is an ordinary request
    many = [(turn("many", 1.0), order, shared.part(f"many {order}")) for order in range(4)]
    few = [(turn("few", 1.0), 10 + order, shared.part(f"few {order}")) for order in range(2)]
    await held(thread, *many, *few)
    assert sorted(map(str, shared.passes[0])) == ["few 0", "few 1", "many 0", "many 1"]
