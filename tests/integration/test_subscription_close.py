"""A subscription ends whenever it is closed: a server that follows its catalogues in Redis could else not stop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from igd_core import cancellation
from igd_core.store.redis.address import RedisAddress
from igd_core.store.redis.subscription import Subscription

if TYPE_CHECKING:
    import pytest

_STEPS = 80
"""Turns of the event loop in which a subscription connects, subscribes, and loses its connection."""


async def _answer_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a command or two as a Redis that is about to be killed does."""
    with contextlib.suppress(ConnectionError):
        for _ in range(2):
            await reader.read(1000)
            writer.write(b"+OK\r\n+OK\r\n")
            await writer.drain()
    writer.close()


async def test_it_ends_at_whatever_step_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "_AGAIN_S", 0.05)
    server = await asyncio.start_server(_answer_and_hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        for steps in range(_STEPS):
            subscription = Subscription(RedisAddress.parse(f"redis://127.0.0.1:{port}/0"), "changes", timeout_s=1.0)
            message = asyncio.create_task(subscription.next())
            for _ in range(steps):
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await subscription.close()
                if steps:
                    assert await message is None
            message.cancel()
