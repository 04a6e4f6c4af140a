"""``POST /v1/events``."""

from collections import Counter

from fastapi import APIRouter, Request, Response

from igd_core.errors import IGDError
from igd_core.event_kinds import UNSAID_KIND
from igd_server.api.problems import (
    INTERNAL_ERROR,
    STORE_UNAVAILABLE,
)
from igd_server.api.schemas import RequestWarning
from igd_server.api.schemas_events import EventsRecorded, EventsRequest
from igd_server.catalogues.deployment import Deployment
from igd_server.http.access import weigh
from igd_server.http.context import context_of
from igd_server.http.routes.documented import ACCESS, BODY, KEYED, problems
from igd_server.http.routes.json_routes import DirectRoute
from igd_server.observe.metrics import Metrics
from igd_server.recommend.attribution import Attribution
from igd_server.recommend.histories import Histories
from igd_server.recommend.kinds import EventKinds
from igd_server.recommend.resolve import unknown_items

_EVENTS_A_REQUEST = 10
"""Events that count as one request for rate limits: a batch is cheaper than single events, but not free."""


def events_router(
    deployment: Deployment, *, histories: Histories, kinds: EventKinds, attribution: Attribution, metrics: Metrics
) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["users"], route_class=DirectRoute, dependencies=KEYED)

    @router.post(
        "/v1/events",
        summary="Record what users did",
        description="All events are recorded, or the answer is an error. After one, or without an answer, send all of "
        "them again: none is recorded twice. An event of a kind that makes a history (`IGD_HISTORY_KINDS`) joins the "
        "user's; the others are kept beside it.",
        response_model=EventsRecorded,
        response_model_exclude_none=True,
        responses=problems(*BODY, *ACCESS, INTERNAL_ERROR, STORE_UNAVAILABLE),
    )
    async def record_events(body: EventsRequest, request: Request) -> Response:
        context = context_of(request.scope)
        try:
            await weigh(request.scope, 1 + (len(body.events) - 1) // _EVENTS_A_REQUEST)
            recorded = await histories.record(body.events)
        except IGDError:
            metrics.observe_events("refused", len(body.events))
            raise
        metrics.observe_events("accepted", recorded.accepted)
        metrics.observe_events("duplicate", recorded.duplicates)
        context.facts |= {"accepted": recorded.accepted, "duplicates": recorded.duplicates}
        named = [event.kind or UNSAID_KIND for event in body.events]
        metrics.observe_event_kinds(Counter(named))
        taken: dict[tuple[str, str], list[str]] = {}
        for event, kind in zip(body.events, named, strict=True):
            if event.request_id is not None and kind in kinds.success:
                taken.setdefault((event.request_id, event.user_id), []).append(event.item_id)
        for (request_id, user_id), item_ids in taken.items():
            attribution.attribute(request_id, item_ids, user_id=user_id)
        warning = _warning(body, deployment)
        answer = EventsRecorded(
            request_id=context.request_id,
            accepted=recorded.accepted,
            duplicates=recorded.duplicates,
            warnings=None if warning is None else [warning],
        )
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    return router


def _warning(body: EventsRequest, deployment: Deployment) -> RequestWarning | None:
    """Warn of items that are in no catalogue being served: otherwise nobody would notice a misspelt id."""
    catalogues = [served.catalogue for served in deployment.serving.values()]
    if not catalogues:
        return None
    item_ids = [event.item_id for event in body.events]
    unknown = [each for each in item_ids if all(catalogue.index_of(each) is None for catalogue in catalogues)]
    return unknown_items("events", unknown) if unknown else None
