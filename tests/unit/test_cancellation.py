"""Tasks that lose a cancellation, as `asyncio.wait_for` of Python 3.11 lets them, end all the same."""

from __future__ import annotations

import asyncio

import pytest

from igd_core import cancellation
from igd_core.cancellation import cancel_and_wait


@pytest.mark.parametrize("lost", [0, 1, 3])
async def test_a_loop_that_loses_cancellations_ends(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "_AGAIN_S", 0.01)
    left = lost

    async def loop() -> None:
        nonlocal left
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if not left:
                    raise
                left -= 1

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancel_and_wait([task])
    assert task.cancelled()
    assert left == 0


async def test_one_that_cleans_up_is_cancelled_once_and_keeps_its_error() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            cleaned = True
            raise ValueError("what cleaning up found")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await cancel_and_wait([task])
    assert cleaned
    assert isinstance(task.exception(), ValueError)


async def test_ended_tasks_and_no_tasks_are_no_work() -> None:
    task = asyncio.create_task(asyncio.sleep(0, "done"))
    await task
    await cancel_and_wait([task])
    await cancel_and_wait([])
    assert task.result() == "done"
