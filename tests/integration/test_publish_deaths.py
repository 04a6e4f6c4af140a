"""Versions that end the process that serves them: real servers, a real Redis, a real memory limit where we may set one.

The engine is a fake one (`deadly_server`): a start takes a second.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deadly_server
import httpx
import pytest
from igd_server.catalogues.attempts import Attempts
from memory_limit import memory_limit
from publishing import edition, publish
from redis_server import RedisServer
from server_process import ServerProcess

from igd_core.cli.main import main
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memory_limit import MemoryLimit

    from igd_core.catalogue.tokenization import TitleTokenizer

LIMIT_BYTES = 768 << 20
PATIENCE_S = 120.0  # starts share two cores with other tests

_client = httpx.Client(timeout=60)
atexit.register(_client.close)


def patiently(what: str, story: Callable[[], str] = str) -> Iterator[None]:
    """For loops that ask servers again and again; gives up after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not in {PATIENCE_S:.0f} s\n{story()}")


class Fleet:
    """Servers of one catalogue on one Redis, each with a disk of its own."""

    def __init__(self, root: Path, redis: RedisServer, tokenizer: TitleTokenizer) -> None:
        self.redis = redis
        self._root = root
        self._tokenizer = tokenizer
        self._deadly: dict[str, str] = {}
        self._published = 0
        self.running: list[ServerProcess] = []

    def publish(self, manner: str = "") -> str:
        """A new version; ``manner``: how it ends servers that are started from now on, or were told of it before."""
        self._published += 1
        artifact = edition(self._tokenizer, self._published)
        if manner:
            self._deadly[artifact.version] = manner

        async def add() -> None:
            store = open_store(self.redis.url)
            await publish(store, artifact, self._root)
            await store.close()

        asyncio.run(add())
        return artifact.version

    def version(self, number: int, manner: str = "") -> str:
        """Of an edition that is yet to be published, for servers that are started before."""
        version = edition(self._tokenizer, number).version
        if manner:
            self._deadly[version] = manner
        return version

    def disk(self, name: str) -> Path:
        """A server's own."""
        return self._root / name

    def harmless(self) -> None:
        """Nothing ends servers that are started from now on."""
        self._deadly.clear()

    def start(
        self, disk: str, *, limit: MemoryLimit | None = None, trial: tuple[str, str] = ("0.5", "100")
    ) -> ServerProcess:
        """A server; with the same disk, the same one again. ``trial``: its seconds and its answers."""
        server = ServerProcess.start(
            *("--catalogues", "films", "--model", "none", "--store", self.redis.url),
            program=Path(deadly_server.__file__),
            DEADLY=json.dumps(self._deadly),
            IGD_CACHE_DIR=str(self.disk(disk)),
            LIMITED="" if limit is None else "yes",
            IGD_POLL_S="0.2",
            IGD_TRIAL_S=trial[0],
            IGD_TRIAL_ANSWERS=trial[1],
            IGD_TAKEOVER_SPREAD_S="0.5",
        )
        if limit is not None:
            limit.take(server.process.pid)
        self.running.append(server)
        return server


@pytest.fixture
def fleet(tmp_path: Path, tokenizer: TitleTokenizer) -> Iterator[Fleet]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as redis:
        made = Fleet(tmp_path, redis, tokenizer)
        yield made
        for server in made.running:
            if server.process.poll() is None:
                server.process.kill()
                server.wait()


def ask(server: ServerProcess, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    url = server.event("listening")["url"].rstrip("/") + path
    return _client.get(url) if body is None else _client.post(url, json=body)


def recommend(server: ServerProcess) -> httpx.Response:
    """An answer that nobody has had before."""
    catalogue = served(server)
    items = ask(server, "/v1/items").json()["items"]
    assert catalogue["version"]
    return ask(server, "/v1/recommendations", {"history": [items[0]["item_id"]], "k": 3, "alpha": random.random()})


def served(server: ServerProcess) -> dict[str, Any]:
    listed = ask(server, "/v1/catalogues").json()
    found = [*listed["catalogues"], *listed["unserved"]]
    return dict(found[0]) if found else {}


def until(what: str, server: ServerProcess, **fields: Any) -> dict[str, Any]:
    for _ in patiently(what, lambda: server.stderr):
        found = served(server)
        if all(found.get(name) == value for name, value in fields.items()):
            return found
    raise AssertionError


def refused(server: ServerProcess, version: str, reason: str) -> str:
    """Wait until it says so; returns the detail."""
    for _ in patiently(f"{version} refused for {reason}", lambda: server.stderr):
        for refusal in served(server).get("refusals", ()):
            if (refusal["version"], refusal["reason"]) == (version, reason):
                return str(refusal["detail"])
    raise AssertionError


def test_a_version_that_the_memory_limit_kills_is_refused_after_the_restart_and_may_be_allowed_by_name(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = fleet.publish(), fleet.version(2, "memory")
    with memory_limit(LIMIT_BYTES) as limit:
        server = fleet.start("one", limit=limit)
        server.event("version_passed")
        assert fleet.publish() == bad
        assert server.wait() == -signal.SIGKILL
        assert limit is None or limit.kills() >= 1

        again = fleet.start("one", limit=limit)
        until("the last good version", again, version=good, published=bad)
        assert "while it was being loaded" in refused(again, bad, "attempt-died")
        assert (again.event("attempt_died")["version"], again.event("attempt_died")["stage"]) == (
            bad,
            "while it was being loaded",
        )
        ready = ask(again, "/readyz")
        assert ready.status_code == 200
        said = f"catalogue 'films': version {bad} is refused (attempt-died), {good} is served"
        assert ready.json()["detail"] == said
        assert 'igd_attempts_died{catalogue="films"} 1.0' in ask(again, "/metrics").text
        assert recommend(again).json()["version"] == good

        # Publishing the same again does not bring it back; allowing it does, and it ends the process again.
        fleet._published -= 1
        assert fleet.publish() == bad
        assert main(["versions", "--store", fleet.redis.url]) == 0
        assert "died on " in capsys.readouterr().out
        assert served(again)["version"] == good
        assert main(["allow", "--catalogue", "films", "--version", bad, "--store", fleet.redis.url]) == 0
        assert again.wait() == -signal.SIGKILL

    fleet.harmless()  # as if more memory had been given
    roomier = fleet.start("one")
    refused(roomier, bad, "attempt-died")
    allowed = ask(roomier, "/v1/admin/catalogues/films:allow", {"version": bad})
    assert allowed.json()["version"] == bad
    until("the version that was allowed", roomier, version=bad, refusals=[])
    roomier.event("version_passed")
    assert 'igd_attempts_died{catalogue="films"} 0.0' in ask(roomier, "/metrics").text


def who_serves(servers: dict[str, ServerProcess], version: str) -> str:
    """Wait until a server does; it is the only one."""
    for _ in patiently(f"a server that serves {version}"):
        found = [disk for disk, server in servers.items() if served(server)["version"] == version]
        if found:
            assert len(found) == 1
            return found[0]
    raise AssertionError


def pass_the_trial(server: ServerProcess) -> None:
    """Ask for answers until it has given enough."""
    for _ in patiently("a passed trial", lambda: server.stderr):
        if not served(server)["on_trial"]:
            return
        recommend(server)


def at(server: ServerProcess, event: str, version: str) -> str:
    """When the log said so; what a server shows may come before its log line is read."""
    for _ in patiently(f"{event} of {version}", lambda: server.stderr):
        for line in list(server.log):
            if (line["event"], line.get("version")) == (event, version):
                return str(line["time"])
    raise AssertionError


def test_a_version_that_dies_in_its_first_answers_takes_one_server_and_a_better_one_takes_over_after_its_trial(
    fleet: Fleet,
) -> None:
    good, bad, trial = fleet.publish(), fleet.version(2, "answer"), ("60", "3")
    servers = {"one": fleet.start("one", trial=trial)}
    until("the first server", servers["one"], version=good)
    pass_the_trial(servers["one"])
    servers["two"] = fleet.start("two", trial=trial)
    for server in servers.values():
        until("the version of all", server, version=good)
        pass_the_trial(server)
    assert fleet.publish() == bad
    canary = who_serves(servers, bad)
    others = [server for disk, server in servers.items() if disk != canary]
    for server in others:
        assert str(until("who waits", server, version=good, published=bad)["waiting"]).endswith("first")
    with pytest.raises(httpx.HTTPError):
        recommend(servers[canary])
    assert servers[canary].wait() == -signal.SIGKILL
    servers[canary] = fleet.start(canary, trial=trial)
    assert "in its first answers" in refused(servers[canary], bad, "attempt-died")
    for server in others:
        assert "died on " in refused(server, bad, "canary")
    for server in servers.values():
        until("the last good version", server, version=good)
        assert recommend(server).json()["version"] == good

    better = fleet.publish()
    leader = servers[who_serves(servers, better)]
    pass_the_trial(leader)
    for server in servers.values():
        until("the next version", server, version=better)
    took = sorted(at(server, "catalogue_served", better) for server in servers.values())
    assert took[0] == at(leader, "catalogue_served", better)
    assert took[1] >= at(leader, "version_passed", better)


def test_a_first_version_that_crashes_is_tried_three_times_and_then_the_server_stays_up_and_says_so(
    fleet: Fleet,
) -> None:
    bad = fleet.version(1, "segfault")
    assert fleet.publish() == bad
    assert fleet.start("one").wait() == -signal.SIGSEGV
    for _ in range(2):  # as two more starts do
        Attempts(fleet.disk("one") / "films" / ".attempts").begin(bad, allowed=0).abandon()
    server = fleet.start("one")
    assert "3 times" in refused(server, bad, "attempt-died")
    ready = ask(server, "/readyz")
    assert ready.status_code == 503
    assert f"version {bad} cannot be served (attempt-died)" in ready.json()["detail"]
    assert ask(server, "/healthz").status_code == 200
    assert 'igd_attempts_died{catalogue="films"} 3.0' in ask(server, "/metrics").text
    good = fleet.publish()
    until("a good version", server, version=good)
    assert ask(server, "/readyz").status_code == 200
