"""Redis as it is run: behind sentinels with a failover, as a cluster that loses a node, and with TLS."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from bundles import contents
from redis_server import HOST, RedisServer, free_port, patiently
from stores import cluster_url, event, until

from igd_core.errors import InputError, StoreUnavailable
from igd_core.store.base import StoreOptions
from igd_core.store.open import open_store
from igd_core.store.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from igd_core.store.base import Store

OPTIONS = StoreOptions(timeout_s=2.0, bulk_timeout_s=5.0, chunk_bytes=1024)


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


async def answers(store: Store) -> bool:
    try:
        await store.ping()
    except StoreUnavailable:
        return False
    return True


async def works(store: Store, bundle: Path, cache: Path) -> None:
    version = await store.add(bundle)
    await store.activate("small", version)
    assert contents(await store.fetch("small", version, cache)) == contents(bundle)
    assert await store.append("ann", [event(1)]) == 1
    assert await store.history("ann") == [event(1)]
    await store.put("key", b"value", 60)
    assert await store.get("key") == b"value"
    many = {f"key-{number}": str(number).encode() for number in range(50)}  # in a cluster, on all its nodes
    await store.put_all(many, 60)
    assert {key: await store.get(key) for key in many} == many


# Sentinel


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A server, its replica, and a sentinel that watches them under the name ``igd-main``."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(folder(tmp_path, "one"), repl_diskless_sync_delay="0"))
        replica = stack.enter_context(RedisServer(folder(tmp_path, "two"), replicaof=f"{HOST} {server.port}"))
        for _ in patiently("the replica", replica.log):
            if "master_link_status:up" in replica.cli("info", "replication"):
                break
        directory = folder(tmp_path, "sentinel")
        (directory / "sentinel.conf").write_text(
            f"sentinel monitor igd-main {HOST} {server.port} 1\n"
            "sentinel down-after-milliseconds igd-main 300\n"
            "sentinel failover-timeout igd-main 3000\n"
        )
        sentinel = stack.enter_context(RedisServer(directory, sentinel=True))
        for _ in patiently("the sentinel", sentinel.log):
            if f"port\n{replica.port}\n" in sentinel.cli("sentinel", "replicas", "igd-main"):
                break
        yield server, replica, sentinel


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_after_a_failover_the_new_server_is_used(
    watched: tuple[RedisServer, RedisServer, RedisServer], pristine_bundle: Path, tmp_path: Path, fault: str
) -> None:
    server, replica, sentinel = watched
    dead = free_port()
    store = open_store(f"redis+sentinel://{HOST}:{dead},{HOST}:{sentinel.port}/igd-main/0", options=OPTIONS)
    await works(store, pristine_bundle, tmp_path / "cache")
    for _ in patiently("the replica", replica.log):  # what it has not heard of yet would be lost
        if "e1" in replica.cli("hkeys", "igd:history:ann"):
            break
    if fault == "kill":
        server.kill()
    else:
        server.pause()
    for _ in patiently("the failover", sentinel.log):
        with suppress(RuntimeError):  # who promotes a server closes its connections, redis-cli's too
            if "role:master" in replica.cli("info", "replication"):
                break
    assert await until(lambda: answers(store)) < 5
    assert await store.history("ann") == [event(1)]
    assert await store.append("ann", [event(2)]) == 1
    assert "e2" in replica.cli("hkeys", "igd:history:ann")
    await store.close()


async def test_a_service_that_no_sentinel_knows_is_unavailable(
    watched: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    store = open_store(f"redis+sentinel://{HOST}:{watched[2].port}/other", options=OPTIONS)
    with pytest.raises(StoreUnavailable, match="other"):
        await store.ping()
    await store.close()


# Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Three primaries that share the slots."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                RedisServer(
                    folder(tmp_path, str(number)), cluster_enabled="yes", cluster_node_timeout="500", appendonly="yes"
                )
            )
            for number in range(3)
        ]
        addresses = [f"{HOST}:{node.port}" for node in nodes]
        nodes[0].cli("--cluster", "create", *addresses, "--cluster-yes")
        for node in nodes:
            for _ in patiently("the cluster", node.log):
                if "cluster_state:ok" in node.cli("cluster", "info"):
                    break
        yield nodes


async def test_a_cluster_holds_everything_and_tells_all_listeners(
    cluster: list[RedisServer], pristine_bundle: Path, tmp_path: Path
) -> None:
    store = open_store(cluster_url(*cluster[:2]), options=OPTIONS)
    await works(store, pristine_bundle, tmp_path / "cache")
    await asyncio.gather(*(store.append(f"user-{n}", [event(n)]) for n in range(60)))
    assert [await store.history(f"user-{n}") for n in range(60)] == [[event(n)] for n in range(60)]
    assert all(int(node.cli("dbsize")) > 5 for node in cluster)
    everyone = {user async for page in store.users() for user in page}
    assert everyone >= {f"user-{n}" for n in range(60)}, "a node was not asked"
    await store.add_records("links", {f"user-{n}": [b"%d" % n] for n in range(60)}, keep=1, ttl_s=60)
    assert [await store.records("links", f"user-{n}") for n in range(60)] == [[b"%d" % n] for n in range(60)]
    version = await store.current("small")
    assert version is not None
    for node in cluster:
        listener = open_store(cluster_url(node), options=OPTIONS)
        hearing = asyncio.ensure_future(anext(listener.changes()))

        async def heard(hearing: asyncio.Future[str] = hearing) -> bool:
            await store.activate("small", version)
            await asyncio.wait({hearing}, timeout=0.05)
            return hearing.done()

        await until(heard)
        assert hearing.result() == "small"
        await listener.close()
    await store.close()


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_cluster_that_loses_a_node_is_unavailable_and_comes_back(
    cluster: list[RedisServer], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(cluster_url(*cluster), options=OPTIONS)
    await asyncio.gather(*(store.append(f"user-{n}", [event(n)]) for n in range(30)))
    if fault == "kill":
        cluster[1].kill()
    else:
        cluster[1].pause()
    outcomes = await asyncio.gather(*(store.history(f"user-{n}") for n in range(30)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert refused
    assert all(isinstance(outcome, StoreUnavailable) for outcome in refused)
    assert isinstance(store, RedisStore)
    going_on = store._links[0]._running

    async def nothing_goes_on() -> bool:
        return not going_on

    await until(nothing_goes_on)  # calls that were left alone end by themselves
    if fault == "kill":
        cluster[1].start()
    else:
        cluster[1].resume()

    async def all_answer() -> bool:
        found = await asyncio.gather(*(store.history(f"user-{n}") for n in range(30)), return_exceptions=True)
        return found == [[event(n)] for n in range(30)]

    assert await until(all_answer) < 10
    await store.close()
    gc.collect()
    assert "never retrieved" not in caplog.text  # of errors that came after their callers had left


async def test_a_server_that_is_no_cluster_is_unavailable_as_one(tmp_path: Path) -> None:
    with RedisServer(folder(tmp_path, "single")) as server:
        store = open_store(cluster_url(server), options=OPTIONS)
        with pytest.raises(StoreUnavailable, match="Cluster mode is not enabled"):
            await store.ping()
        await store.close()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``server.pem``, signed by nobody but itself, for the name localhost; and ``other.pem``."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    directory: Path = tmp_path_factory.mktemp("certificates")
    for name in ("server", "other"):
        request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem"), "-days", "2"]
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*request, *files, *subject], check=True, capture_output=True)
    return directory


@pytest.fixture
def tls_port(certificates: Path, tmp_path: Path) -> Iterator[int]:
    port = free_port()
    with RedisServer(
        folder(tmp_path, "tls"),
        tls_port=str(port),
        tls_cert_file=str(certificates / "server.pem"),
        tls_key_file=str(certificates / "server.key"),
        tls_ca_cert_file=str(certificates / "server.pem"),
    ):
        yield port


async def test_tls_with_a_certificate_that_is_trusted_and_shown(
    certificates: Path, tls_port: int, pristine_bundle: Path, tmp_path: Path
) -> None:
    options = "&".join(
        [
            f"ssl_ca_certs={certificates}/server.pem",
            f"ssl_certfile={certificates}/server.pem",
            f"ssl_keyfile={certificates}/server.key",
        ]
    )
    store = open_store(f"rediss://localhost:{tls_port}/0?{options}", options=OPTIONS)
    await works(store, pristine_bundle, tmp_path / "cache")
    hearing = asyncio.ensure_future(anext(store.changes()))

    async def heard() -> bool:
        version = await store.current("small")
        assert version is not None
        await store.activate("small", version)
        await asyncio.wait({hearing}, timeout=0.05)
        return hearing.done()

    await until(heard)
    await store.close()


@pytest.mark.parametrize(
    "options",
    [
        "",
        "?ssl_ca_certs={0}/other.pem",
        "?ssl_ca_certs={0}/server.pem",  # the server asks for a certificate of the client's too
    ],
)
async def test_tls_without_trust_is_unavailable(certificates: Path, tls_port: int, options: str) -> None:
    store = open_store(f"rediss://localhost:{tls_port}/0{options.format(certificates)}", options=OPTIONS)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.close()


async def test_the_host_must_be_the_certificates_unless_told_otherwise(certificates: Path, tls_port: int) -> None:
    options = f"ssl_ca_certs={certificates}/server.pem&ssl_certfile={certificates}/server.pem"
    options += f"&ssl_keyfile={certificates}/server.key"
    store = open_store(f"rediss://127.0.0.1:{tls_port}/0?{options}", options=OPTIONS)
    with pytest.raises(StoreUnavailable, match="certificate"):
        await store.ping()
    await store.close()
    store = open_store(f"rediss://127.0.0.1:{tls_port}/0?{options}&ssl_check_hostname=false", options=OPTIONS)
    await store.ping()
    await store.close()


async def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ssl_ca_certs.*missing\.pem"):
        open_store(f"rediss://localhost/0?ssl_ca_certs={tmp_path}/missing.pem")
