"""Between Ray Serve and the server: what Ray Serve does to requests and answers otherwise than other servers.

Ray Serve loads neither module of this package that knows Ray: `Answered` runs in its proxies, `InReplica` in replicas.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware

from igd_server.api.problems import ENGINE_UNAVAILABLE, response_of
from igd_server.http.context import context_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from igd_server.catalogues.deployment import Deployment

_LOOK_S = 0.05
_REQUEST_ID = "x-request-id"


def proxy_middlewares() -> list[Middleware]:
    """For ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=igd_server.ray_requests:proxy_middlewares``."""
    return [Middleware(Answered)]


class Answered:
    """Around a proxy: answers with a problem that a client may try again where a replica ended over the request.

    Ray Serve itself sends nothing there, and its HTTP server then a 500 without a request id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = MutableHeaders(scope=scope).setdefault(_REQUEST_ID, str(uuid4()))
        begun = gone = False

        async def noting_disconnect() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def noting_answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        await self._app(scope, noting_disconnect, noting_answer)
        if not begun and not gone:
            problem = ENGINE_UNAVAILABLE.problem("the replica ended while it answered; another one serves", request_id)
            lost = response_of(ENGINE_UNAVAILABLE, problem, {_REQUEST_ID: request_id})
            await lost(scope, receive, send)


class InReplica:
    """Around a replica's app: ready only when it serves, one request id, and nobody waits for what is cancelled."""

    def __init__(self, inner: ASGIApp, deployment: Deployment) -> None:
        self._inner = inner
        self._deployment = deployment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, self._once_ready(send))
        elif scope["type"] == "http":
            await self._serve(scope, receive, _with_one_id(scope, send))
        else:
            await self._inner(scope, receive, send)

    def _once_ready(self, send: Send) -> Send:
        """The start ends when recommendations are served, or with what hinders them for good."""

        async def send_when_ready(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete" and (failed := await self._failed_to_start()):
                message = {"type": "lifespan.startup.failed", "message": failed}
            await send(message)

        return send_when_ready

    async def _failed_to_start(self) -> str:
        """Wait until recommendations are served; "" then, or why they never will be."""
        while self._deployment.why_not_ready() is not None:
            if self._deployment.failure is not None:
                return str(self._deployment.failure)
            await asyncio.sleep(_LOOK_S)
        return ""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ray Serve cancels a request whose client has gone or whose time is over: no failure of this server."""
        serving = asyncio.ensure_future(self._inner(scope, receive, send))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            if not serving.done():
                await asyncio.sleep(0)  # it may not have begun
                context_of(scope).client_gone = True
                serving.cancel()
                await asyncio.wait((serving,))
            raise


def _with_one_id(scope: Scope, send: Send) -> Send:
    """Ray Serve gives each request an id, if it has none, and the answer the same: the app's would be a second one."""
    given = Headers(scope=scope).get(_REQUEST_ID)

    async def send_without_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get(_REQUEST_ID) == given:
                del headers[_REQUEST_ID]
        await send(message)

    return send_without_id
