"""`igd serve --replicas`: real processes, real signals. Where the app does not matter, it is one of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from publishing import edition, publish
from redis_server import RedisServer
from server_process import ServerProcess

from igd_core.client import RecommendationClient
from igd_core.store.base import StoreOptions
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer

TESTS = Path(__file__).parents[1]
CLIENT = httpx.Client(timeout=PATIENCE_S)  # one for all: making one takes as long as ten requests
OPTIONS = StoreOptions(timeout_s=1.0, bulk_timeout_s=1.0)


class Server(ServerProcess):
    """A server with two replicas."""

    @property
    def url(self) -> str:
        return str(self.event("listening")["url"])

    @property
    def operations_url(self) -> str:
        return str(self.event("listening")["operations_url"])

    @property
    def replicas(self) -> list[psutil.Process]:
        """Their processes, in no order."""
        return psutil.Process(self.process.pid).children()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line.get("event") == name]

    def ask(self, path: str, *, method: str = "GET", json: Any = None) -> httpx.Response:
        """On the operations port, over a connection of its own."""
        return CLIENT.request(method, self.operations_url + path, json=json, headers={"Connection": "close"})


@contextlib.contextmanager
def started(program: str, *flags: str, **variables: str) -> Iterator[Server]:
    """A server of two replicas; whatever is left of it at the end is killed."""
    both = ("--catalogues", "films", "--model", "fake", "--replicas", "2", "--operations-port", "0")
    server = Server.start(*both, *flags, clock=None, program=TESTS / program, **variables)
    try:
        yield server
    finally:
        left = server.replicas if server.process.poll() is None else []
        for process in [psutil.Process(server.process.pid), *left] if left else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.process.kill()
        server.wait()


def eventually(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def both_serve(server: Server) -> bool:
    return server.ask("readyz").text.count(": ready") == 2


def samples(text: str, name: str) -> dict[str, float]:
    """A metric's values by replica, added up over its other labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                replica = sample.labels["replica"]
                values[replica] = values.get(replica, 0.0) + sample.value
    return values


def test_replicas_share_port_and_cores_restart_one_by_one_and_drain_together(tmp_path: Path) -> None:
    with started("light_replicas.py", "--store", f"file://{tmp_path}/store", OMP_NUM_THREADS="") as server:
        refused = CLIENT.get(server.url + "who", headers={"Connection": "close"})
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:igd:problem:engine-unavailable")
        assert server.ask("readyz").status_code == server.ask("startupz").status_code == 503
        eventually(lambda: both_serve(server), "both serve")
        before = {process.pid for process in server.replicas}
        answers = asyncio.run(asked_at_once(server.url, 16))
        assert {answer["pid"] for answer in answers} == before
        assert {answer["threads"] for answer in answers} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
        counted = samples(server.ask("metrics").text, "igd_requests_total")
        assert counted["1"] + counted["2"] == 16
        assert counted["1"] > 0 < counted["2"]

        asyncio.run(asked_through_a_restart(server))
        assert len({process.pid for process in server.replicas} - before) == 2
        page = server.ask("metrics").text
        assert samples(page, "igd_replica_restarts_total") == {"1": 1.0, "2": 1.0}
        assert set(samples(page, "process_resident_memory_bytes")) == {"1", "2", "supervisor"}

        with socket.create_connection(address_of(server.url)) as slow:
            slow.sendall(b"GET /who?seconds=0.5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: server.ask("readyz").json().get("detail") == "the server is stopping", "it drains")
            answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        server.wait()
        server.assert_ended_well()
        assert len(server.events("stopped")) == 5  # two replaced, two at the end, and the supervisor


async def asked_at_once(url: str, connections: int) -> list[dict[str, Any]]:
    """What the app says of itself, over so many connections."""
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE_S) as client:
        answers = await asyncio.gather(*(client.get("/who?seconds=0.1") for _ in range(connections)))
    return [answer.json() for answer in answers]


async def asked_through_a_restart(server: Server) -> None:
    """Clients ask over connections that stay open, from before all replicas are restarted until after it."""
    restarted = asyncio.Event()

    async def go_on() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            while not restarted.is_set():
                answer = await client.get("/who")
                assert answer.status_code == 200, answer.text

    async with asyncio.TaskGroup() as clients:
        for _ in range(4):
            clients.create_task(go_on())
        server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(server.event, "restarted")
        restarted.set()


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


def test_no_replica_outlives_a_supervisor_that_is_killed_and_the_port_is_free(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    ends.write_text("")
    with started("light_replicas.py", "--store", f"file://{tmp_path}/store", ENDS_AT_ONCE=str(ends)) as server:
        eventually(lambda: both_serve(server), "both serve")
        first, second = server.replicas
        # One that cannot start again does not end the other.
        ends.write_text("told to fail")
        first.kill()
        eventually(lambda: len(server.events("replica_ended")) >= 2, "it fails, and is tried again")
        assert server.events("replica_ended")[0]["exit_code"] == -signal.SIGKILL
        assert server.events("replica_ended")[1]["exit_code"] == 2
        assert server.ask("readyz").status_code == 200
        assert {answer["pid"] for answer in asyncio.run(asked_at_once(server.url, 2))} == {second.pid}
        left = server.replicas
        server.process.kill()
        server.wait()
        _, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
        assert not alive
        with socket.create_server(address_of(server.url)):
            pass


def test_a_replica_that_hangs_is_killed_and_started_again_while_the_other_serves(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    with started("light_replicas.py", "--store", store, "--replica-silence-s", "2") as server:
        eventually(lambda: both_serve(server), "both serve")
        hung, other = server.replicas
        hung.suspend()
        answers = asyncio.run(asked_at_once(server.url, 4))
        assert {answer["pid"] for answer in answers} == {other.pid}
        eventually(lambda: server.events("replica_hangs"), "it is noticed")
        eventually(lambda: both_serve(server), "it is started again")
        assert not hung.is_running()
        assert other.is_running()
        assert server.events("replica_hangs")[0]["silence_s"] == 2.0
        assert server.events("replica_ended")[0]["exit_code"] == -signal.SIGKILL
        restarts = samples(server.ask("metrics").text, "igd_replica_restarts_total")
        assert sorted(restarts.values()) == [0.0, 1.0]
        server.process.send_signal(signal.SIGTERM)
        server.wait()
        server.assert_ended_well()


def test_a_server_that_cannot_start_says_why_once_and_ends(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    ends.write_text("no such model")
    with started("light_replicas.py", "--store", f"file://{tmp_path}/store", ENDS_AT_ONCE=str(ends)) as server:
        assert server.wait() == 2
        assert server.stderr.splitlines()[-1] == "igd: no such model"
        assert server.stderr.count("no such model") == 1


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


def test_a_killed_replica_costs_no_answer_and_replicas_swap_and_limit_together(
    tmp_path: Path, redis: RedisServer, tokenizer: TitleTokenizer
) -> None:
    async def published(number: int) -> str:
        store = open_store(redis.url, options=OPTIONS)
        version = await publish(store, edition(tokenizer, number), tmp_path)
        await store.close()
        return version

    first = asyncio.run(published(0))
    folder = {"IGD_CACHE_DIR": str(tmp_path / "cache")}
    quick = {"IGD_TRIAL_S": "0", "IGD_POLL_S": "0.2", "IGD_TAKEOVER_SPREAD_S": "0", "DELAY_S": "0.002"}
    limit = f"{LIMIT}/day"
    with started("fake_replicas.py", "--store", redis.url, "--rate-limit", limit, **folder, **quick) as server:
        eventually(lambda: both_serve(server), "both serve")
        assert versions_of(server) == {"1": {first}, "2": {first}}
        answered = asyncio.run(asked_through_a_death(server))
        eventually(lambda: both_serve(server), "the killed one is back")
        second = asyncio.run(published(1))
        eventually(lambda: versions_of(server) == {"1": {second}, "2": {second}}, "both swap")
        assert server.ask("v1/admin/catalogues/films:reload", method="POST", json={}).status_code == 202
        assert [served["version"] for served in server.ask("v1/admin/overview").json()["catalogues"]] == [second]
        assert "web/operate.js" in server.ask("operate").text
        eventually(lambda: reloaded(server) == [1, 2], "each looks again")
        while ask_for_a_batch(server) == 200:
            answered += BATCH
        assert LIMIT - BATCH - CLIENTS <= answered <= LIMIT
        server.stop()
        server.assert_ended_well()


LIMIT, BATCH, CLIENTS = 500, 32, 4


def ask_for_a_batch(server: Server) -> int:
    """Over a connection of its own, so that both replicas are asked; an answer of a batch counts as its entries."""
    batch = {"requests": [{"history": ["films-1-1"], "k": 1}] * BATCH}
    url = server.url + "v1/recommendations:batch"
    return CLIENT.post(url, json=batch, headers={"Connection": "close"}).status_code


def reloaded(server: Server) -> list[int]:
    """Replicas that were told to look at the pointer again."""
    told = [line for line in server.events("request") if line["route"].endswith("{name}:reload")]
    return sorted(line["replica"] for line in told)


class BrokenConnections(httpx.AsyncHTTPTransport):
    """Counts the requests that got no answer."""

    number = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except httpx.TransportError:
            self.number += 1
            raise


async def asked_through_a_death(server: Server) -> int:
    """Clients that try again ask while a replica is killed, and see none of it; returns the number of answers."""
    answered, dead, transports = 0, asyncio.Event(), [BrokenConnections() for _ in range(CLIENTS)]

    async def go_on(transport: BrokenConnections) -> None:
        nonlocal answered
        async with RecommendationClient(server.url, timeout_s=PATIENCE_S, transport=transport) as client:
            while not dead.is_set() and answered < LIMIT // 2:
                answer = await client.recommend(history=["films-0-1"], k=3, alpha=answered / LIMIT)  # never cached
                assert (answer.source, len(answer.items)) == ("model", 3)
                answered += 1

    async with asyncio.TaskGroup() as clients:
        for transport in transports:
            clients.create_task(go_on(transport))
        while answered < 20:  # noqa: ASYNC110 - a counter is no event
            await asyncio.sleep(0.002)
        server.replicas[0].kill()
        await asyncio.to_thread(server.event, "replica_ended")
        dead.set()
    assert all(transport.number <= 1 for transport in transports)
    return answered


def versions_of(server: Server) -> dict[str, set[str]]:
    """What each replica serves, by its metrics."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.ask("metrics").text):
        for sample in family.samples:
            if sample.name == "igd_catalogue_info":
                found.setdefault(sample.labels["replica"], set()).add(sample.labels["version"])
    return found
