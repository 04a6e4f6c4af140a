"""The store as requests use it: each call bounded in time, and refused at once while the store does not answer.

A store that hangs would cost every request its whole timeout. After a few failures in a row, calls are refused for a
second; then one call, the probe, tries again while the others are still refused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

from igd_core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from igd_core.store.base import Forgotten, HistoryStore, RecordList, RecordStore, ResultStore
    from igd_core.store.events import Event
    from igd_server.observe.metrics import GivenUp

    class GuardedStore(HistoryStore, RecordStore, ResultStore, Protocol):
        """What requests need from a store."""


T = TypeVar("T")

"""Why a call was given up: no answer in time, or not made, because the store did not answer others."""

_FAILURES_TO_OPEN = 5
_OPEN_S = 1.0
_GRACE_S = 0.005  # a store with a time-out of its own reports first, and knows the reason


class StoreGuard:
    """Histories and answers in a store that may be slow, hang or be gone.

    Reads and writes fail separately: a full store, or a replica, still answers reads; and records that nobody waits for
    keep no event out. All methods belong to one event loop and raise StoreUnavailable if the store does not answer.
    """

    def __init__(
        self, store: GuardedStore, *, timeout_s: float, on_giving_up: Callable[[str, GivenUp], None] | None = None
    ) -> None:
        """``on_giving_up`` gets the operation, a method's name, and the reason."""
        self._store = store
        self._timeout_s = timeout_s
        self._on_giving_up = on_giving_up
        self._reading = _Circuit()
        self._writing = _Circuit()
        self._recording = _Circuit()

    async def history(self, user_id: str, *, by: float | None = None) -> Sequence[Event]:
        """A user's events, oldest first; ``by``: a time of the event loop after which they come too late."""
        return await self._guarded("history", self._reading, lambda: self._store.history(user_id), by)

    async def get(self, key: str, *, by: float | None = None) -> bytes | None:
        """The value under ``key``; None if there is none."""
        return await self._guarded("get", self._reading, lambda: self._store.get(key), by)

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Record events; after an error some may be recorded. Returns how many were new."""
        return await self._guarded("append", self._writing, lambda: self._store.append(user_id, events))

    async def append_others(self, user_id: str, events: Sequence[Event]) -> int:
        """Record events that make no history, likewise."""
        return await self._guarded("append_others", self._writing, lambda: self._store.append_others(user_id, events))

    async def other_events(self, user_id: str) -> Sequence[Event]:
        """Those events of a user, oldest first."""
        return await self._guarded("other_events", self._reading, lambda: self._store.other_events(user_id))

    async def add_records(
        self, name: RecordList, records: Mapping[str, Sequence[bytes]], *, keep: int, ttl_s: float
    ) -> None:
        """Add to lists of users; after an error some may be added."""
        await self._guarded(
            "add_records",
            self._recording,
            lambda: self._store.add_records(name, records, keep=keep, ttl_s=ttl_s),
        )

    async def records(self, name: RecordList, user_id: str, *, by: float | None = None) -> Sequence[bytes]:
        """A list of a user, oldest first; ``by`` as for `history`."""
        return await self._guarded("records", self._reading, lambda: self._store.records(name, user_id), by)

    async def drop(self, keys: Sequence[str]) -> int:
        """Delete what is stored under these keys; returns of how many there was something."""
        return await self._guarded("drop", self._writing, lambda: self._store.drop(keys)) if keys else 0

    async def forget(self, user_id: str) -> Forgotten:
        """Delete everything stored about a user; returns how much there was."""
        return await self._guarded("forget", self._writing, lambda: self._store.forget(user_id))

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Store ``value`` for ``ttl_s`` seconds."""
        await self._guarded("put", self._writing, lambda: self._store.put(key, value, ttl_s))

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        """Store each value for ``ttl_s`` seconds; after an error some may be stored."""
        await self._guarded("put_all", self._writing, lambda: self._store.put_all(values, ttl_s))

    async def _guarded(
        self, operation: str, circuit: _Circuit, call: Callable[[], Awaitable[T]], by: float | None = None
    ) -> T:
        now = asyncio.get_running_loop().time()
        latest = now + self._timeout_s if by is None else min(by, now + self._timeout_s)
        if latest <= now or not circuit.admits(now):
            self._give_up(operation, "unasked")
            raise StoreUnavailable("the store was not asked: it has not answered lately")
        is_probe = circuit.is_open
        answered: bool | None = None  # None if the caller leaves first, or gives it too little time to tell
        try:
            async with asyncio.timeout_at(latest + _GRACE_S) as limit:
                result = await call()
            answered = True
        except StoreUnavailable:
            answered = False
            raise
        except TimeoutError:
            if not limit.expired():
                raise
            # Of a caller in a hurry the store learns nothing: else one client with short deadlines closes it to all.
            answered = False if latest - now >= self._timeout_s / 2 else None
            self._give_up(operation, "late")
            raise StoreUnavailable(f"the store did not answer within {latest - now:.3f} s") from None
        except Exception:
            answered = True  # with an error, but it answered
            raise
        finally:
            circuit.settle(answered=answered, is_probe=is_probe)
        return result

    def _give_up(self, operation: str, why: GivenUp) -> None:
        if self._on_giving_up is not None:
            self._on_giving_up(operation, why)


class _Circuit:
    """A circuit breaker: open after ``_FAILURES_TO_OPEN`` failures in a row, when only one probe a second passes."""

    def __init__(self) -> None:
        self._failures = 0
        self._probe_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._failures >= _FAILURES_TO_OPEN

    def admits(self, now: float) -> bool:
        """Whether a call may be made; while a probe runs, no other call is admitted."""
        if not self.is_open:
            return True
        if self._probing or now < self._probe_at:
            return False
        self._probing = True
        return True

    def settle(self, *, answered: bool | None, is_probe: bool) -> None:
        """Note how a call ended: answered or not; None if its caller left before."""
        if is_probe:
            self._probing = False
        if answered:
            self._failures = 0
        elif answered is False:
            self._failures += 1
            self._probe_at = asyncio.get_running_loop().time() + _OPEN_S
