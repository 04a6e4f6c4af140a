"""Clients that do not read, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn
from igd_server.http.protocol import http_protocol
from igd_server.http.slow_readers import ReaderLimits
from igd_server.observe.metrics import Metrics
from patience import PATIENCE_S
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Scope, Send

BODY_BYTES = 16 << 20  # more than the kernel takes for a client that does not read
TIMEOUT_S = 0.8


@dataclass(slots=True)
class Served:
    """A server that answers every request with as many bytes as its path says."""

    port: int
    metrics: Metrics
    state: ServerState

    async def ask(self, size: int, times: int = 1) -> socket.socket:
        """Send requests on a new connection whose client takes little at a time."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", self.port))
        await loop.sock_sendall(client, b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % size * times)
        return client

    def stuck(self) -> int:
        """Connections with bytes that the kernel has not taken, or had until they were ended for it."""
        waiting = sum(each.transport.get_write_buffer_size() > 0 for each in self.state.connections)
        return waiting + round(self.counted('igd_slow_readers_total{reason="time"}'))

    def counted(self, line: str) -> float:
        text = self.metrics.render("")[0].decode()
        return next((float(each.rsplit(" ", 1)[1]) for each in text.splitlines() if each.startswith(line)), 0.0)

    async def until(self, condition: Callable[[], bool]) -> float:
        """Seconds until it holds."""
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - a connection's end is no event
                await asyncio.sleep(0.01)
        return time.monotonic() - began


@contextlib.asynccontextmanager
async def serving(max_bytes: int, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Served]:
    async def app(scope: Scope, _: Receive, send: Send) -> None:
        size = int(scope["path"][1:])
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    metrics = Metrics()
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=1, ws="none")
    config.load()
    limits = ReaderLimits(timeout_s=timeout_s, max_bytes=max_bytes)
    state, protocol = ServerState(), http_protocol(metrics, head_timeout_s=5, readers=limits)
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield Served(server.sockets[0].getsockname()[1], metrics, state)
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.gather(*state.tasks)


async def test_a_client_that_never_reads_is_cut_off_in_time() -> None:
    async with serving(1 << 30) as server:
        client = await server.ask(BODY_BYTES)
        await server.until(lambda: len(server.state.connections) == 1)
        seconds = await server.until(lambda: not server.state.connections)
        assert seconds >= TIMEOUT_S / 2, "it is given time"
        assert server.counted('igd_slow_readers_total{reason="time"}') == 1
        client.close()


async def test_so_is_one_that_asks_on_without_reading_and_one_whose_connection_was_to_close() -> None:
    async with serving(1 << 30) as server:
        asking = await server.ask(1 << 20, times=16)
        closing = await server.ask(BODY_BYTES)
        await server.until(lambda: server.stuck() == 2)
        for connection in list(server.state.connections):
            connection.shutdown()  # as when the server stops
        await server.until(lambda: not server.state.connections)
        assert server.counted('igd_slow_readers_total{reason="time"}') == 2
        asking.close()
        closing.close()


async def test_a_client_that_reads_slowly_but_does_gets_everything() -> None:
    async with serving(1 << 30, timeout_s=8.0) as server:
        client, loop, got = await server.ask(BODY_BYTES), asyncio.get_running_loop(), 0
        await asyncio.sleep(1.0)
        while got < BODY_BYTES:
            got += len(await loop.sock_recv(client, 1 << 20))
        assert server.counted("igd_slow_readers_total") == 0
        client.close()


async def test_what_waits_is_bounded_for_one_and_for_all() -> None:
    async with serving(32 << 20, timeout_s=60.0) as server:
        greedy = await server.ask(BODY_BYTES + (8 << 20))  # more than a quarter, and the kernel's part
        await server.until(lambda: server.counted('igd_slow_readers_total{reason="bytes"}') == 1)
        clients = [await server.ask(10 << 20) for _ in range(8)]
        await server.until(lambda: server.counted('igd_slow_readers_total{reason="bytes"}') > 1)
        await asyncio.sleep(0.2)
        unsent = [connection.transport.get_write_buffer_size() for connection in server.state.connections]
        assert unsent, "those who have least stay"
        assert max(unsent) <= 8 << 20
        assert sum(unsent) <= 32 << 20
        for client in (greedy, *clients):
            client.close()


async def test_others_are_answered_meanwhile() -> None:
    async with serving(1 << 30) as server:
        slow = [await server.ask(BODY_BYTES) for _ in range(4)]
        client = await server.ask(1000)
        received = await asyncio.get_running_loop().sock_recv(client, 65536)
        assert received.startswith(b"HTTP/1.1 200 OK")
        for each in (client, *slow):
            each.close()
