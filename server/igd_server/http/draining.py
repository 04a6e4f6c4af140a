"""Draining while the server stops: tells how busy it is, and asks clients to reconnect elsewhere."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PROBES = frozenset({"/healthz", "/readyz", "/startupz", "/metrics"})


class DrainableApp:
    """Wraps an app; knows when the last request came, and closes connections after their answers while ``draining``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._last = time.monotonic()
        self._running = 0
        self.draining = False

    @property
    def quiet_s(self) -> float:
        """Seconds since the last request other than a probe; 0 while one runs."""
        return 0.0 if self._running else time.monotonic() - self._last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        answered = False

        async def send_on(message: Message) -> None:
            nonlocal answered
            if self.draining and message["type"] == "http.response.start":
                # A load balancer keeps its connections; it must open new ones to other servers.
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        self._running += 1
        try:
            await self._app(scope, receive, send_on)
        except asyncio.CancelledError:
            if not answered:  # the app has said that the server is stopping, so uvicorn need not complain
                raise
        finally:
            self._running -= 1
            self._last = time.monotonic()
