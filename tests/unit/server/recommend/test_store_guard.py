from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from igd_server.recommend.store_guard import StoreGuard
from virtual_time import run_in_virtual_time

from igd_core.errors import StoreError, StoreUnavailable
from igd_core.store.base import Forgotten
from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

TIMEOUT_S = 0.25


@dataclass(slots=True)
class Moody:
    """A store that hangs, refuses or answers, as told; ``asked`` counts the calls that reach it."""

    delay_s: float = 0.0
    error: Exception | None = None
    asked: list[str] = field(default_factory=list)
    memory: MemoryStore = field(default_factory=MemoryStore)

    async def _mood(self, operation: str) -> None:
        self.asked.append(operation)
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error

    async def get(self, key: str) -> bytes | None:
        await self._mood("get")
        return await self.memory.get(key)

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        await self._mood("put")
        await self.memory.put(key, value, ttl_s)

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        await self._mood("put_all")
        await self.memory.put_all(values, ttl_s)

    async def history(self, user_id: str) -> list[object]:
        await self._mood("history")
        return [user_id]

    async def append(self, *_: object) -> int:
        await self._mood("append")
        return 1

    async def forget(self, _: str) -> Forgotten:
        await self._mood("forget")
        return Forgotten(events=1)

    async def add_records(self, *_: object, **__: object) -> None:
        await self._mood("add_records")


def guarded(store: Moody, given_up: list[tuple[str, str]] | None = None) -> StoreGuard:
    def note(operation: str, why: str) -> None:
        if given_up is not None:
            given_up.append((operation, why))

    return StoreGuard(store, timeout_s=TIMEOUT_S, on_giving_up=note)  # type: ignore[arg-type]


async def seconds_until_refused(call: Awaitable[object]) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(StoreUnavailable):
        await call
    return loop.time() - started


def test_what_the_store_answers_comes_back() -> None:
    async def scenario() -> None:
        guard = guarded(Moody(delay_s=0.9 * TIMEOUT_S))
        await guard.put("k", b"v", 60.0)
        assert await guard.get("k") == b"v"
        await guard.put_all({"k": b"w", "l": b"x"}, 60.0)
        assert [await guard.get("k"), await guard.get("l")] == [b"w", b"x"]
        assert await guard.get("other") is None
        assert await guard.history("u") == ["u"]  # type: ignore[comparison-overlap]
        assert await guard.append("u", []) == 1
        assert await guard.forget("u") == Forgotten(events=1)

    run_in_virtual_time(scenario())


def test_a_store_that_hangs_costs_five_calls_their_time_and_then_one_a_second() -> None:
    async def scenario() -> None:
        store, given_up = Moody(delay_s=3600.0), []  # type: ignore[var-annotated]
        guard = guarded(store, given_up)
        for _ in range(5):
            assert TIMEOUT_S <= await seconds_until_refused(guard.get("k")) <= 1.1 * TIMEOUT_S
        for _ in range(1000):
            assert await seconds_until_refused(guard.get("k")) == 0
        assert len(store.asked) == 5
        for probes in range(1, 4):
            await asyncio.sleep(1.0)
            calls = [asyncio.create_task(seconds_until_refused(guard.get("k"))) for _ in range(50)]
            waited = [await call for call in calls]
            assert sum(seconds > 0 for seconds in waited) == 1
            assert len(store.asked) == 5 + probes
        assert given_up.count(("get", "late")) == 8
        assert given_up.count(("get", "unasked")) == 1000 + 3 * 49

    run_in_virtual_time(scenario())


def test_the_first_answer_ends_it() -> None:
    async def scenario() -> None:
        store = Moody(error=StoreUnavailable("gone"))
        guard = guarded(store)
        for _ in range(20):
            await seconds_until_refused(guard.get("k"))
        assert len(store.asked) == 5
        store.error = None
        await seconds_until_refused(guard.get("k"))  # not a second later yet
        await asyncio.sleep(1.0)
        for _ in range(20):
            assert await guard.get("k") is None
        assert len(store.asked) == 25

    run_in_virtual_time(scenario())


def test_failures_count_only_in_a_row() -> None:
    async def scenario() -> None:
        store = Moody()
        guard = guarded(store)
        for _ in range(10):
            store.error = StoreUnavailable("for a moment")
            for _ in range(4):
                await seconds_until_refused(guard.get("k"))
            store.error = None
            assert await guard.get("k") is None
        assert len(store.asked) == 50

    run_in_virtual_time(scenario())


def test_a_store_that_takes_no_writes_is_still_read() -> None:
    async def scenario() -> None:
        store = Moody(error=StoreUnavailable("OOM command not allowed"))
        guard = guarded(store)
        for _ in range(6):
            await seconds_until_refused(guard.append("u", []))
        await seconds_until_refused(guard.put("k", b"", 1.0))
        await seconds_until_refused(guard.put_all({"k": b""}, 1.0))
        await seconds_until_refused(guard.forget("u"))
        assert store.asked == ["append"] * 5
        store.error = None
        assert await guard.history("u") == ["u"]  # type: ignore[comparison-overlap]

    run_in_virtual_time(scenario())


def test_records_that_the_store_does_not_take_keep_no_event_out() -> None:
    async def scenario() -> None:
        store = Moody(error=StoreUnavailable("gone"))
        guard = guarded(store)
        for _ in range(6):
            await seconds_until_refused(guard.add_records("impressions", {"u": [b""]}, keep=1, ttl_s=1.0))
        assert store.asked == ["add_records"] * 5
        store.error = None
        assert await guard.append("u", []) == 1

    run_in_virtual_time(scenario())


def test_an_answer_that_cannot_be_used_is_still_an_answer() -> None:
    async def scenario() -> None:
        store = Moody(error=StoreError("damaged"))
        guard = guarded(store)
        for _ in range(20):
            with pytest.raises(StoreError, match="damaged"):
                await guard.history("u")
        assert len(store.asked) == 20

    run_in_virtual_time(scenario())


def test_two_calls_of_one_request_share_its_time() -> None:
    async def scenario() -> None:
        guard = guarded(Moody(delay_s=0.8 * TIMEOUT_S))
        by = asyncio.get_running_loop().time() + TIMEOUT_S
        assert await guard.history("u", by=by) == ["u"]  # type: ignore[comparison-overlap]
        assert await seconds_until_refused(guard.get("k", by=by)) <= 0.3 * TIMEOUT_S
        assert await seconds_until_refused(guard.get("k", by=by)) == 0

    run_in_virtual_time(scenario())


def test_a_probe_whose_caller_leaves_makes_room_for_another() -> None:
    async def scenario() -> None:
        store = Moody(delay_s=3600.0)
        guard = guarded(store)
        await asyncio.gather(*(seconds_until_refused(guard.get("k")) for _ in range(5)))
        await asyncio.sleep(1.0)
        probe = asyncio.create_task(guard.get("k"))
        await asyncio.sleep(0)
        await seconds_until_refused(guard.get("k"))
        assert len(store.asked) == 6
        probe.cancel()
        await asyncio.wait((probe,))
        store.delay_s = 0.0
        assert await guard.get("k") is None

    run_in_virtual_time(scenario())


def test_callers_in_a_hurry_do_not_close_a_store_that_answers_to_the_others() -> None:
    async def run() -> None:
        store = Moody(delay_s=0.1)
        guard = StoreGuard(store, timeout_s=TIMEOUT_S)  # type: ignore[arg-type]
        for _ in range(20):
            with pytest.raises(StoreUnavailable, match=r"within 0\.010 s"):
                await guard.get("key", by=asyncio.get_running_loop().time() + 0.01)
            assert await guard.history("ann") == ["ann"]  # type: ignore[comparison-overlap]
        store.delay_s = 9.0
        for _ in range(5):
            with pytest.raises(StoreUnavailable, match="within"):
                await guard.get("key", by=asyncio.get_running_loop().time() + 0.9 * TIMEOUT_S)
        with pytest.raises(StoreUnavailable, match="was not asked"):
            await guard.get("key")

    run_in_virtual_time(run())


def test_callers_who_leave_are_no_failures() -> None:
    async def scenario() -> None:
        store = Moody(delay_s=0.1)
        guard = guarded(store)
        for _ in range(10):
            call = asyncio.create_task(guard.get("k"))
            await asyncio.sleep(0.05)
            call.cancel()
            await asyncio.wait((call,))
        assert await guard.get("k") is None
        assert len(store.asked) == 11

    run_in_virtual_time(scenario())
