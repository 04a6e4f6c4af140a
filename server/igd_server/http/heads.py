"""HEAD: the answer to GET without its body (RFC 9110, 9.3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What the router notes about a request, for the log line and the metrics.
_NOTED = ("route", "endpoint", "path_params")


class HeadMiddleware:
    """The innermost middleware: turns HEAD into GET; status and headers are GET's, also for errors.

    Load balancers, monitors and `curl --head` send HEAD; FastAPI's own routes would answer 405.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        asked = {**scope, "method": "GET"}  # the server writes no body because its own scope still says HEAD
        try:
            await self._app(asked, receive, send_on)
        finally:
            scope.update({name: asked[name] for name in _NOTED if name in asked})
