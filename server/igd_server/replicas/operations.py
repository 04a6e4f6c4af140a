"""The operations port of several replicas: probes, metrics and administration for all of them.

And the stand-in: what the port itself answers while no replica serves, so that nobody waits for what may take minutes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from igd_server.api.problems import ENGINE_UNAVAILABLE
from igd_server.http.bodies import BodyMiddleware
from igd_server.http.context import ContextMiddleware, context_of, refusal
from igd_server.http.heads import HeadMiddleware
from igd_server.http.hosts import AllowedHosts, HostMiddleware
from igd_server.replicas.merging import LABEL, OPENMETRICS, labelled, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import httpx
    from prometheus_client import Metric
    from starlette.types import ASGIApp, Receive, Scope, Send

    from igd_server.observe.metrics import Metrics
    from igd_server.replicas.replica import Ended, Replica
    from igd_server.settings import Settings

SUPERVISOR = "supervisor"
_OF_ALL = re.compile(r"/v1/admin/catalogues/[^/]+:reload")
_OWN = re.compile("process_|igd_(requests|request_duration_seconds|rejected_requests|slow_readers|unsent_bytes)$")
_NOT_SENT_ON = frozenset({"connection", "content-length", "transfer-encoding", "accept-encoding", "x-request-id"})
_SENT_BACK = ("content-type", "www-authenticate", "retry-after", "allow")
_STOPPING = "the server is stopping"

_log = logging.getLogger("igd.server")


class Crew(Protocol):
    """The replicas, and whether all of them are being stopped."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """In the order of their numbers."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        ...


class ReplicaMetrics:
    """What the supervisor counts of its replicas."""

    def __init__(self, numbers: Iterable[int]) -> None:
        """All begin at 0."""
        self.registry = CollectorRegistry()
        self._up = Gauge(
            "igd_replica_up",
            "1 if the replica answered this scrape; its other metrics are absent otherwise. Only with IGD_REPLICAS.",
            ("replica",),
            registry=self.registry,
        )
        self._restarts = Counter(
            "igd_replica_restarts",
            "Replicas started again: ended (by itself), hung (killed), told (SIGHUP). Only with IGD_REPLICAS.",
            ("replica", "reason"),
            registry=self.registry,
        )
        for number in numbers:
            self.show_up(number, up=False)
            for reason in ("ended", "hung", "told"):
                self._restarts.labels(str(number), reason)

    def show_up(self, number: int, *, up: bool) -> None:
        """Set whether a replica answered."""
        self._up.labels(str(number)).set(up)

    def observe_restart(self, number: int, ended: Ended) -> None:
        """Count a replica that is started again."""
        reason = "told" if ended.told else "hung" if ended.hung else "ended"
        self._restarts.labels(str(number), reason).inc()


@dataclass(frozen=True, slots=True)
class _Route:
    """What a request's log line and metrics call it."""

    path: str


_FORWARDED = _Route("forwarded")


class OperationsApp:
    """Answers probes and ``/metrics`` itself, and has the rest answered by a replica.

    Every replica looks at the one store, so any of them moves a pointer for all; a ``:reload`` is for each of them.
    """

    def __init__(self, crew: Crew, *, own: Callable[[], Iterable[Metric]], replicas: ReplicaMetrics) -> None:
        """``own``: this process's metrics."""
        self._crew = crew
        self._own = own
        self._replicas = replicas
        self._told: str | None = None
        self._routes = {
            "/healthz": self._health,
            "/startupz": self._started,
            "/readyz": self._ready,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        answer = self._routes.get(scope["path"]) if scope["method"] == "GET" else None
        scope["route"] = _FORWARDED if answer is None else _Route(scope["path"])
        response = await (self._forward if answer is None else answer)(request)
        await response(scope, receive, send)

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _started(self, request: Request) -> Response:
        answers = await self._ask("/startupz")
        if any(answer is not None and answer.is_success for answer in answers):
            return JSONResponse({"status": "started"})
        return refusal(request.scope, ENGINE_UNAVAILABLE, _told_of(answers))

    async def _ready(self, request: Request) -> Response:
        """Ready while one replica is."""
        answers = await self._ask("/readyz")
        ready = any(answer is not None and answer.is_success for answer in answers)
        detail = _STOPPING if self._crew.draining else _told_of(answers)
        if ready and not self._crew.draining:
            self._told = None
            return JSONResponse({"status": "ready", "detail": detail})
        if detail != self._told:  # once, as in `igd_server.http.routes.operations`
            fields = {"request_id": context_of(request.scope).request_id, "cause": detail}
            _log.warning("not_ready", extra={"fields": fields})
        self._told = detail
        return refusal(request.scope, ENGINE_UNAVAILABLE, detail)

    async def _metrics(self, request: Request) -> Response:
        answers = await self._ask("/metrics", accept=OPENMETRICS)
        pages = {}
        for replica, answer in zip(self._crew.replicas, answers, strict=True):
            self._replicas.show_up(replica.number, up=answer is not None)
            if answer is not None:
                pages[str(replica.number)] = answer.text
        own = [*self._replicas.registry.collect(), *labelled(self._own(), SUPERVISOR)]
        try:
            body, media_type = merged(pages, own, request.headers.get("accept", ""))
        except TypeError:  # prometheus_client compares version=1.x with numbers
            body, media_type = merged(pages, own, "")
        return Response(body, headers={"Content-Type": media_type})

    async def _forward(self, request: Request) -> Response:
        """The answer of a replica; of all of them the worst."""
        content = await request.body()
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in _NOT_SENT_ON}
        headers["x-request-id"] = context_of(request.scope).request_id
        worst: httpx.Response | None = None
        for replica in sorted(self._crew.replicas, key=lambda each: not each.serves):
            answer = await replica.ask(path, method=request.method, headers=headers, content=content)
            if answer is not None and (worst is None or answer.status_code > worst.status_code):
                worst = answer
            if worst is not None and not _OF_ALL.fullmatch(request.url.path):
                break
        if worst is None:
            return refusal(request.scope, ENGINE_UNAVAILABLE, "no replica answers")
        back = {name: worst.headers[name] for name in _SENT_BACK if name in worst.headers}
        return Response(worst.content, status_code=worst.status_code, headers=back)

    async def _ask(self, path: str, *, accept: str = "*/*") -> list[httpx.Response | None]:
        """Every replica's answer, in their order."""
        asked = (replica.ask(path, headers={"accept": accept}) for replica in self._crew.replicas)
        return await asyncio.gather(*asked)


class StandInApp:
    """The port while no replica serves: 503 at once."""

    def __init__(self, operations: OperationsApp) -> None:
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            return
        if scope["path"] in ("/healthz", "/startupz", "/readyz"):
            await self._operations(scope, receive, send)
            return
        # Not the path: a metric must have few labels.
        scope["route"] = _Route("stand-in")
        answer = refusal(scope, ENGINE_UNAVAILABLE, "no replica serves now")
        await answer(scope, receive, send)


def _told_of(answers: Sequence[httpx.Response | None]) -> str:
    """What each says of itself, in one line."""
    return "; ".join(f"replica {number}: {_told(answer)}" for number, answer in enumerate(answers, start=1))


def _told(answer: httpx.Response | None) -> str:
    if answer is None:
        return "does not answer"
    said = answer.json()
    return str(said.get("detail") or said.get("status"))


def own_metrics(metrics: Metrics) -> Iterator[Metric]:
    """Families of this process that mean something: it serves no recommendations."""
    return (family for family in metrics.families() if _OWN.match(family.name))


def wrapped(app: ASGIApp, settings: Settings, metrics: Metrics) -> ASGIApp:
    """The app behind what stands before every app of ours, but keys: a replica checks those of what it is asked."""
    app = BodyMiddleware(HeadMiddleware(app), max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    hosts = AllowedHosts.of(settings)
    if hosts is not None:
        app = HostMiddleware(app, allowed=hosts, metrics=metrics)
    return ContextMiddleware(app, metrics=metrics)


__all__ = ["LABEL", "Crew", "OperationsApp", "ReplicaMetrics", "StandInApp", "own_metrics", "wrapped"]
