"""A subscription to a channel that survives lost connections."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from redis import exceptions as errors

from igd_core.cancellation import cancel_and_wait
from igd_core.store.redis.clients import FAILURES, jittered, open_client

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

    from igd_core.store.redis.address import RedisAddress

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 2.0
_QUIET_S = 15.0
_ANSWER_S = 5.0


class Subscription:
    """A task that listens, reconnecting when needed."""

    def __init__(self, address: RedisAddress, channel: str, *, timeout_s: float) -> None:
        """Connect to nothing yet."""
        self._address = address
        self._channel = channel
        self._timeout_s = timeout_s
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listening: asyncio.Task[None] | None = None
        self._pause_s = _FIRST_PAUSE_S

    async def next(self) -> bytes | None:
        """The next message; those sent while there is no connection are lost. None once this is closed.

        Raises:
            Exception: what ended the listening, if it was nothing that a new connection mends.
        """
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
            self._listening.add_done_callback(lambda _: self._messages.put_nowait(None))
        message = await self._messages.get()
        if message is None and not self._listening.cancelled():
            self._listening.result()
        return message

    async def close(self) -> None:
        """Stop listening, and disconnect."""
        if self._listening is not None:
            await cancel_and_wait({self._listening})

    async def _listen(self) -> None:
        for turn in itertools.count():
            client = open_client(self._node(turn), self._timeout_s, for_messages=True)
            try:
                async with client.commands.pubsub() as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        self._messages.put_nowait(await self._read(pubsub))
            except FAILURES:
                await asyncio.sleep(jittered(self._pause_s))
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            finally:
                await client.close()

    def _node(self, turn: int) -> RedisAddress:
        """A cluster's nodes all get every message, so any will do: they take turns."""
        if self._address.kind != "cluster":
            return self._address
        return replace(self._address, kind="server", hosts=(self._address.hosts[turn % len(self._address.hosts)],))

    async def _read(self, pubsub: PubSub) -> bytes:
        """The next message; a connection that is silent, also to a PING, is an error."""
        asked = False
        while True:
            message = await pubsub.get_message(timeout=_ANSWER_S if asked else _QUIET_S)
            if message is not None:
                self._pause_s = _FIRST_PAUSE_S
                if message["type"] == "message":
                    return bytes(message["data"])
            elif asked:
                raise errors.ConnectionError("the subscription is silent")
            asked = message is None
            if asked:
                await pubsub.ping()
