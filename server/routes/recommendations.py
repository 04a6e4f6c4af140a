"""``POST /v1/recommendations`` and ``POST /v1/recommendations:batch``."""

import asyncio

from fastapi import APIRouter, Request
from pydantic import ValidationError

from igd_core.errors import QueryError
from server.context import context_of
from server.deployment import Deployment, ServedCatalogue
from server.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    DEADLINE_EXCEEDED,
    ENGINE_UNAVAILABLE,
    INTERNAL_ERROR,
    INVALID_FIELD,
    MALFORMED_JSON,
    UNSUPPORTED_MEDIA_TYPE,
    finding_of_fields,
)
from server.recommending import RecommendationService, refused_in_batch
from server.routes.documented import JsonRoute, problems
from server.schemas import (
    BatchRequest,
    BatchResponse,
    BatchResult,
    RecommendationRequest,
    RecommendationResponse,
)
from server.settings import Settings

_BODY = (MALFORMED_JSON, BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_FIELD)


def recommendations_router(settings: Settings, deployment: Deployment, service: RecommendationService) -> APIRouter:
    """Both routes."""
    router = APIRouter(tags=["recommendations"], route_class=JsonRoute)

    @router.post(
        "/v1/recommendations",
        summary="Rank what may follow a history",
        response_model_exclude_none=True,
        responses=problems(*_BODY, INTERNAL_ERROR, ENGINE_UNAVAILABLE, DEADLINE_EXCEEDED),
    )
    async def recommend(body: RecommendationRequest, request: Request) -> RecommendationResponse:
        context = context_of(request.scope)
        answer = await service.answer(body, deployment.served(), context.request_id)
        context.facts |= {"source": answer.source, "version": answer.version, "catalogue": answer.catalogue}
        return answer

    @router.post(
        "/v1/recommendations:batch",
        summary="Several recommendations at once, on one version of the catalogue",
        response_model_exclude_none=True,
        responses=problems(*_BODY, INTERNAL_ERROR, ENGINE_UNAVAILABLE),
    )
    async def recommend_batch(body: BatchRequest, request: Request) -> BatchResponse:
        if len(body.requests) > settings.max_batch:
            raise QueryError("requests", f"{len(body.requests)}; this server takes at most {settings.max_batch}")
        context = context_of(request.scope)
        served = deployment.served()
        context.facts |= {"version": served.artifact.version, "requests": len(body.requests)}
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_answer(service, entry, served, f"{context.request_id}.{position}"))
                for position, entry in enumerate(body.requests)
            ]
        return BatchResponse(request_id=context.request_id, results=[task.result() for task in tasks])

    return router


async def _answer(
    service: RecommendationService, entry: object, served: ServedCatalogue, request_id: str
) -> BatchResult:
    """Check and answer one entry."""
    try:
        request = RecommendationRequest.model_validate(entry)
    except ValidationError as error:
        return refused_in_batch(finding_of_fields(error.errors()), request_id)
    return await service.answer_one_of_batch(request, served, request_id)
