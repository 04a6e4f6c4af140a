from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.http.limits import OwnCounters, RateLimiter, SharedCounters, open_limiter
from igd_server.observe.metrics import Metrics
from igd_server.settings import Settings
from patience import PATIENCE_S
from redis_server import RedisServer
from virtual_time import VirtualTimeLoop, run_in_virtual_time

from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from typing import Any

TIMEOUT_S = 0.25


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def in_redis(redis: RedisServer) -> AsyncIterator[SharedCounters]:
    redis.cli("flushall")
    counters = SharedCounters(redis.url, prefix="igd-test", timeout_s=10.0)
    yield counters
    await counters.close()


@pytest.fixture(params=["own", "shared"])
def shared(request: pytest.FixtureRequest) -> SharedCounters | None:
    if request.param == "own":
        return None
    counters: SharedCounters = request.getfixturevalue("in_redis")
    return counters


def by_virtual_clock(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run with the clocks that the limiter and its library read set to the loop's."""
    with pytest.MonkeyPatch.context() as patch:

        async def run() -> None:
            loop = asyncio.get_running_loop()
            patch.setattr(time, "time", loop.time)
            patch.setattr(time, "monotonic", loop.time)
            try:
                await coroutine
            finally:
                patch.undo()

        run_in_virtual_time(run())


def fallbacks(metrics: Metrics) -> float:
    lines = metrics.render("")[0].decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("igd_rate_limit_fallbacks_total "))


# --- both kinds of counters -------------------------------------------------------------------------------------------


async def test_exactly_the_limit_is_taken_at_once(shared: SharedCounters | None) -> None:
    limiter = RateLimiter("5/minute", shared=shared)
    answers = [await limiter.check("a") for _ in range(12)]
    assert answers[:5] == [None] * 5
    assert all(answer is not None and 1 <= answer <= 120 for answer in answers[5:])


async def test_many_at_the_same_moment_do_not_slip_through_together(shared: SharedCounters | None) -> None:
    limiter = RateLimiter("20/minute", shared=shared)
    answers = await asyncio.gather(*(limiter.check("a") for _ in range(60)))
    assert answers.count(None) == 20


async def test_one_callers_flood_is_no_others_business(shared: SharedCounters | None) -> None:
    limiter = RateLimiter("2/minute", shared=shared)
    assert [await limiter.check("a") is None for _ in range(4)] == [True, True, False, False]
    assert await limiter.check("b") is None


async def test_a_batch_counts_as_its_entries_and_at_most_as_the_limit(shared: SharedCounters | None) -> None:
    limiter = RateLimiter("10/minute", shared=shared)
    assert await limiter.check("a", 8) is None
    assert await limiter.check("a", 3) is not None
    assert await limiter.check("a", 2) is None  # the refused three were not counted
    assert await limiter.check("b", 1000) is None
    assert await limiter.check("b") is not None


async def test_a_refused_batch_does_not_count_at_all(shared: SharedCounters | None) -> None:
    limiter = RateLimiter("10/minute", shared=shared)
    for _ in range(9):
        assert await limiter.check("a") is None
    for _ in range(20):
        assert await limiter.check("a") is None
        assert await limiter.weigh("a", 2) is not None
    assert await limiter.check("a") is None
    assert await limiter.weigh("a", 1) is None
    assert await limiter.check("a") is not None


@pytest.mark.parametrize("entries", [10, 11, 1000])
async def test_a_batch_of_the_limit_or_more_takes_all_of_it(shared: SharedCounters | None, entries: int) -> None:
    limiter = RateLimiter("10/minute", shared=shared)
    assert await limiter.check("a") is None
    assert await limiter.weigh("a", entries) is None
    assert await limiter.check("a") is not None


async def test_after_the_seconds_it_was_told_a_caller_is_served(shared: SharedCounters | None) -> None:
    limiter = RateLimiter("3/second", shared=shared)
    for _ in range(3):
        assert await limiter.check("a") is None
    wait_s = await limiter.check("a")
    assert wait_s in {1, 2}
    await asyncio.sleep(wait_s)
    assert await limiter.check("a") is None


# --- time -------------------------------------------------------------------------------------------------------------


@given(
    amount=st.integers(1, 20),
    window_s=st.integers(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 120), st.integers(1, 25)), min_size=1, max_size=30),
    batch=st.integers(1, 20),
)
def test_whoever_waits_as_long_as_told_is_served_whatever_went_before(
    amount: int, window_s: int, steps: list[tuple[float, int]], batch: int
) -> None:
    async def run() -> None:
        limiter = RateLimiter(f"{amount}/{window_s} second")
        for pause_s, burst in steps:
            await asyncio.sleep(pause_s)
            for _ in range(burst):
                await limiter.check("a")
        wait_s = await limiter.check("a")
        if wait_s is not None:
            assert wait_s <= 2 * window_s
            await asyncio.sleep(wait_s)
            assert await limiter.check("a") is None
        await asyncio.sleep(2 * window_s)
        assert await limiter.check("a", batch) is None

    by_virtual_clock(run())


@given(amount=st.integers(1, 20), window_s=st.integers(1, 60), pauses_s=st.lists(st.floats(0, 20), max_size=200))
def test_no_aligned_window_gets_more_than_the_limit_and_no_two_more_than_twice(
    amount: int, window_s: int, pauses_s: list[float]
) -> None:
    async def run() -> None:
        limiter = RateLimiter(f"{amount}/{window_s} second")
        taken_in: dict[int, int] = {}
        for pause_s in pauses_s:
            await asyncio.sleep(pause_s)
            window = int(time.time() / window_s)
            if await limiter.check("a") is None:
                taken_in[window] = taken_in.get(window, 0) + 1
        assert all(taken <= amount for taken in taken_in.values())

    by_virtual_clock(run())


def test_the_edge_of_a_window_lets_no_double_burst_through() -> None:
    async def run() -> None:
        limiter = RateLimiter("100/minute")
        await asyncio.sleep(59.9)
        before = [await limiter.check("a") for _ in range(100)]
        await asyncio.sleep(0.2)
        after = [await limiter.check("a") for _ in range(100)]
        assert (before.count(None), after.count(None)) == (100, 1)

    by_virtual_clock(run())


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_wall_clock_that_jumps_locks_nobody_out(jump_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        limiter = RateLimiter("2/minute")
        for _ in range(3):
            await limiter.check("a")
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(time, "time", lambda: loop.time() + jump_s)
        await asyncio.sleep(120)
        assert await limiter.check("a") is None
        monkeypatch.undo()

    with pytest.MonkeyPatch.context() as patch:
        loop = VirtualTimeLoop()
        patch.setattr(time, "monotonic", loop.time)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())
            patch.undo()


def test_counters_whose_time_is_over_are_forgotten() -> None:
    async def run() -> None:
        counters = OwnCounters()
        for caller in range(20_000):
            await counters.incr(f"caller-{caller}", 60)
            await asyncio.sleep(0.1)
        assert len(counters.storage) < 3_000
        assert len(counters.expirations) < 3_000

    by_virtual_clock(run())


async def test_no_more_refused_callers_are_remembered_than_a_bound() -> None:
    limiter = RateLimiter("1/day")
    for caller in range(10_500):
        await limiter.check(str(caller))
        await limiter.check(str(caller))
    assert len(limiter._full_until) == 10_000
    assert await limiter.check("0") is not None


# --- Redis ------------------------------------------------------------------------------------------------------------


async def test_two_servers_count_together(in_redis: SharedCounters, redis: RedisServer) -> None:
    elsewhere = SharedCounters(redis.url, prefix="igd-test", timeout_s=10.0)
    one, other = RateLimiter("6/minute", shared=in_redis), RateLimiter("6/minute", shared=elsewhere)
    taken = [await limiter.check("a") is None for limiter in (one, other) * 5]
    assert taken.count(True) == 6
    keys = redis.cli("keys", "*").splitlines()
    assert keys
    assert all(key.startswith("igd-test:limits:") for key in keys)
    assert all(0 < int(redis.cli("ttl", key)) <= 120 for key in keys)
    await other.close()


def commands(redis: RedisServer) -> int:
    lines = redis.cli("info", "stats").splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("total_commands_processed:"))


async def test_a_flood_of_refused_requests_costs_redis_nothing(in_redis: SharedCounters, redis: RedisServer) -> None:
    limiter = RateLimiter("3/minute", shared=in_redis)
    for _ in range(4):
        await limiter.check("a")
    before = commands(redis)
    for _ in range(500):
        assert await limiter.check("a") is not None
    assert commands(redis) - before <= 3  # the questions themselves


async def test_while_redis_is_down_each_server_counts_alone_and_then_together_again(
    in_redis: SharedCounters, redis: RedisServer
) -> None:
    metrics = Metrics()
    limiter = RateLimiter("3/minute", shared=in_redis, metrics=metrics)
    assert await limiter.check("a") is None
    assert fallbacks(metrics) == 0
    redis.kill()
    try:
        answers = [await limiter.check("a") for _ in range(4)]
        assert [answer is None for answer in answers] == [True, True, True, False]
        assert fallbacks(metrics) == 4
    finally:
        redis.start()
    async with asyncio.timeout(PATIENCE_S):
        for caller in range(1_000):
            if redis.cli("dbsize") != "0":
                break
            await limiter.check(f"b{caller}")
            await asyncio.sleep(0.05)
    asked_alone = fallbacks(metrics)
    await limiter.check("c")
    assert fallbacks(metrics) == asked_alone


async def test_when_redis_hangs_those_on_their_way_wait_once_and_the_rest_not_at_all(
    redis: RedisServer,
) -> None:
    metrics = Metrics()
    shared = SharedCounters(redis.url, prefix="igd-test", timeout_s=TIMEOUT_S)
    limiter = RateLimiter("1000/minute", shared=shared, metrics=metrics)
    await limiter.check("a")
    redis.pause()
    try:
        began = time.monotonic()
        assert await asyncio.gather(*(limiter.check("a") for _ in range(100))) == [None] * 100
        assert TIMEOUT_S <= time.monotonic() - began < 60 * TIMEOUT_S  # one after the other: 100
        began = time.monotonic()
        assert [await limiter.check("a") for _ in range(100)] == [None] * 100
        assert time.monotonic() - began < 60 * TIMEOUT_S
        assert fallbacks(metrics) == 200
        await asyncio.sleep(1.0)  # the next one asks again, alone
        asking = [asyncio.create_task(limiter.check("a")) for _ in range(20)]
        for _ in range(10):
            await asyncio.sleep(0)  # those that wait for nothing end, however busy the machine is
        assert sum(not each.done() for each in asking) == 1
        assert await asyncio.gather(*asking) == [None] * 20
    finally:
        redis.resume()
    await limiter.close()


async def test_a_full_redis_refuses_nobody(in_redis: SharedCounters, redis: RedisServer) -> None:
    metrics = Metrics()
    limiter = RateLimiter("10/minute", shared=in_redis, metrics=metrics)
    redis.cli("config", "set", "maxmemory", "1")
    try:
        assert await limiter.check("a") is None
        assert fallbacks(metrics) == 1
    finally:
        redis.cli("config", "set", "maxmemory", "0")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["1/second", "600/minute", "10/5 second", "10/5second", "999999999/999999 day"])
def test_every_rate_that_the_settings_take_is_one(rate: str) -> None:
    settings = Settings(artifact=Path("a"), model="m", rate_limit=rate)
    assert open_limiter(settings, Metrics()) is not None


@pytest.mark.parametrize("rate", ["0/minute", "many", "", "5/fortnight"])
def test_a_rate_that_is_none_is_refused(rate: str) -> None:
    with pytest.raises(InputError, match="rate_limit: "):
        RateLimiter(rate)


@pytest.mark.parametrize(
    ("store", "shares"),
    [
        ("memory://", False),
        ("file:///tmp/store", False),
        ("redis://h:6379/0", True),
        ("rediss://h:6379", True),
        ("redis+sentinel://h:26379/main", True),
        ("rediss+cluster://h:7000,i:7001", True),
    ],
)
async def test_counts_are_shared_where_the_store_is_redis(store: str, shares: bool) -> None:
    settings = Settings(artifact=Path("a"), model="m", rate_limit="5/minute", store=store)
    limiter = open_limiter(settings, Metrics())
    assert limiter is not None
    assert (limiter._shared is not None) == shares
    await limiter.close()


def test_without_a_rate_there_is_no_limiter() -> None:
    assert open_limiter(Settings(artifact=Path("a"), model="m"), Metrics()) is None
