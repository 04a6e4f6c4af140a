"""Bounded background work that no answer waits for; dropped if there is too much of it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING

from igd_core.cancellation import cancel_and_wait
from igd_core.errors import StoreError
from igd_server.observe.logs import cause_of, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from typing import TypeAlias

    Job: TypeAlias = Callable[[], Awaitable[None]]

_LANES = 8

_log = logging.getLogger("igd.server")


class Background:
    """Runs a few jobs at a time; jobs of one key run one after another, in the order of arrival.

    All methods belong to one event loop. A StoreError in a job is ignored: the store's own metrics count it.
    """

    def __init__(self, *, max_waiting: int) -> None:
        """``max_waiting``: how many jobs may wait; more are refused."""
        self._max_waiting = max_waiting
        self._waiting = 0
        self._lanes: list[deque[Job]] = [deque() for _ in range(_LANES)]
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._closed = False

    def offer(self, key: Hashable, job: Job) -> bool:
        """Run ``job`` soon; False if it is refused."""
        if self._closed or self._waiting >= self._max_waiting:
            return False
        lane = hash(key) % _LANES
        self._waiting += 1
        self._lanes[lane].append(job)
        if lane not in self._workers:
            # Outside the request's context: its trace ends with its answer.
            self._workers[lane] = asyncio.get_running_loop().create_task(self._work(lane), context=Context())
        return True

    async def settle(self) -> None:
        """Wait until no job is left."""
        while self._workers:
            await asyncio.wait(self._workers.values())

    async def close(self, timeout_s: float) -> None:
        """Refuse further jobs, and let the present ones run for ``timeout_s`` seconds."""
        self._closed = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.settle()
        except TimeoutError:
            _log.warning("background_work_left", extra={"fields": {"jobs": self._waiting + len(self._workers)}})
            await cancel_and_wait(tuple(self._workers.values()))

    async def _work(self, lane: int) -> None:
        queue = self._lanes[lane]
        try:
            while queue:
                job = queue.popleft()
                self._waiting -= 1
                await _done(job)
        finally:
            del self._workers[lane]


async def _done(job: Job) -> None:
    try:
        await job()
    except StoreError:
        pass
    except Exception as error:  # noqa: BLE001 - those that wait behind it are still to be done
        _log.error("background_error", extra={"fields": {"cause": cause_of(error), "traceback": where(error)}})
