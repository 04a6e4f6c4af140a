"""What operators ask: ``/healthz``, ``/readyz``, ``/metrics``."""

from fastapi import APIRouter, Request, Response

from server.context import refusal
from server.deployment import Deployment
from server.metrics import Metrics
from server.problems import ENGINE_UNAVAILABLE
from server.routes.documented import problems
from server.schemas import Health


def operations_router(deployment: Deployment, metrics: Metrics) -> APIRouter:
    """All three routes."""
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

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def scrape(request: Request) -> Response:
        body, media_type = metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": media_type})

    return router
