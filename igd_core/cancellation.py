"""End tasks, also those whose libraries lose a cancellation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_AGAIN_S = 1.0


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until each has ended; what they return or raise is left to them.

    One `Task.cancel` is not enough for a loop that awaits other people's code: `asyncio.wait_for` of Python 3.11 drops
    a cancellation that comes in the very moment in which the awaited thing is done, and the loop goes on for ever.
    A task may clean up for a second before it is cancelled again.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
