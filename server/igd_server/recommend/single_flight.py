"""The same question asked by several at once is worked out once."""

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
class _Flight(Generic[T]):
    work: asyncio.Task[T]
    waiting: int = 0


class Flights(Generic[T]):
    """Work in progress, by key. It belongs to no caller: it goes on while anybody waits, and ends when all have left.

    All methods belong to one event loop.
    """

    def __init__(self, *, personal: tuple[type[Exception], ...] = ()) -> None:
        """``personal``: errors that concern only whoever began the work, as a deadline; the others begin anew."""
        self._personal = personal
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What ``work()`` returns or raises, or what the work under ``key`` does that is going on already.

        A caller may leave, by being cancelled, at any time: the others are none the wiser.

        Raises:
            EngineError: somebody other than its callers cancelled the work that this caller began.
        """
        while True:
            flight = self._flights.get(key)
            joined = flight is not None
            if flight is None:
                flight = self._flights[key] = _Flight(work=asyncio.create_task(work()))
                flight.work.add_done_callback(_retrieve)
            flight.waiting += 1
            try:
                await asyncio.wait((flight.work,))
            finally:
                flight.waiting -= 1
                if not flight.waiting or flight.work.done():
                    self._end(key, flight)
            if flight.work.cancelled():
                if not joined:
                    raise EngineError("the work was interrupted")
            elif not joined or not isinstance(flight.work.exception(), self._personal):
                return flight.work.result()

    def _end(self, key: Hashable, flight: _Flight[T]) -> None:
        """From now on the key means new work."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.work.cancel()


def _retrieve(work: asyncio.Task[T]) -> None:
    """Work that fails when nobody is left to hear of it is no fault of the event loop's."""
    if not work.cancelled():
        work.exception()
