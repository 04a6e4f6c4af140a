"""How a server stops, and its second port: real processes, real signals."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from server_process import Bundle, ServerProcess, make_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

ASK = {"history": ["1", "5"], "k": 3}


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("served"), definition, tokenizer, checkpoint_of("llama-fp32"))


class HalfSent:
    """A request whose body has begun: it runs until the rest comes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._body = json.dumps(ASK).encode()
        self._connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
        head = (
            "POST /v1/recommendations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self._body)}\r\n\r\n"
        )
        self._connection.sendall(head.encode() + self._body[:5])

    def finish(self) -> None:
        self._connection.sendall(self._body[5:])

    def answer(self) -> tuple[bytes, bytes]:
        """Head and body; the server closes the connection behind them."""
        received = b""
        with self._connection:
            while piece := self._connection.recv(65536):
                received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        return head, body


def wait_until_running(client: httpx.Client, number: int) -> None:
    deadline = time.monotonic() + 10
    while f"igd_requests_running {number + 1}.0" not in client.get("/metrics").text:  # the scrape itself is one
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_told_to_stop_is_not_ready_at_once_serves_on_and_answers_all_it_took(bundle: Bundle) -> None:
    server = ServerProcess.start(*bundle.flags, "--operations-port", "0", IGD_GRACE_S="20")
    listening = server.event("listening")
    server.event("ready")
    with (
        httpx.Client(base_url=listening["url"], timeout=20) as client,
        httpx.Client(base_url=listening["operations_url"], timeout=20) as operations,
    ):
        # What is on which port.
        assert client.get("/readyz").status_code == operations.get("/readyz").status_code == 200
        assert client.get("/metrics").status_code == 404
        assert client.post("/v1/admin/catalogues/films:reload", json={}).json()["type"].endswith(":not-found")
        assert operations.post("/v1/admin/catalogues/films:reload", json={}).json()["type"].endswith("ue-not-found")
        assert operations.post("/v1/recommendations", json=ASK).status_code == 404
        assert operations.get("/").status_code == 404

        half_sent = HalfSent(listening["url"])
        wait_until_running(operations, 1)
        server.process.send_signal(signal.SIGTERM)
        server.event("draining")
        for asked in (client, operations):
            unready = asked.get("/readyz")
            assert (unready.status_code, unready.json()["detail"]) == (503, "the server is stopping")
            assert asked.get("/healthz").status_code == 200
        assert "igd_ready 0.0" in operations.get("/metrics").text
        served = client.post("/v1/recommendations", json=ASK)
        assert (served.status_code, served.json()["source"]) == (200, "model")
        assert served.headers["connection"] == "close"
        half_sent.finish()
        head, body = half_sent.answer()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["items"] == served.json()["items"]
    server.wait()
    server.assert_ended_well()
    assert server.event("stopped")["seconds"] < 15


def test_what_is_not_answered_when_the_time_is_over_is_told_so(bundle: Bundle) -> None:
    server = ServerProcess.start(*bundle.flags, IGD_GRACE_S="1")
    url = server.event("listening")["url"]
    server.event("ready")
    half_sent = HalfSent(url)
    with httpx.Client(base_url=url, timeout=20) as client:
        wait_until_running(client, 1)
    server.process.send_signal(signal.SIGTERM)
    head, body = half_sent.answer()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in head.lower()
    problem = json.loads(body)
    assert (problem["type"], problem["detail"]) == ("urn:igd:problem:engine-unavailable", "the server is stopping")
    server.wait()
    server.assert_ended_well()
    assert server.event("stopped")["seconds"] < 5


def test_a_second_signal_ends_it_at_once(bundle: Bundle) -> None:
    server = ServerProcess.start(*bundle.flags, IGD_GRACE_S="60")
    url = server.event("listening")["url"]
    server.event("ready")
    half_sent = HalfSent(url)
    with httpx.Client(base_url=url, timeout=20) as client:
        wait_until_running(client, 1)
    for _ in range(2):
        server.process.send_signal(signal.SIGINT)
        server.event("draining")
    assert server.wait() == 0
    assert server.event("stopped")["seconds"] < 5
    half_sent.answer()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_server_that_cannot_have_its_second_port_does_not_start(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ServerProcess.start(*bundle.flags, "--operations-port", str(port))
        assert server.wait() == 2
    assert f"operations_port: cannot listen on 127.0.0.1:{port}" in server.stderr
