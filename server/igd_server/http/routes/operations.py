"""For operators: ``/healthz``, ``/startupz``, ``/readyz``, ``/metrics``."""

import logging

from fastapi import APIRouter, Request, Response

from igd_server.api.problems import ENGINE_UNAVAILABLE
from igd_server.api.schemas import Health
from igd_server.catalogues.deployment import Deployment
from igd_server.http.context import context_of, refusal
from igd_server.http.routes.documented import ACCESS, problems
from igd_server.observe.metrics import Metrics

_log = logging.getLogger("igd.server")


def operations_router(deployment: Deployment, metrics: Metrics | None) -> APIRouter:
    """The probes, and ``/metrics`` unless another port has it."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="Whether the process answers", response_model_exclude_none=True)
    async def health() -> Health:
        return Health(status="ok")

    @router.get(
        "/startupz",
        summary="Whether the process has started",
        description="503 while the model is being loaded and the catalogues are looked at for the first time; then "
        "200, whether or not the store could be reached. For what restarts a process that does not start.",
        response_model=Health,
        response_model_exclude_none=True,
        responses=problems(ENGINE_UNAVAILABLE),
    )
    async def start(request: Request) -> Health | Response:
        if not deployment.started:
            return refusal(request.scope, ENGINE_UNAVAILABLE, "the model and the catalogues are being loaded")
        return Health(status="started")

    told: str | None = None

    @router.get(
        "/readyz",
        summary="Whether recommendations are served",
        response_model=Health,
        response_model_exclude_none=True,
        responses=problems(ENGINE_UNAVAILABLE),
    )
    async def readiness(request: Request) -> Health | Response:
        nonlocal told
        reason = deployment.why_not_ready()
        if reason is not None:
            if reason != told:  # probes come every few seconds, and the log line of each is left out
                fields = {"request_id": context_of(request.scope).request_id, "cause": reason}
                _log.warning("not_ready", extra={"fields": fields})
            told = reason
            return refusal(request.scope, ENGINE_UNAVAILABLE, reason)
        told = None
        return Health(status="ready", detail="; ".join(deployment.remarks()) or None)

    if metrics is not None:
        router.include_router(_metrics_router(metrics))
    return router


def _metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter()
    text = {"schema": {"type": "string"}}

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        description="Open on the operations port; elsewhere a key needs the scope `metrics`.",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": text, "application/openmetrics-text": text}},
            **problems(*ACCESS),
        },
    )
    async def scrape(request: Request) -> Response:
        try:
            body, media_type = metrics.render(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # prometheus_client compares version=1.x with numbers
            body, media_type = metrics.render("")
        return Response(body, headers={"Content-Type": media_type})

    return router
