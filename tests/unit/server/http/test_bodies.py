"""What no HTTP client can bring about: a server that stops, and an answer that breaks off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.http.bodies import BodyMiddleware
from igd_server.http.context import ContextMiddleware, context_of
from igd_server.observe.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Connection:
    """One side of an ASGI exchange; the client sends an empty body, waits for the answer and leaves."""

    def __init__(self) -> None:
        self.scope: Scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
        self.sent: list[Message] = []
        self._asked = False
        self._answered = asyncio.Event()

    async def receive(self) -> Message:
        if self._asked:
            await self._answered.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self._answered.set()


async def serve(app: ASGIApp, connection: Connection) -> None:
    bounded = BodyMiddleware(app, max_bytes=1024, timeout_s=1.0)
    await ContextMiddleware(bounded, metrics=Metrics())(connection.scope, connection.receive, connection.send)


async def test_a_request_that_the_server_cancels_takes_its_work_along() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def app(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(serve(app, Connection()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_an_answer_that_breaks_off_is_not_mended() -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("half-way")

    connection = Connection()
    with pytest.raises(ValueError, match="half-way"):
        await serve(app, connection)
    assert [message["type"] for message in connection.sent] == ["http.response.start"]


async def test_an_app_that_asks_again_for_the_body_waits() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["more_body"] is False
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    connection = Connection()
    await serve(app, connection)
    assert connection.sent[0]["status"] == 204


async def test_what_an_app_does_after_its_answer_is_finished_though_the_client_has_left() -> None:
    finished = False

    async def app(_: Scope, __: Receive, send: Send) -> None:
        nonlocal finished
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
        await asyncio.sleep(0.01)
        finished = True

    connection = Connection()
    await serve(app, connection)
    assert finished
    assert not context_of(connection.scope).client_gone
