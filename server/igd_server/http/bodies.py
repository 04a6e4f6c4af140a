"""Request bodies, bounded in length and time before the app reads them; and clients that disconnect.

The whole body is read first; after that, the connection's only further message is that the client is gone. The
request's task is then cancelled, and decoding stops.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from igd_server.api.problems import BODY_TIMEOUT, BODY_TOO_LARGE, Finding
from igd_server.http.context import context_of, refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _ClientLeft(Exception):  # noqa: N818 - never leaves this module
    pass


class BodyMiddleware:
    """Gives the app a complete body of at most ``max_bytes``, and cancels the app when the client disconnects."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except _ClientLeft:
            context_of(scope).client_gone = True
            return
        if isinstance(body, Finding):
            await refusal(scope, body.kind, body.detail)(scope, receive, send)
            return
        await self._serve(_Exchange(scope=scope, body=body, receive=receive, send=send))

    async def _read(self, scope: Scope, receive: Receive) -> bytes | Finding:
        """Read the whole body. The server discards what arrives after a refusal."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_bytes:
            return self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientLeft
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        return self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            return Finding(kind=BODY_TIMEOUT, detail=f"not complete after {self._timeout_s:g} s")
        return bytes(body)

    def _too_large(self) -> Finding:
        return Finding(kind=BODY_TOO_LARGE, detail=f"more than {self._max_bytes} bytes")

    async def _serve(self, exchange: _Exchange) -> None:
        serving = asyncio.ensure_future(self._app(exchange.scope, exchange.replay, exchange.send_on))
        watching = asyncio.create_task(exchange.watch())
        try:
            await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
            if serving.done() or exchange.answered:
                await serving
                return
            serving.cancel()
            await asyncio.wait((serving,))
            context_of(exchange.scope).client_gone = True
            if not serving.cancelled():
                serving.result()  # raises what the app raised
        finally:
            watching.cancel()  # and ends by itself
            if not serving.done():  # the server itself cancels this request
                serving.cancel()
                await asyncio.wait((serving, watching))


@dataclass(slots=True, kw_only=True)
class _Exchange:
    """A request with its body: what the app receives and sends."""

    scope: Scope
    body: bytes
    receive: Receive
    send: Send
    answered: bool = False
    _replayed: bool = False
    _gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Return when the client has disconnected."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    async def replay(self) -> Message:
        """The body, once; then nothing until the client disconnects."""
        if not self._replayed:
            self._replayed = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send_on(self, message: Message) -> None:
        """Pass a message on, and note the last one."""
        await self.send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.answered = True
