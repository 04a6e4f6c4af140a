"""Sockets to listen on, their URLs, and the server that takes their connections."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn

from igd_core.errors import InputError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

BACKLOG = 1024


class Server(uvicorn.Server):
    """uvicorn's server without its own signal handling, of which a process can have only one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield

    def protocol(self) -> asyncio.Protocol:
        """The protocol of a connection that others than uvicorn have taken."""
        made: type[asyncio.Protocol] = self.config.http_protocol_class
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]


def listen(host: str, port: int, *, name: str) -> socket.socket:
    """A socket that listens on ``host`` and ``port``; ``name`` is the setting that the port comes from.

    Raises:
        InputError: the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Connections inherit it. uvloop sets it by itself; asyncio's own loop does not for a socket made like this one,
        # and an answer in two packets then waits 40 ms for the client to acknowledge the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise InputError(f"host and {name}: cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """``http://127.0.0.1:8000/``."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
