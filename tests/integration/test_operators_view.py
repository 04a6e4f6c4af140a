"""What operators see of a real `igd serve` on a real Redis with a password: its log, its probes, HEAD, hosts."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from igd_server.http.keys import KeyFile, make_key, write_keys
from redis_server import RedisServer
from server_process import Bundle, ServerProcess, make_bundle

from igd_core.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

USER = "zoë.secret@example.org"
PASSWORD = "pw-0f3c9a"  # noqa: S105 - the test's Redis'
WRONG_KEY = f"igd_0123456789ab_{'s' * 43}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operated:
    """A server, its Redis, and a key for everything."""

    server: ServerProcess
    redis: RedisServer
    token: str

    @property
    def url(self) -> str:
        return str(self.server.event("listening")["url"])


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("operated"), definition, tokenizer, checkpoint_of("llama-fp32"))


def protected(redis: RedisServer) -> str:
    """Give Redis a user with a password; the store's URL."""
    redis.cli("acl", "setuser", "igd", "on", f">{PASSWORD}", "~igd:*", "&igd:*", "+@all", "-@dangerous")
    return f"redis://igd:{PASSWORD}@127.0.0.1:{redis.port}/0"


@pytest.fixture(scope="module")
def operated(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """It starts while Redis is away."""
    root = tmp_path_factory.mktemp("redis")
    key = make_key("all", frozenset({"recommend", "events", "admin", "metrics"}), None)
    write_keys(root / "keys.json", KeyFile(keys=(key.stored,)))
    redis = RedisServer(root)
    server = ServerProcess.start(
        *("--catalogues", "films", "--model", str(bundle.model_dir), "--keys-file", str(root / "keys.json")),
        IGD_STORE=f"redis://igd:{PASSWORD}@127.0.0.1:{redis.port}/0",
        IGD_CACHE_DIR=str(root / "cache"),
        IGD_POLL_S="0.2",
        IGD_LOG_LEVEL="warning",
        IGD_RESULT_TTL_S="0",
    )
    try:
        with redis:
            redis.kill()
            yield Operated(server=server, redis=redis, token=key.token)
    finally:
        server.stop()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def listening_at(server: ServerProcess) -> str:
    """Its URL; at this log level it says nothing of it, so the kernel is asked."""
    found: list[str] = []

    def look() -> bool:
        import psutil

        connections = psutil.Process(server.process.pid).net_connections("tcp4")
        found.extend(f"http://127.0.0.1:{each.laddr.port}" for each in connections if each.status == psutil.CONN_LISTEN)
        return bool(found)

    until(look, "it listens")
    return found[0]


def test_a_server_whose_redis_is_away_has_started_is_not_ready_and_lives(operated: Operated, bundle: Bundle) -> None:
    """The first on this server. An orchestrator that asks `/startupz` and `/healthz` does not kill it."""
    with httpx.Client(base_url=listening_at(operated.server), timeout=30) as client:
        until(lambda: client.get("/startupz").status_code == 200, "it has started")
        waiting = [client.get("/readyz") for _ in range(3)]
        assert client.get("/healthz").status_code == 200
        assert {answer.status_code for answer in waiting} == {503}
        assert "the store cannot be reached" in waiting[0].json()["detail"]
        said = operated.server.event("not_ready", 10)
        assert said["request_id"] in {answer.headers["x-request-id"] for answer in waiting}
        assert "the store cannot be reached" in said["cause"]
        assert operated.server.event("not_following", 10)["trouble"] == "the store cannot be reached"
        operated.redis.start()
        url = protected(operated.redis)
        assert main(["publish", "--artifact", str(bundle.artifact_dir), "--store", url]) == 0
        until(lambda: client.get("/readyz").status_code == 200, "it is ready")


def test_no_line_of_the_log_holds_a_user_a_key_or_a_password_and_every_5xx_its_cause(operated: Operated) -> None:
    url = listening_at(operated.server)
    event = {"item_id": "1", "timestamp": "2026-01-31T12:00:00Z"}
    with_key = {"Authorization": f"Bearer {operated.token}"}
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=url, timeout=30, headers=with_key) as client:

        def everything() -> None:
            for user in (USER, f"{USER}\t", f"{USER}/{USER}", USER * 20):
                path = f"/v1/users/{quote(user, safe='')}"
                answers.append(client.post("/v1/events", json={"events": [{**event, "user_id": user}]}))
                answers.append(client.post("/v1/recommendations", json={"user_id": user, "fallback": False}))
                entries = {"requests": [{"user_id": user, "fallback": False}, {"user_id": user}]}
                answers.append(client.post("/v1/recommendations:batch", json=entries))
                answers.extend(client.request(method, path) for method in ("GET", "HEAD", "PUT", "DELETE"))
                answers.append(client.get(f"/none/{quote(user)}", params={"user_id": user}))
                answers.append(client.post("/v1/events", content=f'{{"user_id": "{user}'.encode(), headers=JSON))
            answers.append(client.get("/v1/catalogues", headers={b"X-Request-ID": f"{USER}!".encode()}))
            answers.append(client.get("/v1/catalogues", headers={"Authorization": f"Bearer {WRONG_KEY}"}))
            answers.append(client.get("/v1/catalogues", headers={"Authorization": "Basic em9lOnNlY3JldA=="}))
            answers.append(client.get("/v1/catalogues", headers={"X-API-Key": WRONG_KEY}))

        everything()
        operated.redis.pause()
        everything()
        operated.redis.resume()
        operated.redis.kill()
        everything()
        operated.redis.start()
        protected(operated.redis)
        operated.redis.cli("acl", "setuser", "igd", "on", "resetpass", ">another")
        everything()
        protected(operated.redis)
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=10) as raw:
        raw.sendall(f"DELETE /v1/users/{USER} HTTP/9\r\nHost: {USER}\r\n\r\n".encode())
        assert b" 400 " in raw.recv(4096)
    failed = [answer for answer in answers if answer.status_code >= 500]
    assert {answer.request.url.path.partition("/users/")[0] for answer in failed} >= {"/v1", "/v1/events"}

    def causes() -> dict[str, str]:
        return {line["request_id"]: line["cause"] for line in list(operated.server.log) if "cause" in line}

    until(lambda: {answer.headers["x-request-id"] for answer in failed} <= causes().keys(), "each 5xx has its cause")
    entries = [
        result["problem"]["request_id"]
        for answer in answers
        if answer.request.url.path.endswith(":batch") and answer.status_code == 200
        for result in answer.json()["results"]
        if result["status"] >= 500
    ]
    assert entries
    assert set(entries) <= causes().keys()
    secrets = [USER, quote(USER), json.dumps(USER)[1:-1], "secret@", PASSWORD, operated.token, WRONG_KEY, "em9l"]
    for secret in secrets:
        assert secret not in operated.server.stderr, secret


JSON = {"Content-Type": "application/json"}


def exchange(url: str, request: bytes) -> bytes:
    """All that the server sends until it closes."""
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=30) as raw:
        raw.sendall(request)
        received = b""
        while more := raw.recv(65536):
            received += more
    return received


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/startupz", "/docs", "/openapi.json", "/none"])
def test_head_sends_the_head_of_get_and_the_connection_goes_on(operated: Operated, path: str) -> None:
    url = listening_at(operated.server)
    end = "HTTP/1.1\r\nHost: localhost\r\n"
    sent = f"HEAD {path} {end}\r\nGET {path} {end}Connection: close\r\n\r\n"
    head, _, rest = exchange(url, sent.encode()).partition(b"\r\n\r\n")
    got, _, body = rest.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == got.splitlines()[0]
    assert body
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    assert int(length[1]) == len(body)
