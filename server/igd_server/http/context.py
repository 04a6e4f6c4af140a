"""Per-request context: its id, log line, metrics, and response headers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from starlette.datastructures import Headers

from igd_server.api.problems import ENGINE_UNAVAILABLE, INTERNAL_ERROR, ProblemKind, response_of
from igd_server.observe.logs import cause_of, where
from igd_server.observe.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from igd_server.observe.metrics import Metrics

CLIENT_GONE = 499
"""Status, in logs and metrics, of a request whose client disconnected before the answer (nginx's number)."""

_KEY = "igd.context"
_SERVER_ERROR = INTERNAL_ERROR.status
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/startupz", "/metrics"})
_FIXED_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_WITH_PICTURES = _PAGE_POLICY.replace(b"data:;", b"data: https:;")
"""Of the page at ``/``, which shows pictures that a column of the catalogue names."""

_log = logging.getLogger("igd.server")


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """Facts about a request, collected while it is served.

    Attributes:
        request_id: the client's, if it sent a valid one.
        client_gone: whether the connection ended before the answer.
        facts: further fields for the log line.
    """

    request_id: str
    client_gone: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def context_of(scope: Scope) -> RequestContext:
    """The context that the middleware put into ``scope``."""
    return cast("RequestContext", scope[_KEY])


def refusal(
    scope: Scope,
    kind: ProblemKind,
    detail: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
    cause: str | None = None,
) -> Response:
    """The response that refuses a request; also names the problem for the log line.

    Args:
        scope: of the connection.
        kind: the class of problem.
        detail: one line for the client.
        field: the field of the request.
        headers: further headers of the response.
        cause: of a 5xx, for the log only; by default ``detail``.
    """
    context = context_of(scope)
    context.facts["problem"] = kind.name
    if kind.status >= _SERVER_ERROR:
        context.facts["cause"] = cause or detail
    return response_of(kind, kind.problem(detail, context.request_id, field=field), headers)


class ContextMiddleware:
    """The outermost middleware: gives the request an id, counts, traces and logs it, and answers unforeseen errors.

    A request that the server cancels at the end of its grace period gets an answer first.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing or Tracing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        context = scope[_KEY] = RequestContext(request_id=_request_id(headers))
        answer = _Answer(send=send, headers=_headers(context.request_id, scope["path"]))
        started = time.perf_counter()
        self._metrics.request_began()
        with self._tracing.request(headers) as span:
            try:
                await self._app(scope, receive, answer.send_on)
                if not answer.status and not context.client_gone:
                    await self._mistaken(scope, answer, "no part of the server answered")
            except asyncio.CancelledError:
                if not answer.status and not context.client_gone:
                    stopping = refusal(scope, ENGINE_UNAVAILABLE, "the server is stopping")
                    await stopping(scope, receive, answer.send_on)
                raise
            except Exception as error:
                log_unforeseen(context.request_id, error)
                if answer.status:  # the response has begun: only closing the connection shows that it is incomplete
                    context.facts |= {"cut": True, "cause": cause_of(error)}
                    raise
                await self._mistaken(scope, answer, cause_of(error))
            finally:
                self._metrics.request_ended()
                self._record(scope, answer.status or CLIENT_GONE, time.perf_counter() - started, span)

    async def _mistaken(self, scope: Scope, answer: _Answer, cause: str) -> None:
        response = refusal(scope, INTERNAL_ERROR, INTERNAL_ERROR.title, cause=cause)
        await response(scope, _nothing_more, answer.send_on)

    def _record(self, scope: Scope, status: int, seconds: float, span: Span) -> None:
        context = context_of(scope)
        if context.client_gone:
            status = CLIENT_GONE
        route, method = _route_template(scope), scope["method"]
        self._metrics.observe_request(route, status, seconds)
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "igd.request_id": context.request_id,
            }
        )
        level = _level(route, status, cut="cut" in context.facts)
        if not _log.isEnabledFor(level):
            return
        if status >= _SERVER_ERROR:
            context.facts.setdefault("cause", "the route answered so itself")
        fields = {
            "request_id": context.request_id,
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
            **context.facts,
        }
        if (trace_id := self._tracing.trace_id()) is not None:
            fields["trace_id"] = trace_id
        _log.log(level, "request", extra={"fields": fields})


@dataclass(slots=True, kw_only=True)
class _Answer:
    """The response to one request, with our headers; ``status`` is 0 until it begins."""

    send: Send
    headers: list[tuple[bytes, bytes]]
    status: int = 0

    async def send_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.headers]
        await self.send(message)


def log_unforeseen(request_id: str, error: Exception) -> None:
    """Log a mistake of ours that a request hit."""
    fields = {"request_id": request_id, "cause": cause_of(error), "traceback": where(error)}
    _log.error("unforeseen_error", extra={"fields": fields})


def _level(route: str, status: int, *, cut: bool) -> int:
    """Level of a request's log line. For a probe, only a change is logged (`not_ready`)."""
    if status == _SERVER_ERROR or cut:
        return logging.ERROR
    if route in _QUIET_ROUTES:
        return logging.DEBUG
    return logging.WARNING if status >= _SERVER_ERROR else logging.INFO


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}


def _headers(request_id: str, path: str) -> list[tuple[bytes, bytes]]:
    policy = _WITH_PICTURES if path == "/" else _PAGE_POLICY
    return [(b"x-request-id", request_id.encode()), (b"content-security-policy", policy), *_FIXED_HEADERS]


def _request_id(headers: Headers) -> str:
    offered = headers.get("x-request-id", "")
    return offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


def _route_template(scope: Scope) -> str:
    """The route's template, ``/v1/items/{item_id}``, never the path itself: a metric must have few labels."""
    route = scope.get("route")
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return str(template) if template else "unmatched"
