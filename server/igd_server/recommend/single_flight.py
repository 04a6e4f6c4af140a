"""Single flight: if several requests ask for the same at once, the work is done once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from igd_core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from typing import Any

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class _Work(Generic[T]):
    work: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Work in progress, by key. It belongs to no caller: it goes on while anybody waits, and ends when all have left.

    All methods belong to one event loop.
    """

    def __init__(self, *, personal: tuple[type[Exception], ...] = ()) -> None:
        """``personal``: errors of the caller that began the work alone, such as its deadline; others begin again."""
        self._personal = personal
        self._running: dict[Hashable, _Work[T]] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``work()``, or of the work that is running under ``key``; raises what it raises.

        A caller may be cancelled at any time; the others are not affected.

        Raises:
            EngineError: something other than its callers cancelled the work.
        """
        while True:
            running = self._running.get(key)
            joined = running is not None
            if running is None:
                running = self._running[key] = _Work(work=asyncio.create_task(work()))
                running.work.add_done_callback(_retrieve)
            running.waiting += 1
            try:
                await asyncio.wait((running.work,))
            finally:
                running.waiting -= 1
                if not running.waiting or running.work.done():
                    self._end(key, running)
            if running.work.cancelled():
                if not joined:
                    raise EngineError("the work was interrupted")
            elif not joined or not isinstance(running.work.exception(), self._personal):
                return running.work.result()

    def _end(self, key: Hashable, running: _Work[T]) -> None:
        """The work has ended: the next caller of the key begins new work."""
        if self._running.get(key) is running:
            del self._running[key]
        running.work.cancel()


def _retrieve(work: asyncio.Task[T]) -> None:
    """Retrieve an error that nobody waits for, so that the event loop does not report it."""
    if not work.cancelled():
        work.exception()
