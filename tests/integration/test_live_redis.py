"""Live catalogues on a real Redis that is killed, frozen, full, or holds what nobody published; all under load."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from publishing import WatchedEngine, add, deployed, edition, publish, serves, until
from redis_server import RedisServer

from igd_core.errors import StoreUnavailable
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.store.base import StoreOptions
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from igd_server.catalogues.deployment import Deployment

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.store.base import Store

OPTIONS = StoreOptions(timeout_s=1.0, bulk_timeout_s=5.0, chunk_bytes=512)
RECOVERED_S = 25.0
# Clients that wait for no model at all keep the event loop for themselves: what loads versions then starves.
DECODING_S = 0.02


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    directory = tmp_path / "redis"
    directory.mkdir()
    with RedisServer(directory, appendonly="yes", appendfsync="always") as running:
        yield running


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[Store]:
    opened = open_store(redis.url, options=OPTIONS)
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def editions(tokenizer: TitleTokenizer) -> list[Artifact]:
    return [edition(tokenizer, number) for number in range(6)]


@dataclass(slots=True, kw_only=True)
class Load:
    """What clients got."""

    answers: int = 0
    versions: set[str] = field(default_factory=set)


@contextlib.asynccontextmanager
async def under_load(deployment: Deployment) -> AsyncIterator[Load]:
    """Clients that ask all the time; each answer must be whole, and of the one version that it says."""
    load = Load()
    stop = asyncio.Event()

    async def client(number: int) -> None:
        query = Query(history=[ItemIndex(number)], k=3)
        while not stop.is_set():
            with deployment.lease() as served:
                found = await served.recommender.recommend(query)
                ids = [served.catalogue.item_ids[item.item] for item in found.items]
            assert found.query.version == served.version
            assert len(ids) == 3
            assert len({item_id.split("-")[1] for item_id in ids}) == 1
            load.answers += 1
            load.versions.add(served.version)

    async with asyncio.TaskGroup() as clients:
        for number in range(3):
            clients.create_task(client(number))
        yield load
        stop.set()


async def test_fifty_publishes_in_a_row_under_load_end_at_the_newest(
    store: Store, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    for artifact in editions[1:]:
        await add(store, artifact, tmp_path)
    engine = WatchedEngine(delay_s=DECODING_S)
    async with deployed(store, tmp_path / "cache", engine) as deployment, under_load(deployment) as load:
        for number in range(50):
            await store.activate("films", editions[number % 6].version)
        newest = editions[49 % 6].version
        await serves(deployment, newest)
        await until(lambda: newest in load.versions)
        await until(lambda: engine.versions == {newest})
    assert engine.most_loading == 1
    assert len(engine.loads) < 25


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_redis_goes_and_comes_back_and_no_request_notices(
    fault: str, redis: RedisServer, store: Store, editions: list[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    second = await add(store, editions[1], tmp_path)
    engine = WatchedEngine(delay_s=DECODING_S)
    async with deployed(store, tmp_path / "cache", engine) as deployment, under_load(deployment) as load:
        live = deployment.live("films")
        assert live is not None
        redis.kill() if fault == "killed" else redis.pause()
        await until(lambda: live.trouble == "the store cannot be reached")
        before = load.answers
        await until(lambda: load.answers > before + 20)
        assert deployment.why_not_ready() is None
        await asyncio.to_thread(redis.start if fault == "killed" else redis.resume)
        back = time.monotonic()
        while True:  # the publisher's connections are as dead as the server's
            with contextlib.suppress(StoreUnavailable):
                await store.activate("films", second)
                break
        await serves(deployment, second)
        assert time.monotonic() - back < RECOVERED_S
        await until(lambda: live.trouble is None)
        await until(lambda: second in load.versions)
        assert list(live.refusals) == []
    assert load.versions == {first, second}


@pytest.mark.parametrize("damage", ["another byte", "a chunk gone", "all chunks gone", "another manifest"])
async def test_what_redis_holds_is_not_what_was_published_and_the_old_version_serves_on(
    damage: str, redis: RedisServer, store: Store, editions: list[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    bad = await add(store, editions[1], tmp_path)
    chunks = f"igd:{{films}}:chunk:{bad}"
    if damage == "another byte":
        redis.cli("setrange", f"{chunks}:trie.safetensors:1", "100", "x")
    elif damage == "a chunk gone":
        redis.cli("del", f"{chunks}:items.parquet:0")
    elif damage == "all chunks gone":
        for key in redis.cli("--scan", "--pattern", f"{chunks}:*").splitlines():
            redis.cli("del", key)
    else:
        for key in redis.cli("--scan", "--pattern", f"igd:{{films}}:chunk:{first}:manifest.json:*").splitlines():
            redis.cli("copy", key, key.replace(first, bad), "replace")
    engine = WatchedEngine(delay_s=DECODING_S)
    async with deployed(store, tmp_path / "cache", engine) as deployment, under_load(deployment) as load:
        await store.activate("films", bad)
        live = deployment.live("films")
        assert live is not None
        await until(lambda: bad in live.refusals)
        before = load.answers
        await until(lambda: load.answers > before + 20)
        assert next(iter(live.refusals)).reason == "damaged"
        assert engine.versions == {first}
        await publish(store, editions[1], tmp_path)  # again, and whole this time
        newest = await publish(store, editions[2], tmp_path)
        await serves(deployment, newest)
        await until(lambda: newest in load.versions)
        move = await live.roll_back()
        await serves(deployment, bad)
        assert move.version == bad
        assert list(live.refusals) == []
        await until(lambda: bad in load.versions)
    assert load.versions == {first, editions[2].version, bad}


async def test_a_full_redis_takes_no_new_version_and_stops_no_server(
    redis: RedisServer, store: Store, editions: list[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    second = await add(store, editions[1], tmp_path)
    engine = WatchedEngine(delay_s=DECODING_S)
    async with deployed(store, tmp_path / "cache", engine) as deployment, under_load(deployment) as load:
        redis.cli("config", "set", "maxmemory", "1")
        with pytest.raises(StoreUnavailable):
            await add(store, editions[2], tmp_path)
        before = load.answers
        await until(lambda: load.answers > before + 20)
        live = deployment.live("films")
        assert live is not None
        assert live.trouble is None
        redis.cli("config", "set", "maxmemory", "0")
        await store.activate("films", second)
        await serves(deployment, second)
        await until(lambda: second in load.versions)
    assert load.versions == {first, second}


async def test_a_server_starts_without_redis_on_what_it_served_last(
    redis: RedisServer, store: Store, editions: list[Artifact], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, cache):
        pass
    redis.kill()
    started = time.monotonic()
    async with deployed(store, cache) as deployment:
        assert time.monotonic() - started < RECOVERED_S
        assert deployment.served().version == first
        assert deployment.why_not_ready() is None
        await asyncio.to_thread(redis.start)
        second = await add(store, editions[1], tmp_path)
        await store.activate("films", second)
        await serves(deployment, second)


async def test_two_servers_follow_one_pointer_and_share_a_cache(
    redis: RedisServer, store: Store, editions: list[Artifact], tmp_path: Path
) -> None:
    other = open_store(redis.url, options=OPTIONS)
    await publish(store, editions[0], tmp_path)
    cache = tmp_path / "cache"
    async with deployed(store, cache) as one, deployed(other, cache) as two:
        for artifact in editions[1:]:
            version = await publish(store, artifact, tmp_path)
            await serves(one, version)
            await serves(two, version)
        for deployment in (one, two):
            live = deployment.live("films")
            assert live is not None
            assert list(live.refusals) == []
    await other.close()
