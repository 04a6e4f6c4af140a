"""What belongs to one HTTP request: its id, its log line, its metrics, and the headers of its response."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from starlette.datastructures import Headers, MutableHeaders

from server.problems import INTERNAL_ERROR, ProblemKind, response_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.metrics import Metrics

CLIENT_GONE = 499
"""Status of a request whose client left before its answer, in logs and metrics (nginx's number)."""

_KEY = "igd.context"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# FastAPI's documentation page is an inline script and a CDN's bundle; nothing else gets this policy.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' "
    "https://cdn.jsdelivr.net; img-src data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'"
)

_log = logging.getLogger("igd.server")


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """Filled in while a request is served.

    Attributes:
        request_id: the client's, where it sent a good one.
        client_gone: whether the connection ended before the answer.
        facts: further fields of the log line.
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
) -> Response:
    """The response that refuses a request; its log line will name the problem."""
    context = context_of(scope)
    context.facts["problem"] = kind.name
    return response_of(kind, kind.problem(detail, context.request_id, field=field), headers)


class ContextMiddleware:
    """Outermost: names the request, counts it, logs it, and turns an unforeseen error into a problem document."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = scope[_KEY] = RequestContext(request_id=_request_id(Headers(scope=scope)))
        started = time.perf_counter()
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Content-Security-Policy"] = _DOCS_POLICY if scope["path"] == "/docs" else _PAGE_POLICY
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            _log.exception("unforeseen_error", extra={"fields": {"request_id": context.request_id}})
            if status:  # the response has begun: only cutting the connection says that it is not whole
                raise
            await refusal(scope, INTERNAL_ERROR, INTERNAL_ERROR.title)(scope, receive, send_on)
        finally:
            self._record(scope, status or CLIENT_GONE, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        context = context_of(scope)
        if context.client_gone:
            status = CLIENT_GONE
        route = _route_template(scope)
        self._metrics.observe_request(route, status, seconds)
        _log.log(
            logging.DEBUG if route in _QUIET_ROUTES else logging.INFO,
            "request",
            extra={
                "fields": {
                    "request_id": context.request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "duration_ms": round(seconds * 1000, 3),
                    **context.facts,
                }
            },
        )


def _request_id(headers: Headers) -> str:
    offered = headers.get("x-request-id", "")
    return offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


def _route_template(scope: Scope) -> str:
    """``/v1/items/{item_id}``, never the path itself: a metric's labels must be few."""
    route = scope.get("route")
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return str(template) if template else "unmatched"
