"""Sockets to listen on, and their URLs."""

from __future__ import annotations

import socket

from igd_core.errors import InputError

BACKLOG = 1024


def listen(host: str, port: int, *, name: str) -> socket.socket:
    """A socket that listens on ``host`` and ``port``; ``name`` is the setting that the port comes from.

    Raises:
        InputError: the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(f"host and {name}: cannot listen on {host}:{port}: {error.strerror or error}") from None


def url_of(listener: socket.socket) -> str:
    """``http://127.0.0.1:8000/``."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
