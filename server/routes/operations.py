"""What operators ask: ``/healthz``, ``/readyz``, ``/metrics``."""

from fastapi import APIRouter, Request, Response

from server.context import refusal
from server.deployment import Deployment
from server.metrics import Metrics
from server.problems import ENGINE_UNAVAILABLE
from server.routes.documented import ACCESS, problems
from server.schemas import Health


def operations_router(deployment: Deployment, metrics: Metrics | None) -> APIRouter:
    """The probes; and ``/metrics`` unless it is served elsewhere."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="Whether the process answers")
    async def health() -> Health:
        return Health(status="ok")

    @router.get(
        "/readyz",
        summary="Whether recommendations are served",
        response_model=Health,
        responses=problems(ENGINE_UNAVAILABLE),
    )
    async def readiness(request: Request) -> Health | Response:
        reason = deployment.why_not_ready()
        if reason is not None:
            return refusal(request.scope, ENGINE_UNAVAILABLE, reason)
        return Health(status="ready")

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
