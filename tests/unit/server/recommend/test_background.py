from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

from igd_server.recommend.background import Background
from virtual_time import run_in_virtual_time

from igd_core.errors import StoreUnavailable

if TYPE_CHECKING:
    import pytest


def test_jobs_of_one_key_run_in_their_order_and_others_beside_them() -> None:
    done: list[tuple[str, int]] = []

    async def scenario() -> float:
        background = Background(max_waiting=100)

        def job(key: str, number: int) -> None:
            async def run() -> None:
                await asyncio.sleep(1.0 if key == "slow" else 0.001)
                done.append((key, number))

            assert background.offer(0 if key == "slow" else 1, run)

        for number in range(10):
            job("slow", number)
            job("quick", number)
        await background.settle()
        return asyncio.get_running_loop().time()

    assert 10.0 <= run_in_virtual_time(scenario()) < 10.1
    assert [entry for entry in done if entry[0] == "slow"] == [("slow", number) for number in range(10)]
    assert done[:10] == [("quick", number) for number in range(10)]


def test_what_is_too_much_is_left_undone() -> None:
    async def scenario() -> None:
        background, done = Background(max_waiting=5), []

        async def job() -> None:
            await asyncio.sleep(1.0)
            done.append(1)

        taken = [background.offer("key", job) for _ in range(9)]
        assert taken == [True] * 5 + [False] * 4
        await asyncio.sleep(0.5)  # the first is being done, so there is room for one more
        assert background.offer("key", job)
        assert not background.offer("key", job)
        await background.settle()
        assert len(done) == 6

    run_in_virtual_time(scenario())


def test_a_job_that_fails_does_not_stop_those_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        background, done = Background(max_waiting=5), []

        async def fail(error: Exception) -> None:
            raise error

        async def job() -> None:
            done.append(1)

        background.offer("key", lambda: fail(StoreUnavailable("gone")))
        background.offer("key", lambda: fail(ValueError("a mistake")))
        background.offer("key", job)
        await background.settle()
        assert done == [1]
        assert len(asyncio.all_tasks()) == 1

    run_in_virtual_time(scenario())
    assert [record.getMessage() for record in caplog.records] == ["background_error"]


def test_closing_finishes_what_it_can_in_its_time_and_takes_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        background, done = Background(max_waiting=5), []

        async def job() -> None:
            await asyncio.sleep(1.0)
            done.append(1)

        for _ in range(5):
            background.offer("key", job)
        await background.close(3.5)
        assert asyncio.get_running_loop().time() == 3.5
        assert len(done) == 3
        assert not background.offer("key", job)
        assert len(asyncio.all_tasks()) == 1

    run_in_virtual_time(scenario())
    assert [record.fields for record in caplog.records] == [{"jobs": 2}]  # type: ignore[attr-defined]


async def test_a_job_is_no_part_of_the_request_that_offered_it() -> None:
    variable = contextvars.ContextVar("variable", default="nobody's")
    variable.set("a request's")
    background, seen = Background(max_waiting=5), []

    async def job() -> None:
        seen.append(variable.get())

    background.offer("key", job)
    await background.settle()
    assert seen == ["nobody's"]
