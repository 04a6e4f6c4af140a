"""A TCP proxy of a test between a client and a real server: it delays, holds back or cuts what goes through."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self

HOST = "127.0.0.1"
_CHUNK = 1 << 16
_CONNECT_S = 2.0


class TcpProxy:
    """``with TcpProxy(redis.port) as proxy``; clients connect to ``proxy.port``.

    It works in threads of its own, so that it may outlive a test's event loop. A server that is not there is a
    connection that ends at once.

    Attributes:
        port: where clients connect.
        delay_s: seconds by which every piece of an answer comes later.
    """

    def __init__(self, upstream_port: int) -> None:
        self.delay_s = 0.0
        self._upstream_port = upstream_port
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False

    def hang(self) -> None:
        """Accept connections and bytes, and pass nothing on, in either direction."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass on what was held back by `hang`, and all that follows."""
        self._flowing.set()

    def cut(self) -> None:
        """End all connections; new ones may be made."""
        with self._lock:
            ending = list(self._open)
        for end in ending:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        # Closing alone does not wake a thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.resume()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as ends:
            ends.enter_context(client)
            self._flowing.wait()
            try:
                server = ends.enter_context(socket.create_connection((HOST, self._upstream_port), timeout=_CONNECT_S))
            except OSError:
                return
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            try:
                back = threading.Thread(target=self._pump, args=(server, client, True), daemon=True)
                back.start()
                self._pump(client, server, False)
                back.join()
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if is_answer and self.delay_s:
                    time.sleep(self.delay_s)
                self._flowing.wait()
                sink.sendall(data)
        for end in (source, sink):  # the other direction ends, too
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
