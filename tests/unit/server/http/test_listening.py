"""The socket that a server listens on."""

from __future__ import annotations

import socket

import pytest
from igd_server.http.sockets import listen, url_of

from igd_core.errors import InputError


def test_connections_send_at_once_and_the_port_is_taken() -> None:
    with listen("127.0.0.1", 0, name="port") as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}/"
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0] as taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with pytest.raises(InputError, match=f"^host and port: cannot listen on 127.0.0.1:{port}: "):
            listen("127.0.0.1", port, name="port")
