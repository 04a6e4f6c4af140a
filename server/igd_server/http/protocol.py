"""HTTP/1.1 below the app: uvicorn's protocol on httptools, with limits on request heads, and problem documents.

httptools parses in C: a request costs a quarter of what it costs with h11 (0.14 instead of 0.55 ms on the machine that
the figures of docs/research come from). What it lacks is added here. A head may have ``MAX_HEAD_BYTES``; it must be
whole ``head_timeout_s`` after its first byte; a request of HTTP/1.1 names exactly one host; a client that does not
read its answers is cut off (`slow_readers`); one address may have so many connections; and what is no HTTP is
answered with a problem document, counted and logged as any other request, instead of with plain text.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from igd_server.api.problems import MEDIA_TYPE, ProblemKind
from igd_server.http.access import name_of_address
from igd_server.http.slow_readers import ReaderLimits, SlowReaders

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

    from igd_server.observe.metrics import Metrics

MAX_HEAD_BYTES = 16 << 10
UNREADABLE = "unreadable"
"""Route, in logs and metrics, of data that never became a request."""

MALFORMED_HTTP = ProblemKind(name="malformed-http", status=400, title="This is not a request of HTTP/1.1")
HEAD_TIMEOUT = ProblemKind(name="head-timeout", status=408, title="The request's head took too long to arrive")
TOO_MANY_CONNECTIONS = ProblemKind(
    name="too-many-connections", status=429, title="This address has too many open connections"
)
HEAD_TOO_LARGE = ProblemKind(name="head-too-large", status=431, title="The request's head is too large")

DEFAULT_READERS = ReaderLimits(timeout_s=30.0, max_bytes=64 << 20)

_MAX_PIPELINED = 16
_LINGER_S = 1.0
_SHOWN_BYTES = 64
_SHOWN_VALUES = 3

_log = logging.getLogger("igd.server")


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. `http_protocol` makes the class for a server."""

    metrics: ClassVar[Metrics]
    head_timeout_s: ClassVar[float]
    readers: ClassVar[SlowReaders]
    max_connections: ClassVar[int | None]
    open_connections: ClassVar[Counter[str]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's own signature
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._fed_bytes = self._parsed_bytes = 0
        self._refusal = MALFORMED_HTTP
        self._fault = ""
        self._declining = False
        self._deaf = False
        self.answers = 0
        self._running: RequestResponseCycle | None = None
        self._address = ""

    @property
    def paused(self) -> bool:
        """Whether the client has so much unread that writing has stopped."""
        return bool(self.flow.write_paused)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A new connection; it counts as idle until the client sends something."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self.readers.watch(self, self.loop)
        if self.max_connections is not None:
            self._address = name_of_address(self.client[0] if self.client else "")
            self.open_connections[self._address] += 1
            self._bound_connections(self.open_connections[self._address], self.max_connections)

    def _bound_connections(self, count: int, most: int) -> None:
        """Refuse a connection beyond the address's limit; silently, if there are very many more."""
        if count > most:
            self.metrics.observe_rejected("connections")
        if count > 2 * most:
            self._deaf = True
            self.transport.abort()
        elif count > most:
            self._refuse(TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self._deaf = True
        self.readers.forget(self)
        if self._address:
            self.open_connections[self._address] -= 1
            if not self.open_connections[self._address]:
                del self.open_connections[self._address]
        if self._running is not None:  # uvicorn tells only the latest request, not the one being answered
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self.readers.paused(self)

    def on_response_complete(self) -> None:
        """A response has been written."""
        self.answers += 1
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Parse received data."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        was_in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            # The parser says what it stumbled over, and of an error of ours that there was one.
            self._refuse(self._refusal, self._fault or str(error))
            return
        except httptools.HttpParserUpgrade as offered:
            self._decline(data[offered.args[0] :])
            return
        idle = self.cycle is None or self.cycle.response_complete
        if self._in_head and (was_in_head or idle):  # else most of it belonged to an earlier request
            self._fed_bytes += len(data)
        if self._in_head and self._fed_bytes > MAX_HEAD_BYTES:
            self._refuse(HEAD_TOO_LARGE)
        elif idle and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def on_message_begin(self) -> None:
        """A request's head begins."""
        super().on_message_begin()
        self._in_head = True
        self._fed_bytes = self._parsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Part of the request's target."""
        super().on_url(url)
        self._bound(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after a chunked body."""
        super().on_header(name, value)
        self._bound(len(name) + len(value) + len(b": \r\n"))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and self.parser.get_http_version() == "1.1":
            self._fail(f"host: {_shown(hosts)}; a request of HTTP/1.1 names one host" if hosts else "host: required")
        if hosts and not self.url.startswith(b"/") and b"://" in self.url:
            self._check_authority(hosts[0])
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._fail(f"more than {_MAX_PIPELINED} requests wait for the answer to another on this connection")
        self._in_head = False
        self._declining = bool(self.parser.should_upgrade())
        if not self._declining:
            self._stop_head_timer()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is complete."""
        if not self._declining:
            super().on_message_complete()

    def _check_authority(self, host: bytes) -> None:
        """Refuse a whole URL as the target if it names another host: only the header is checked by `hosts`."""
        authority = self.url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
        if _without_default_port(authority) != _without_default_port(host):
            self._fail(f"host: {_shown([host])}; the target names {_shown([authority])}")

    def _fail(self, fault: str) -> NoReturn:
        self._fault = fault
        raise _Refused(fault)

    def _decline(self, rest: bytes) -> None:
        """Treat a request that offers another protocol as one that does not.

        The parser ignores the body of such a request; clients that always offer HTTP/2, such as Java's, post with one.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(MALFORMED_HTTP)
            return
        head = [method, b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name not in (b"connection", b"upgrade"):
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"connection: close\r\n\r\n", rest]))

    def _bound(self, more: int) -> None:
        # A header without an end never reaches this callback, so data_received counts bytes as well.
        self._parsed_bytes += more
        if self._parsed_bytes > MAX_HEAD_BYTES:
            self._refusal = HEAD_TOO_LARGE
            self._fail(HEAD_TOO_LARGE.title)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(HEAD_TIMEOUT)
        else:  # the rest of a refused body, or empty lines
            self._deaf = True
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, kind: ProblemKind, detail: str = "") -> None:
        """Answer data that is not a valid request, and close. A request before it still gets its own answer."""
        self._deaf = True
        self._stop_head_timer()
        request_id = uuid.uuid4().hex
        self.metrics.observe_request(UNREADABLE, kind.status, 0.0)
        fields = {"request_id": request_id, "route": UNREADABLE, "status": kind.status, "problem": kind.name}
        _log.info("request", extra={"fields": fields})
        cycle = self.cycle  # the last request with a complete head
        if cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body):
            cycle.keep_alive = False
            return
        if self.pipeline:  # a broken body, and other answers are due first: no answer would fit
            self.transport.close()
            return
        body = kind.problem(detail or kind.title, request_id).model_dump_json(exclude_none=True).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[kind.status] + head + b"\r\n" + body)
        # Closing on a client that still sends would reset the connection, and the answer could be lost with it.
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(_LINGER_S, self.transport.close)


def _without_default_port(authority: bytes) -> bytes:
    """In lower case; 80 is the port of http where none is named, and TLS ends before this server."""
    return authority.lower().removesuffix(b":80")


def _shown(values: list[bytes]) -> str:
    return ", ".join(repr(value[:_SHOWN_BYTES].decode("latin-1")) for value in values[:_SHOWN_VALUES])


class _Refused(Exception):  # noqa: N818 - only ends parsing; httptools wraps it
    pass


def http_protocol(
    metrics: Metrics,
    *,
    head_timeout_s: float,
    readers: ReaderLimits = DEFAULT_READERS,
    max_connections: int | None = None,
) -> type[BoundedHttpProtocol]:
    """The protocol class for one server: uvicorn makes an object for each connection, and cannot pass it our parts.

    ``max_connections``: of one address at once; None for any number.
    """
    slow = SlowReaders(readers, metrics)
    metrics.watch_readers(slow)
    shared = {
        "metrics": metrics,
        "head_timeout_s": head_timeout_s,
        "readers": slow,
        "max_connections": max_connections,
        "open_connections": Counter(),
    }
    return type("HttpProtocol", (BoundedHttpProtocol,), shared)
