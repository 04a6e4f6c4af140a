"""``POST /v1/recommendations`` and ``POST /v1/recommendations:batch``."""

import asyncio
import logging

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from igd_core.errors import IGDError, QueryError
from igd_server.api.problems import (
    DEADLINE_EXCEEDED,
    ENGINE_UNAVAILABLE,
    INTERNAL_ERROR,
    OVERLOADED,
    STORE_UNAVAILABLE,
    Finding,
    finding_of,
    finding_of_fields,
)
from igd_server.api.schemas import (
    BatchRequest,
    BatchResponse,
    BatchResult,
    RecommendationRequest,
    RecommendationResponse,
)
from igd_server.http.access import caller_of, weigh
from igd_server.http.context import context_of, log_unforeseen
from igd_server.http.routes.documented import ACCESS, BODY, KEYED, problems
from igd_server.http.routes.json_routes import DirectRoute
from igd_server.observe.logs import cause_of
from igd_server.recommend.answers import Answer
from igd_server.recommend.service import RecommendationService, ServedOf
from igd_server.settings import Settings

_UNABLE = (ENGINE_UNAVAILABLE, OVERLOADED, STORE_UNAVAILABLE)
_JSON = "application/json"

_log = logging.getLogger("igd.server")


def recommendations_router(settings: Settings, service: RecommendationService) -> APIRouter:
    """Both routes."""
    router = APIRouter(tags=["recommendations"], route_class=DirectRoute, dependencies=KEYED)

    @router.post(
        "/v1/recommendations",
        summary="Rank what may follow a history",
        response_model=RecommendationResponse,
        response_model_exclude_none=True,
        responses=problems(*BODY, *ACCESS, INTERNAL_ERROR, *_UNABLE, DEADLINE_EXCEEDED),
    )
    async def recommend(body: RecommendationRequest, request: Request) -> Response:
        context = context_of(request.scope)
        with service.leases() as served_of:
            await weigh(request.scope, service.weight(body, served_of))
            answer = await service.answer(body, context.request_id, served_of, caller=caller_of(request.scope))
        context.facts |= answer.facts()
        return Response(answer.json(), media_type=_JSON)

    @router.post(
        "/v1/recommendations:batch",
        summary="Several recommendations at once, each catalogue at one version",
        response_model=BatchResponse,
        response_model_exclude_none=True,
        responses=problems(*BODY, *ACCESS, INTERNAL_ERROR, *_UNABLE),
    )
    async def recommend_batch(body: BatchRequest, request: Request) -> Response:
        if len(body.requests) > settings.max_batch:
            raise QueryError("requests", f"{len(body.requests)}; this server takes at most {settings.max_batch}")
        context, caller = context_of(request.scope), caller_of(request.scope)
        context.facts["requests"] = len(body.requests)
        with service.leases() as served_of:
            entries = [_checked(entry) for entry in body.requests]
            weights = [1 if isinstance(entry, Finding) else service.weight(entry, served_of) for entry in entries]
            await weigh(request.scope, sum(weights))
            served_of(None)  # if nothing is served, refuse the batch instead of each entry

            async def result(entry: RecommendationRequest | Finding, request_id: str) -> bytes:
                return await _result(service, entry, request_id, served_of, caller)

            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(result(entry, f"{context.request_id}.{position}"))
                    for position, entry in enumerate(entries)
                ]
        results = b",".join(task.result() for task in tasks)
        # A request id needs no escaping.
        return Response(
            b'{"request_id":"%b","results":[%b]}' % (context.request_id.encode(), results), media_type=_JSON
        )

    return router


def _checked(entry: object) -> RecommendationRequest | Finding:
    try:
        return RecommendationRequest.model_validate(entry)
    except ValidationError as error:
        return finding_of_fields(error.errors())


async def _result(
    service: RecommendationService,
    entry: RecommendationRequest | Finding,
    request_id: str,
    served_of: ServedOf,
    caller: str,
) -> bytes:
    """One entry's answer: a `BatchResult` as JSON. An error concerns this entry alone."""
    found: Answer | Finding
    if isinstance(entry, Finding):
        found = entry
    else:
        try:
            found = await service.answer(entry, request_id, served_of, caller=caller)
        except IGDError as error:
            found = finding_of(error)
            _log_failed(request_id, found, error)
        except Exception as error:  # noqa: BLE001 - the other entries are no worse for it
            log_unforeseen(request_id, error)
            found = Finding(kind=INTERNAL_ERROR, detail=INTERNAL_ERROR.title)
    if isinstance(found, Answer):
        return b'{"status":200,"recommendation":%b}' % found.json()
    problem = found.kind.problem(found.detail, request_id, field=found.field)
    return BatchResult(status=problem.status, problem=problem).model_dump_json(exclude_none=True).encode()


def _log_failed(request_id: str, found: Finding, error: IGDError) -> None:
    """Log an entry's 5xx: the batch itself is answered with 200."""
    if found.kind.status < INTERNAL_ERROR.status:
        return
    level = logging.ERROR if found.kind is INTERNAL_ERROR else logging.WARNING
    fields = {"request_id": request_id, "status": found.kind.status, "problem": found.kind.name}
    _log.log(level, "entry_failed", extra={"fields": {**fields, "cause": cause_of(error)}})
