"""A connection that Redis closes in the moment in which it is written to, on the event loop that servers run on.

uvloop's transports raise RuntimeError then, where asyncio's own raise an OSError.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from redis.asyncio.connection import AbstractConnection

from igd_core.errors import StoreUnavailable
from igd_core.store.redis.address import RedisAddress
from igd_core.store.redis.link import Link
from igd_core.store.redis.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    """What writing to a connection ended with; each write waits until the other side has surely closed it."""
    right: Any = AbstractConnection.send_packed_command
    found: list[type[BaseException]] = []

    async def late(connection: AbstractConnection, *args: Any, **options: Any) -> None:
        await asyncio.sleep(0.02)
        try:
            await right(connection, *args, **options)
        except Exception as error:
            found.append(type(error))
            raise

    monkeypatch.setattr(AbstractConnection, "send_packed_command", late)
    return found


@contextlib.asynccontextmanager
async def _closing_server() -> AsyncIterator[RedisAddress]:
    """It resets each connection at once."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        no_linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        writer.transport.abort()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    yield RedisAddress.parse(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
    server.close()
    await server.wait_closed()


def _run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def test_a_call_says_that_redis_is_unavailable(errors: list[type[BaseException]]) -> None:
    async def call() -> None:
        async with _closing_server() as address:
            link = Link(address, timeout_s=5.0)
            with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
                await link.call("PING")
            await link.close()

    _run(call())
    assert RuntimeError in errors


def test_a_subscription_connects_again(errors: list[type[BaseException]]) -> None:
    async def listen() -> None:
        async with _closing_server() as address, asyncio.timeout(20):
            subscription = Subscription(address, "changes", timeout_s=5.0)
            following = asyncio.create_task(subscription.next())
            while errors.count(RuntimeError) < 3:  # noqa: ASYNC110 - of connections, nobody tells
                await asyncio.sleep(0.01)
            assert not following.done()
            await subscription.close()
            assert await following is None

    _run(listen())


def test_what_no_new_connection_mends_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listen() -> None:
        subscription = Subscription(RedisAddress.parse("redis://127.0.0.1:1/0"), "changes", timeout_s=5.0)
        monkeypatch.setattr(subscription, "_node", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await subscription.next()

    _run(listen())
