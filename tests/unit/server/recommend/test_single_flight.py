from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.recommend.single_flight import SingleFlight
from virtual_time import run_in_virtual_time

from igd_core.errors import DeadlineExceeded, EngineError

ASKED = st.lists(
    st.tuples(
        st.sampled_from("ab"),  # the key
        st.integers(0, 40),  # when it is asked, and after how long the caller leaves, ticks
        st.none() | st.integers(0, 40),
    ),
    min_size=1,
    max_size=12,
)
TICK_S = 0.125


class Work:
    """Work that takes ten ticks and returns its own number."""

    def __init__(self, *, fails: bool = False) -> None:
        self.begun = Counter[str]()
        self.running = Counter[str]()
        self.most = Counter[str]()
        self._fails = fails

    async def __call__(self, key: str) -> tuple[str, int]:
        self.begun[key] += 1
        number = self.begun[key]
        self.running[key] += 1
        self.most[key] = max(self.most[key], self.running[key])
        try:
            await asyncio.sleep(10 * TICK_S)
            if self._fails:
                raise EngineError(f"{key}{number}")
            return key, number
        finally:
            self.running[key] -= 1


@given(asked=ASKED, fails=st.booleans())
def test_every_caller_who_stays_gets_exactly_one_answer_whoever_leaves(
    asked: list[tuple[str, int, int | None]], fails: bool
) -> None:
    work, single = Work(fails=fails), SingleFlight[tuple[str, int]]()
    answers: list[list[object]] = [[] for _ in asked]

    async def ask(position: int, key: str, at: int) -> None:
        await asyncio.sleep(at * TICK_S)
        try:
            answers[position].append(await single.join(key, lambda: work(key)))
        except EngineError as error:
            answers[position].append(error)

    async def leave(caller: asyncio.Task[None], at: float) -> None:
        await asyncio.sleep(at * TICK_S)
        caller.cancel()

    async def scenario() -> None:
        callers = [asyncio.create_task(ask(position, key, at)) for position, (key, at, _) in enumerate(asked)]
        # Leaving falls between ticks, so that nobody leaves in the moment of an answer.
        leaving = [
            asyncio.create_task(leave(caller, at + after + 0.5))
            for caller, (_, at, after) in zip(callers, asked, strict=True)
            if after is not None
        ]
        await asyncio.wait(callers)
        await asyncio.gather(*leaving)
        assert len(asyncio.all_tasks()) == 1

    run_in_virtual_time(scenario())
    for (key, _, after), got in zip(asked, answers, strict=True):
        assert len(got) <= 1
        if after is None or after >= 10:
            assert len(got) == 1
            assert isinstance(got[0], EngineError) if fails else (isinstance(got[0], tuple) and got[0][0] == key)
    assert all(most == 1 for most in work.most.values())
    assert not any(work.running.values())
    assert len(single) == 0


def test_identical_questions_at_once_are_worked_out_once() -> None:
    async def scenario() -> None:
        work, single = Work(), SingleFlight[tuple[str, int]]()
        landed = await asyncio.gather(*(single.join("a", lambda: work("a")) for _ in range(50)))
        assert work.begun == {"a": 1}
        assert landed == [("a", 1)] * 50
        assert await single.join("a", lambda: work("a")) == ("a", 2)

    run_in_virtual_time(scenario())


def test_work_goes_on_without_the_one_who_began_it_and_ends_when_all_have_left() -> None:
    async def scenario() -> None:
        work, single = Work(), SingleFlight[tuple[str, int]]()
        callers = [asyncio.create_task(single.join("a", lambda: work("a"))) for _ in range(3)]
        for caller in callers:
            await asyncio.sleep(TICK_S)
            assert work.running["a"] == 1
            caller.cancel()
        await asyncio.wait(callers)
        await asyncio.sleep(0)
        assert work.running["a"] == 0
        assert work.begun == {"a": 1}

    run_in_virtual_time(scenario())


def test_an_error_that_is_one_callers_own_is_not_the_others() -> None:
    deadlines = {"short": 1.0, "middle": 2.0, "long": 9.0}
    begun = []

    async def scenario() -> None:
        single = SingleFlight[str](personal=(DeadlineExceeded,))

        async def work(caller: str) -> str:
            begun.append(caller)
            await asyncio.sleep(min(5.0, deadlines[caller]))
            if deadlines[caller] < 5.0:
                raise DeadlineExceeded(caller)
            return caller

        landed = await asyncio.gather(
            *(single.join("key", lambda caller=caller: work(caller)) for caller in deadlines),  # type: ignore[misc]
            return_exceptions=True,
        )
        assert [isinstance(each, DeadlineExceeded) for each in landed] == [True, True, False]
        assert str(landed[1]) == "middle"

    run_in_virtual_time(scenario())
    assert begun == ["short", "middle", "long"]


def test_work_that_somebody_else_stops_is_an_error_for_one_and_begun_anew_for_others() -> None:
    async def scenario() -> None:
        work, single = Work(), SingleFlight[tuple[str, int]]()
        callers = [asyncio.create_task(single.join("a", lambda: work("a"))) for _ in range(3)]
        await asyncio.sleep(TICK_S)
        (stopped,) = asyncio.all_tasks() - {*callers, asyncio.current_task()}
        stopped.cancel()
        with pytest.raises(EngineError, match="interrupted"):
            await callers[0]
        assert [await caller for caller in callers[1:]] == [("a", 2)] * 2

    run_in_virtual_time(scenario())


def test_work_that_fails_after_all_have_left_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(10)
        finally:
            raise EngineError("while it was being stopped")

    async def scenario() -> None:
        single = SingleFlight[str]()
        caller = asyncio.create_task(single.join("a", stubborn))
        await asyncio.sleep(1)
        caller.cancel()
        await asyncio.wait((caller,))
        await asyncio.sleep(0)

    run_in_virtual_time(scenario())
    assert not caplog.records
