"""An HTTP/1.1 client for load: many connections to one server, callbacks instead of tasks, no retries.

It sends about 10,000 requests a second on one core, so the server is the bottleneck; `igd bench serve` reports how late
requests were sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httptools

from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go: ``base`` is the path before each request's own, without a slash at its end."""

    host: str
    port: int
    tls: bool
    base: str = ""

    @staticmethod
    def of(url: str) -> Target:
        """Parse a URL.

        Raises:
            InputError: not an http or https URL with a host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"url: {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(f"url: {url!r} is not http://HOST[:PORT][/PATH] or https://...")
        if parts.username is not None:
            raise InputError("url: keys are given with --key, not in the URL")
        tls = parts.scheme == "https"
        return Target(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, base=parts.path.rstrip("/"))

    @property
    def is_loopback(self) -> bool:
        """Whether requests stay on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def message(self, method: str, path: str, body: bytes = b"", *, key: str | None = None) -> bytes:
        """One request, as bytes."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        head = f"{method} {self.base}{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\nAccept: */*\r\n"
        if key is not None:
            head += f"Authorization: Bearer {key}\r\n"
        if method != "GET":
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + body


@dataclass(slots=True, kw_only=True)
class Answer:
    """A response; with ``status`` 0 there was none, and ``body`` says why."""

    status: int
    body: bytes = b""
    content_type: bytes = b""


@dataclass(slots=True)
class _Request:
    number: int
    message: bytes


class HttpPool:
    """At most ``max_connections`` connections, each with one request at a time; further requests wait in order.

    ``on_sent(number)`` is called when a request is written, ``on_answer(number, answer)`` when it is answered or
    failed: exactly once for each request, unless it is abandoned.
    """

    def __init__(
        self,
        target: Target,
        *,
        max_connections: int,
        on_sent: Callable[[int], None],
        on_answer: Callable[[int, Answer], None],
    ) -> None:
        self._target = target
        self._max_connections = max_connections
        self.on_sent = on_sent
        self.on_answer = on_answer
        self._tls = ssl.create_default_context() if target.tls else None
        self._idle: list[_Connection] = []
        self._busy: dict[int, _Connection] = {}
        self._waiting: deque[_Request] = deque()
        self._abandoned: set[int] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._open = 0  # includes those being opened
        self._closed = False

    def send(self, number: int, message: bytes) -> None:
        """Send now if a connection is free or may be opened; otherwise as soon as one is."""
        request = _Request(number, message)
        if self._idle:
            self._start(self._idle.pop(), request)
            return
        self._waiting.append(request)
        self._open_if_needed()

    def abandon(self, number: int) -> None:
        """Give up a request, and close its connection, as a client does that has lost patience."""
        connection = self._busy.pop(number, None)
        if connection is None:
            self._abandoned.add(number)  # it waits for a connection
            return
        connection.number = None
        connection.transport.abort()

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for connection in [*self._idle, *self._busy.values()]:
            connection.number = None
            connection.transport.abort()
        await asyncio.sleep(0)

    def _open_if_needed(self) -> None:
        if len(self._waiting) > len(self._opening) and self._open < self._max_connections and not self._closed:
            self._open += 1
            self._opening.add(asyncio.get_running_loop().create_task(self._connect()))

    async def _connect(self) -> None:
        loop, target = asyncio.get_running_loop(), self._target
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self), target.host, target.port, ssl=self._tls
            )
        except OSError as error:
            self._open -= 1
            # A connection that cannot be made fails one request; those after it try for themselves.
            if (request := self._next_waiting()) is not None:
                self.on_answer(request.number, Answer(status=0, body=f"cannot connect: {error}".encode()))
        else:
            self.freed(connection)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._opening.discard(task)
            self._open_if_needed()

    def _next_waiting(self) -> _Request | None:
        while self._waiting:
            request = self._waiting.popleft()
            if request.number not in self._abandoned:
                return request
            self._abandoned.discard(request.number)
        return None

    def _start(self, connection: _Connection, request: _Request) -> None:
        self._busy[request.number] = connection
        connection.start(request.number, request.message)
        self.on_sent(request.number)

    def freed(self, connection: _Connection) -> None:
        """A connection is free: give it the next request."""
        if self._closed:
            connection.transport.abort()
            return
        if (request := self._next_waiting()) is not None:
            self._start(connection, request)
        else:
            self._idle.append(connection)

    def answered(self, number: int, answer: Answer) -> None:
        """Report an answer."""
        self._busy.pop(number, None)
        self.on_answer(number, answer)

    def lost(self, connection: _Connection) -> None:
        """Forget a closed connection."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.number is not None:
            number, connection.number = connection.number, None
            self.answered(number, Answer(status=0, body=b"the connection was closed before the answer"))
        self._open_if_needed()


class _Connection(asyncio.Protocol):
    """One connection; httptools calls the ``on_...`` methods."""

    transport: asyncio.Transport

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool
        self.number: int | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._body = bytearray()
        self._content_type = b""
        self._done: Answer | None = None
        self._reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # of a stream

    def start(self, number: int, message: bytes) -> None:
        self.number = number
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._content_type = b""
        self._done = None
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None or self.number is None:
            self.transport.abort()  # an answer without a request
            return
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(Answer(status=0, body=f"no HTTP: {error}".encode()), reusable=False)
            return
        if self._done is not None:
            self._finish(self._done, reusable=self._reusable)
        elif len(self._body) > _MAX_ANSWER_BYTES:
            self._finish(Answer(status=0, body=b"an answer of more than 16 MiB"), reusable=False)

    def _finish(self, answer: Answer, *, reusable: bool) -> None:
        number, self.number, self._parser = self.number, None, None
        if number is None:
            return
        self._pool.answered(number, answer)
        if reusable and not self.transport.is_closing():
            self._pool.freed(self)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._pool.lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 12 and name.lower() == b"content-type":
            self._content_type = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser is not None and (status := parser.get_status_code()) >= 200:
            self._done = Answer(status=status, body=bytes(self._body), content_type=self._content_type)
            self._reusable = parser.should_keep_alive()  # it returns False as soon as this has returned
