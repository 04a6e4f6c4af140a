"""The Redis store when Redis misbehaves: down, hanging, full, read-only, killed, or holding what nobody put there."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bundles import FILES, contents
from redis_server import RedisServer, free_port
from stores import another_version, event, until, version_of

from igd_core.errors import ArtifactError, InputError, StoreError, StoreUnavailable
from igd_core.store.base import Forgotten, HistoryLimits, StoreOptions
from igd_core.store.open import open_store
from igd_core.store.redis import link as link_module
from igd_core.store.redis import subscription as subscription_module
from igd_core.store.redis.scripts import STORE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from igd_core.store.base import Store

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTATION = DOCS / "how-to" / "redis.md"
# On a busy machine a write with its fsync may take longer: only what is about waiting in vain waits this short.
QUICK_S = 0.25
PATIENCE_S = 8.0  # other tests share the cores; a call that nothing ends takes OPTIONS' 10 s, or for ever
OPTIONS = StoreOptions(timeout_s=10.0, bulk_timeout_s=10.0, chunk_bytes=1024)
QUICK = replace(OPTIONS, timeout_s=QUICK_S)
VERSION = "0123456789abcdef"
CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "activate": lambda store: store.activate("small", VERSION),
    "roll_back": lambda store: store.roll_back("small", VERSION),
    "current": lambda store: store.current("small"),
    "previous": lambda store: store.previous("small"),
    "catalogues": lambda store: store.catalogues(),
    "versions": lambda store: store.versions("small"),
    "hold": lambda store: store.hold("small", VERSION, "me", 5),
    "trial": lambda store: store.trial("small", VERSION),
    "end_trial": lambda store: store.end_trial("small", VERSION, "me", "died"),
    "prune": lambda store: store.prune("small", keep=1),
    "append": lambda store: store.append("ann", [event(1)]),
    "history": lambda store: store.history("ann"),
    "append_others": lambda store: store.append_others("ann", [event(1)]),
    "other_events": lambda store: store.other_events("ann"),
    "add_records": lambda store: store.add_records("links", {"ann": [b"x"], "bob": [b"y"]}, keep=5, ttl_s=60),
    "records": lambda store: store.records("links", "ann"),
    "identity": lambda store: store.identity(),
    "users": lambda store: anext(aiter(store.users())),
    "forget": lambda store: store.forget("ann"),
    "get": lambda store: store.get("key"),
    "put": lambda store: store.put("key", b"value", 5),
    "put_all": lambda store: store.put_all({"key": b"value", "other": b"value"}, 5),
    "drop": lambda store: store.drop(["other"]),
    "ping": lambda store: store.ping(),
}


def chunks_of(count: int) -> str:
    return json.dumps(dict.fromkeys(FILES, count))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    directory = tmp_path / "redis"
    directory.mkdir()
    with RedisServer(directory, appendonly="yes", appendfsync="always", repl_diskless_sync_delay="0") as running:
        yield running


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[Store]:
    opened = open_store(server.url, options=OPTIONS)
    yield opened
    await opened.close()


@pytest.fixture
async def quick_store(server: RedisServer) -> AsyncIterator[Store]:
    opened = open_store(server.url, options=QUICK)
    yield opened
    await opened.close()


async def seconds_until_unavailable(call: Awaitable[object]) -> float:
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await call
    assert "\n" not in str(caught.value)
    assert "redis://" in str(caught.value)
    return time.monotonic() - started


async def test_a_server_that_is_not_there_is_unavailable_at_once(pristine_bundle: Path, tmp_path: Path) -> None:
    store = open_store(f"redis://ann:s3cret@127.0.0.1:{free_port()}/0", options=QUICK)
    calls = [call(store) for call in CALLS.values()]
    calls += [store.add(pristine_bundle), store.fetch("small", VERSION, tmp_path)]
    for call in calls:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await call
        assert time.monotonic() - started < QUICK_S + PATIENCE_S
        assert "s3cret" not in str(caught.value)
        assert "***@127.0.0.1" in str(caught.value)
    await store.close()


@pytest.mark.parametrize("connected_before", [True, False])
async def test_a_hanging_server_never_holds_a_call_up(
    server: RedisServer, store: Store, quick_store: Store, connected_before: bool
) -> None:
    if connected_before:
        await asyncio.gather(*(quick_store.ping() for _ in CALLS))
    server.pause()
    durations = await asyncio.gather(*(seconds_until_unavailable(call(quick_store)) for call in CALLS.values()))
    assert max(durations) < QUICK_S + PATIENCE_S
    assert min(durations) > QUICK_S * 0.8
    server.resume()
    await until(lambda: answers(quick_store))
    assert await store.append("ann", [event(2)]) == 1


async def answers(store: Store) -> bool:
    try:
        await store.ping()
    except StoreUnavailable:
        return False
    return True


async def test_more_calls_than_connections_wait_no_longer_than_the_others(
    server: RedisServer,
) -> None:
    patient = open_store(server.url, options=replace(OPTIONS, timeout_s=30.0))
    assert await asyncio.gather(*(patient.get("unknown") for _ in range(500))) == [None] * 500
    assert int(server.cli("info", "clients").split("connected_clients:")[1].split()[0]) < 100
    await patient.close()
    hurried = open_store(server.url, options=replace(OPTIONS, timeout_s=1.0))
    server.pause()
    started = time.monotonic()
    await asyncio.gather(*(seconds_until_unavailable(hurried.ping()) for _ in range(1500)))
    assert time.monotonic() - started < 1.0 + PATIENCE_S + 4.0  # 64 at a time, one lot after the other: 23.4
    server.resume()
    await hurried.close()


async def test_what_was_acknowledged_is_there_after_a_kill(
    server: RedisServer, store: Store, pristine_bundle: Path, tmp_path: Path
) -> None:
    version = await store.add(pristine_bundle)
    await store.activate("small", version)
    acknowledged = []
    for number in range(1000):
        if number == 200:
            server.kill()
        try:
            await store.append("ann", [event(number)])
        except StoreUnavailable:
            break
        acknowledged.append(event(number))
    server.start()
    # No call fails for a connection that was lost before it.
    assert (await store.history("ann"))[: len(acknowledged)] == acknowledged
    assert await store.current("small") == version
    assert contents(await store.fetch("small", version, tmp_path / "cache")) == contents(pristine_bundle)


async def test_a_pointer_moves_at_the_first_try_after_a_restart(
    server: RedisServer, store: Store, pristine_bundle: Path
) -> None:
    version = await store.add(pristine_bundle)
    server.kill()
    server.start()
    await store.activate("small", version)
    assert await store.current("small") == version


async def test_scripts_that_redis_has_forgotten_are_sent_again(server: RedisServer, store: Store) -> None:
    await store.append("ann", [event(1)])
    server.cli("script", "flush")
    assert await store.append("ann", [event(2)]) == 1


async def test_a_full_redis_refuses_writes_answers_reads_and_keeps_no_half_of_a_version(
    server: RedisServer, store: Store, pristine_bundle: Path, tmp_path: Path
) -> None:
    first = await store.add(pristine_bundle)
    await store.activate("small", first)
    await store.append("ann", [event(1)])
    used = int(server.cli("info", "memory").split("used_memory:")[1].split()[0])
    second = another_version(pristine_bundle, tmp_path / "second", alpha=0.7)
    server.cli("config", "set", "maxmemory", str(used + 4096))
    keys = server.cli("dbsize")
    writes = [
        store.add(second),
        store.add(pristine_bundle),
        store.append("ann", [event(2)]),
        store.put("key", b"x", 60),
        store.put_all({"key": b"x", "other": b"x"}, 60),
    ]
    for write in writes:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await write
        server.cli("config", "set", "maxmemory", str(used - 50_000))
    assert server.cli("dbsize") == keys
    assert await store.history("ann") == [event(1)]
    assert [stored.version for stored in await store.versions("small")] == [first]
    assert await store.current("small") == first
    await store.fetch("small", first, tmp_path / "cache")
    await store.hold("small", first, "me", 60)  # what is served stays safe from pruning
    server.cli("config", "set", "maxmemory", "0")
    assert await store.add(second) == version_of(second)
    assert await store.append("ann", [event(2)]) == 1


async def test_a_replica_refuses_writes_and_answers_reads(server: RedisServer, store: Store, tmp_path: Path) -> None:
    await store.append("ann", [event(1)])
    (tmp_path / "replica").mkdir()
    with RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {server.port}") as replica:
        reader = open_store(replica.url, options=OPTIONS)
        await until(lambda: reader.history("ann"))
        with pytest.raises(StoreUnavailable, match="read only"):
            await reader.append("ann", [event(2)])
        await reader.close()


async def test_a_wrong_password_is_not_told_to_anybody(server: RedisServer) -> None:
    server.cli("config", "set", "requirepass", "right")
    for credentials in ("", ":wr0ng@", "ann:wr0ng@"):
        store = open_store(f"redis://{credentials}127.0.0.1:{server.port}", options=OPTIONS)
        with pytest.raises(StoreUnavailable) as caught:
            await store.ping()
        assert "wr0ng" not in str(caught.value)
        await store.close()
    store = open_store(f"redis://:right@127.0.0.1:{server.port}/3", options=OPTIONS)
    await store.append("ann", [event(1)])
    assert await store.history("ann") == [event(1)]
    await store.close()


def check_documented(keys: list[str], server: RedisServer) -> None:
    """Each key is in the table of docs/reference/store-keys.md with its type, and each row of the store has a key."""
    rows = re.findall(r"^\| `(igd:\S+)` \| ([a-z ,]+) \|", (DOCS / "reference/store-keys.md").read_text(), re.MULTILINE)
    of_the_store = {row: kind for row, kind in rows if kind != "channel" and "limits" not in row}
    seen = set()
    for key in keys:
        (row,) = (row for row in of_the_store if re.fullmatch(re.sub(r"NAME|[A-Z_]{3,}", "[^:]+", re.escape(row)), key))
        assert server.cli("type", key) == of_the_store[row].replace("sorted set", "zset"), key
        seen.add(row)
    assert seen == set(of_the_store)


async def test_the_permissions_that_the_documentation_names_are_enough(
    server: RedisServer, pristine_bundle: Path, tmp_path: Path
) -> None:
    documented = re.search(r"`(~igd:\* [^`]*)`", DOCUMENTATION.read_text(encoding="utf-8"))
    assert documented is not None
    server.cli("acl", "setuser", "ann", "on", ">pw", *documented[1].split())
    store = open_store(f"redis://ann:pw@127.0.0.1:{server.port}/0", options=OPTIONS)
    hearing = asyncio.ensure_future(anext(store.changes()))
    version = await store.add(pristine_bundle)

    async def heard() -> bool:
        await store.activate("small", version)
        await asyncio.wait({hearing}, timeout=0.02)
        return hearing.done()

    await until(heard)
    await store.fetch("small", version, tmp_path / "cache")
    for name, call in CALLS.items():
        if name not in ("activate", "roll_back"):
            await call(store)
    await store.roll_back("small", version)
    await store.append("bob", [event(number) for number in range(600)])
    await store.begin_trial("small", version, "me", 5)
    await store.append_others("bob", [event(1)])
    await store.add_records("impressions", {"bob": [b"x"]}, keep=5, ttl_s=60)
    check_documented(server.cli("keys", "*").splitlines(), server)
    other = open_store(f"redis://ann:pw@127.0.0.1:{server.port}/0", options=replace(OPTIONS, prefix="other"))
    with pytest.raises(StoreError, match="permissions"):
        await other.history("ann")
    await other.close()
    await store.close()


async def test_a_key_of_somebody_else_is_an_error_that_trying_again_does_not_help(
    server: RedisServer, store: Store
) -> None:
    server.cli("set", "igd:history:ann", "text")
    server.cli("hset", "igd:history:bob", "e1", "no number")
    server.cli("hset", "igd:events:bob", "e1", "1 item\x1fbuy\x1fa lot")
    server.cli("rpush", "igd:links:bob", "no number")
    for call in (store.history("ann"), store.history("bob"), store.other_events("bob"), store.records("links", "bob")):
        with pytest.raises(StoreError) as caught:
            await call
        assert not isinstance(caught.value, StoreUnavailable)
        assert "bob" not in str(caught.value), "a user's id in the log"
    assert await store.forget("bob") == Forgotten(events=1, other_events=1, links=1)
    assert server.cli("keys", "*bob*") == ""


async def test_events_are_recorded_even_if_old_ones_cannot_be_deleted(server: RedisServer) -> None:
    options = replace(OPTIONS, history=HistoryLimits(max_events=5))
    store = open_store(server.url, options=options)
    server.cli("acl", "setuser", "default", "-hdel")
    assert await store.append("ann", [event(number) for number in range(20)]) == 20
    assert await store.history("ann") == [event(number) for number in range(15, 20)]
    assert server.cli("hlen", "igd:history:ann") == "20"
    server.cli("acl", "setuser", "default", "+hdel")
    await store.append("ann", [event(20)])
    assert server.cli("hlen", "igd:history:ann") == "5"
    await store.close()


async def test_a_history_that_is_not_trimmed_yet_reads_no_longer(server: RedisServer) -> None:
    store = open_store(server.url, options=replace(OPTIONS, history=HistoryLimits(max_events=80)))
    for number in range(82):
        await store.append("ann", [event(number)])
    assert server.cli("hlen", "igd:history:ann") == "82"
    assert await store.history("ann") == [event(number) for number in range(2, 82)]
    await store.append("ann", [event(82)])
    assert server.cli("hlen", "igd:history:ann") == "80"
    await store.close()


async def test_prefixes_keep_deployments_apart(server: RedisServer, store: Store, pristine_bundle: Path) -> None:
    other = open_store(server.url, options=replace(OPTIONS, prefix="other"))
    await store.activate("small", await store.add(pristine_bundle))
    await store.append("ann", [event(1)])
    await store.put("key", b"value", 60)
    assert await other.catalogues() == []
    assert await other.current("small") is None
    assert await other.history("ann") == []
    assert await other.get("key") is None
    assert all(key.startswith("igd:") for key in server.cli("keys", "*").split())
    await other.close()
    for prefix in ("", "a b", "{a}", "x" * 65):
        with pytest.raises(InputError, match="prefix"):
            open_store(server.url, options=replace(OPTIONS, prefix=prefix))


@pytest.mark.parametrize("part", ["manifest.json", "trie.safetensors", "infogain.safetensors", "items.parquet"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "missing"])
async def test_a_damaged_version_is_not_fetched_and_publishing_it_again_heals_it(
    server: RedisServer, store: Store, pristine_bundle: Path, tmp_path: Path, part: str, damage: str
) -> None:
    version = await store.add(pristine_bundle)
    key = f"igd:{{small}}:chunk:{version}:{part}:0"
    before = server.cli("strlen", key)
    if damage == "flipped":
        server.cli("setrange", key, "600", "?#")
    elif damage == "cut":
        server.cli("eval", "redis.call('SET', KEYS[1], string.sub(redis.call('GET', KEYS[1]), 1, 500))", "1", key)
    elif damage == "longer":
        server.cli("append", key, "x")
    else:
        server.cli("del", key)
    with pytest.raises(ArtifactError, match=part.replace(".", r"\.")):
        await store.fetch("small", version, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert await store.add(pristine_bundle) == version
    assert server.cli("strlen", key) == before
    assert server.cli("ttl", key) == "-1"
    assert contents(await store.fetch("small", version, tmp_path / "cache")) == contents(pristine_bundle)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "1 2",
        "1 2 {}",
        "x y {}",
        '1 2 {"chunk_bytes": 1, "chunks": {}, "bytes": 1}',
        '1 2 {"chunk_bytes": 0, "bytes": 1, "chunks": CHUNKS}'.replace("CHUNKS", chunks_of(1)),
        '1 2 {"chunk_bytes": 1, "bytes": 1, "chunks": CHUNKS}'.replace("CHUNKS", chunks_of(-1)),
        '1 2 {"chunk_bytes": 1, "bytes": 1, "chunks": CHUNKS}'.replace("CHUNKS", chunks_of(10**12)),
        '1 99999999999999999999 {"chunk_bytes": 1, "chunks": {}, "bytes": 1}',
        "1 2 " + "[" * 100_000,
    ],
)
async def test_a_record_that_nobody_wrote_is_refused(
    server: RedisServer, store: Store, tmp_path: Path, record: str
) -> None:
    server.cli("hset", "igd:{small}:versions", VERSION, record)
    for call in (store.versions("small"), store.fetch("small", VERSION, tmp_path), store.prune("small", keep=0)):
        with pytest.raises(StoreError, match=VERSION):
            await call


async def test_names_that_nobody_wrote_do_not_hide_the_others(
    server: RedisServer, store: Store, pristine_bundle: Path
) -> None:
    version = await store.add(pristine_bundle)
    for name in ("../etc", "A B", "\\255\\254"):
        server.cli("eval", f"redis.call('SADD', KEYS[1], '{name}')", "1", "igd:catalogues")
        server.cli("eval", f"redis.call('ZADD', KEYS[1], 9e15, '{name}')", "1", "igd:{small}:holds")
    assert await store.catalogues() == ["small"]
    assert [stored.holders for stored in await store.versions("small")] == [()]
    server.cli("eval", "redis.call('HSET', KEYS[1], 'current', '\\255')", "1", "igd:{small}:pointer")
    assert await store.current("small") == "\ufffd"
    assert await store.prune("small", keep=1) == []
    assert (await store.versions("small"))[0].version == version


async def test_a_version_under_another_versions_name_is_refused(
    server: RedisServer, store: Store, pristine_bundle: Path, tmp_path: Path
) -> None:
    version = await store.add(pristine_bundle)
    server.cli("hset", "igd:{small}:versions", VERSION, server.cli("hget", "igd:{small}:versions", version))
    for key in server.cli("keys", "igd:{small}:chunk:*").split():
        server.cli("copy", key, key.replace(version, VERSION))
    with pytest.raises(ArtifactError, match=f"of version {version}, stored as {VERSION}"):
        await store.fetch("small", VERSION, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_version_that_is_pruned_under_a_reader_is_not_stored(
    server: RedisServer, store: Store, pristine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await store.add(pristine_bundle)
    real_call = link_module.Link.call

    async def call(self: link_module.Link, *command: str) -> object:
        if command[0] == "GETRANGE" and command[1].endswith(":1"):
            await store.prune("small", keep=0)
        return await real_call(self, *command)

    monkeypatch.setattr(link_module.Link, "call", call)
    with pytest.raises(InputError, match=f"version {version} of catalogue 'small' is not stored"):
        await store.fetch("small", version, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert server.cli("keys", "igd:{small}:chunk:*") == ""


async def test_chunks_of_an_upload_that_ends_half_way_go_by_themselves(
    server: RedisServer, store: Store, pristine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = version_of(pristine_bundle)

    async def cut(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(link_module.Link, "run", cut)
        with pytest.raises(asyncio.CancelledError):
            await store.add(pristine_bundle)
    left = server.cli("keys", "igd:{small}:chunk:*").split()
    assert left
    assert all(0 < int(server.cli("ttl", key)) <= 3600 for key in left[:5])
    assert await store.versions("small") == []
    server.cli("del", left[0])  # as if its time had come
    assert await store.add(pristine_bundle) == version
    assert all(server.cli("ttl", key) == "-1" for key in left)


async def test_an_upload_that_loses_a_chunk_to_another_does_not_become_visible(
    server: RedisServer, store: Store, pristine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = version_of(pristine_bundle)
    real_run = link_module.Link.run

    async def run(self: link_module.Link, *arguments: object, **options: object) -> object:
        server.cli("del", f"igd:{{small}}:chunk:{version}:trie.safetensors:0")
        return await real_run(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(link_module.Link, "run", run)
    with pytest.raises(StoreUnavailable, match="was removed by another"):
        await store.add(pristine_bundle)
    monkeypatch.undo()
    assert await store.versions("small") == []
    assert server.cli("keys", "igd:{small}:chunk:*") == ""


async def test_publishing_again_without_success_leaves_the_version_whole(
    store: Store, pristine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await store.add(pristine_bundle)
    real_run = link_module.Link.run

    async def run(self: link_module.Link, script: link_module.Script, *arguments: object) -> object:
        if script is STORE:
            raise StoreUnavailable("connection lost")
        return await real_run(self, script, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(link_module.Link, "run", run)
    with pytest.raises(StoreUnavailable, match="connection lost"):
        await store.add(pristine_bundle)
    assert contents(await store.fetch("small", version, tmp_path / "cache")) == contents(pristine_bundle)


async def test_listeners_outlive_a_restart(server: RedisServer, store: Store, pristine_bundle: Path) -> None:
    version = await store.add(pristine_bundle)
    heard: list[str] = []

    async def listen() -> None:
        async for name in store.changes():
            heard.append(name)  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())

    async def move_and_look() -> bool:
        await store.activate("small", version)
        await asyncio.sleep(0.02)
        return bool(heard)

    await until(move_and_look)
    server.kill()
    await asyncio.sleep(0.1)
    server.start()
    heard.clear()
    await until(move_and_look)
    listening.cancel()
    await asyncio.wait({listening})


async def test_listeners_leave_a_connection_on_which_nothing_answers(
    server: RedisServer, store: Store, pristine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "_QUIET_S", 0.05)
    monkeypatch.setattr(subscription_module, "_ANSWER_S", 0.05)
    version = await store.add(pristine_bundle)
    changes = store.changes()
    hearing = asyncio.ensure_future(anext(changes))

    async def subscribers() -> list[str]:
        return [line for line in server.cli("client", "list", "type", "pubsub").splitlines() if line]

    (first,) = await until_there_is(subscribers)
    await asyncio.sleep(0.3)
    assert await subscribers() != []  # quiet is not dead: it answers
    assert (await subscribers())[0].split()[0] == first.split()[0]
    server.pause()
    await asyncio.sleep(0.3)
    server.resume()

    async def another() -> bool:
        found = await subscribers()
        return bool(found) and first.split()[0] not in {line.split()[0] for line in found}

    await until(another)
    await store.activate("small", version)
    assert await asyncio.wait_for(hearing, 10) == "small"
    await changes.aclose()  # type: ignore[attr-defined]


async def until_there_is(ask: Callable[[], Awaitable[list[str]]]) -> list[str]:
    await until(ask)
    return await ask()


async def test_a_call_that_is_cancelled_leaves_the_connection_for_nobody_else(
    server: RedisServer, store: Store
) -> None:
    await store.put("a", b"answer a", 60)
    await store.put("b", b"answer b", 60)
    for _ in range(20):
        asking = [asyncio.ensure_future(store.get("a")) for _ in range(10)]
        putting = [asyncio.ensure_future(store.put_all({"c": b"c", "d": b"d"}, 60)) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in (*asking[::2], *putting[::2]):
            task.cancel()
        await asyncio.gather(*putting, return_exceptions=True)
        await asyncio.gather(*asking, return_exceptions=True)
        assert await asyncio.gather(*(store.get("b") for _ in range(10))) == [b"answer b"] * 10
    assert server.cli("ping") == "PONG"
