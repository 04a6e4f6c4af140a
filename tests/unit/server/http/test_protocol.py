"""HTTP below the app, over real sockets: what is bounded, and what a client gets that speaks something else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from igd_server.http.protocol import MAX_HEAD_BYTES, http_protocol
from igd_server.observe.metrics import Metrics
from patience import PATIENCE_S
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Message, Receive, Scope, Send

GOOD = b"GET /good HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass(slots=True)
class Served:
    """A server whose app says which path was asked for, and how long the body was."""

    port: int
    metrics: Metrics
    release: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def talk(self, *pieces: bytes, end: bool = False) -> bytes:
        """Send the pieces one by one, and read until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if end:
            writer.write_eof()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def counted(self, status: int) -> float:
        text = self.metrics.render("")[0].decode()
        line = f'igd_requests_total{{route="unreadable",status="{status}"}} '
        return next((float(found[len(line) :]) for found in text.splitlines() if found.startswith(line)), 0.0)


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Served]:
    release, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        length, more = 0, True
        if scope["path"] == "/early":
            more = False
        while more:
            message: Message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        if scope["path"] == "/slow":
            await release.wait()
        if scope["path"] == "/watched" and (await receive())["type"] == "http.disconnect":
            left.set()
        body = f"{scope['path']} {length}".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    metrics = Metrics()
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=1, ws="none")
    config.load()
    state, protocol = ServerState(), http_protocol(metrics, head_timeout_s=0.2, **options)
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield Served(server.sockets[0].getsockname()[1], metrics, release, left)
        release.set()
        for connection in list(state.connections):
            connection.shutdown()
        await asyncio.gather(*state.tasks)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as server:
        yield server


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),  # TLS to a plain port
        b"hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET \xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_a_problem_document_and_the_connection_ends(
    served: Served, request_bytes: bytes
) -> None:
    head, _, body = (await served.talk(request_bytes)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == ("urn:igd:problem:malformed-http", 400)
    assert f"x-request-id: {problem['request_id']}".encode() in head
    assert served.counted(400) == 1


@pytest.mark.parametrize(
    ("request_bytes", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "host: required"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "host: 'x', 'y'; a request of HTTP/1.1 names one host"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", "Duplicate Content-Length"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n", "Invalid character in Content-Length"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "Invalid character in chunk size",
        ),
        (
            b"GET http://evil.example/good HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "host: 'localhost'; the target names 'evil.example'",
        ),
    ],
)
async def test_what_is_no_http_is_told_what_is_wrong_with_it(served: Served, request_bytes: bytes, said: str) -> None:
    _, _, body = (await served.talk(request_bytes)).partition(b"\r\n\r\n")
    assert json.loads(body)["detail"] == said


async def test_a_whole_url_as_the_target_is_served_where_it_names_the_host(served: Served) -> None:
    in_query = await served.talk(b"GET /a?b=http://y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert in_query.endswith(b"/a 0")
    answer = await served.talk(b"GET http://X:80/good HTTP/1.1\r\nHost: x:80\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"/good 0")
    for target, host in ((b"http://x", b"x:80"), (b"http://x:80", b"x")):
        talked = await served.talk(b"GET %b/good HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (target, host))
        assert talked.endswith(b"/good 0")


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000,),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", *[b"x" * 4096] * 6),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 8000 + b"\r\n",),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n" + b"A: b\r\n" * 8000),
    ],
)
async def test_a_head_too_large_is_refused_before_it_is_held(served: Served, pieces: tuple[bytes, ...]) -> None:
    assert (await served.talk(*pieces)).startswith(b"HTTP/1.1 431 ")
    assert served.counted(431) == 1


async def test_a_head_as_large_as_allowed_is_served_also_in_pieces(served: Served) -> None:
    filler = b"x" * (MAX_HEAD_BYTES - 100)
    head = b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + filler + b"\r\n\r\n"
    assert (await served.talk(head)).endswith(b"/large 0")
    assert (await served.talk(head[:9000], head[9000:15000], head[15000:])).endswith(b"/large 0")


@pytest.mark.parametrize("before", [b"", GOOD])
async def test_a_head_that_dawdles_is_refused(served: Served, before: bytes) -> None:
    answer = await served.talk(before, *[bytes([byte]) for byte in b"GET /slow-head HTTP/1.1\r\nHo"])
    assert answer.count(b"HTTP/1.1 200") == bool(before)
    assert b"HTTP/1.1 408 " in answer
    assert b"head-timeout" in answer


@pytest.mark.parametrize("pieces", [(), (b"\r\n", b"\r\n"), (GOOD,), (GOOD, b"\r\n")])
async def test_a_connection_without_a_request_ends_in_silence(served: Served, pieces: tuple[bytes, ...]) -> None:
    answer = await served.talk(*pieces)
    assert answer.count(b"HTTP/1.1") == (GOOD in pieces)


async def test_a_body_that_nobody_wants_any_more_is_not_read_for_ever(served: Served) -> None:
    head = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    answer = await served.talk(head, *[b"x"] * 5)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"/early 0")


async def test_requests_sent_at_once_are_answered_in_order(served: Served) -> None:
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await served.talk(GOOD * 3 + last)
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.endswith(b"/last 0")


async def test_the_request_that_runs_hears_that_its_client_has_left_though_others_wait_behind_it(
    served: Served,
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /watched HTTP/1.1\r\nHost: x\r\n\r\n" + GOOD * 3)
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()
    async with asyncio.timeout(PATIENCE_S):
        await served.left.wait()


async def test_a_request_is_answered_though_nonsense_follows_it(served: Served) -> None:
    async with asyncio.TaskGroup() as group:
        talking = group.create_task(served.talk(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n"))
        async with asyncio.timeout(PATIENCE_S):
            while not served.counted(400):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        served.release.set()
    answer = talking.result()
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"/slow 0")


async def test_too_many_requests_at_once_are_cut_off_after_those_that_were_taken(served: Served) -> None:
    answer = await served.talk(GOOD * 200)
    assert 1 <= answer.count(b"HTTP/1.1 200") < 30
    assert answer.count(b"HTTP/1.1") == answer.count(b"HTTP/1.1 200")


async def test_an_offer_of_another_protocol_is_ignored(served: Served) -> None:
    offer = b"GET /good HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    assert (await served.talk(offer)).endswith(b"/good 0")
    post = offer.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 3\r\nHost")
    assert (await served.talk(post + b"abc")).endswith(b"/good 3")
    assert (await served.talk(post, b"ab", b"c")).endswith(b"/good 3")
    chunked = post.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked")
    assert (await served.talk(chunked, b"3\r\nabc\r\n", b"0\r\n\r\n")).endswith(b"/good 3")


async def test_a_tunnel_is_no_request(served: Served) -> None:
    assert (await served.talk(b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_client_that_hangs_up_its_end_still_gets_its_answer_or_a_close(served: Served) -> None:
    assert await served.talk(b"GET / HT", end=True) == b""


async def test_an_address_may_have_so_many_connections_and_is_told_when_it_has_more() -> None:
    async with serving(max_connections=2) as served, contextlib.AsyncExitStack() as closing:
        held = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            closing.callback(writer.close)
            writer.write(GOOD)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            held.append(writer)
        head, _, body = (await served.talk(GOOD)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert json.loads(body)["type"] == "urn:igd:problem:too-many-connections"
        held[0].close()
        await held[0].wait_closed()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        closing.callback(writer.close)
        writer.write(GOOD)
        async with asyncio.timeout(PATIENCE_S):
            answered = await reader.readline()
        assert answered.startswith(b"HTTP/1.1 200"), "the place is free again"
        assert 'igd_rejected_requests_total{reason="connections"} 1.0' in served.metrics.render("")[0].decode()


async def test_very_many_connections_of_an_address_are_closed_without_a_word() -> None:
    async with serving(max_connections=1) as served, contextlib.AsyncExitStack() as closing:
        for expected in (b"HTTP/1.1 200", b"HTTP/1.1 429", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            closing.callback(writer.close)
            if expected != b"":
                writer.write(GOOD)
                assert (await reader.readline()).startswith(expected)
            else:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
