"""What is known of a user: shown by ``GET /v1/users/{user_id}``, forgotten by ``DELETE``; or with the id in a body."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import AfterValidator

from igd_core.store.events import MAX_USER_ID_CHARS, Event
from igd_core.store.impressions import Impression
from igd_core.timestamps import iso_of
from igd_server.api.problems import (
    INTERNAL_ERROR,
    INVALID_FIELD,
    NOT_FOUND,
    STORE_UNAVAILABLE,
)
from igd_server.api.schemas import PRINTABLE, AnswerSource
from igd_server.api.schemas_events import UserRequest
from igd_server.api.schemas_users import (
    Forgotten,
    KnownEvent,
    KnownImpression,
    ShownItem,
    UserForgotten,
    UserKnown,
)
from igd_server.api.user_ids import without_dots
from igd_server.http.context import context_of
from igd_server.http.routes.documented import ACCESS, BODY, KEYED, problems
from igd_server.http.routes.json_routes import JsonRoute
from igd_server.http.routes.strict_routes import StrictRoute
from igd_server.recommend.people import People

_UNABLE = (*ACCESS, INTERNAL_ERROR, STORE_UNAVAILABLE)
UserInPath = Annotated[
    str,
    Path(min_length=1, max_length=MAX_USER_ID_CHARS, pattern=PRINTABLE, examples=["u-1"]),
    AfterValidator(without_dots),
]


def users_router(people: People) -> APIRouter:
    """Each answer in two ways; with the id in the body, no proxy logs or changes it."""
    router = APIRouter(tags=["users"], route_class=StrictRoute, dependencies=KEYED)
    with_body = APIRouter(route_class=JsonRoute)

    async def known(user_id: str, request: Request) -> UserKnown:
        found = await people.known(user_id)
        events = [(event, True) for event in found.events] + [(event, False) for event in found.other_events]
        return UserKnown(
            request_id=context_of(request.scope).request_id,
            user_id=user_id,
            events=[
                _event(event, makes_history=makes_history)
                # Each list has its own orders among events of one time: a stable sort keeps both.
                for event, makes_history in sorted(events, key=lambda each: each[0].timestamp_ms)
            ],
            impressions=[_impression(each) for each in found.impressions],
            precomputed=found.precomputed,
            answers=found.links,
        )

    async def forgotten(user_id: str, request: Request) -> UserForgotten:
        erased = await people.forget(user_id)
        return UserForgotten(
            request_id=context_of(request.scope).request_id,
            forgotten=Forgotten(
                events=erased.events + erased.other_events,
                impressions=erased.impressions,
                answers=erased.answers,
                precomputed=erased.precomputed,
            ),
        )

    @with_body.post(
        "/v1/users:known",
        summary="What is known of a user",
        description="Everything that is stored under the user's id. Needs the scope `users` or `admin`.",
        response_model_exclude_none=True,
        responses=problems(*BODY, *_UNABLE),
    )
    async def know(body: UserRequest, request: Request) -> UserKnown:
        return await known(body.user_id, request)

    @with_body.post(
        "/v1/users:forget",
        summary="Forget a user",
        description="Nothing is stored of the user afterwards: events, impressions, cached answers, notes of answers, "
        "lists made in advance; the answer says how much there was. Exports that were made before are files of their "
        "own, and keep what they hold.",
        responses=problems(*BODY, *_UNABLE),
    )
    async def forget(body: UserRequest, request: Request) -> UserForgotten:
        return await forgotten(body.user_id, request)

    # A path parameter that may contain slashes: a user's id may. An id with a line feed is not a path: 404.
    @router.get(
        "/v1/users/{user_id:path}",
        summary="What is known of a user whose id may stand in a URL",
        description="As `POST /v1/users:known`, for ids that logs of proxies may hold, and that no proxy changes.",
        response_model_exclude_none=True,
        responses=problems(INVALID_FIELD, NOT_FOUND, *_UNABLE),
    )
    async def know_user(user_id: UserInPath, request: Request) -> UserKnown:
        return await known(user_id, request)

    @router.delete(
        "/v1/users/{user_id:path}",
        summary="Forget a user whose id may stand in a URL",
        description="As `POST /v1/users:forget`, for ids that logs of proxies may hold, and that no proxy changes.",
        responses=problems(INVALID_FIELD, NOT_FOUND, *_UNABLE),
    )
    async def forget_user(user_id: UserInPath, request: Request) -> UserForgotten:
        return await forgotten(user_id, request)

    router.include_router(with_body)
    return router


def _event(event: Event, *, makes_history: bool) -> KnownEvent:
    return KnownEvent(
        event_id=event.event_id,
        item_id=event.item_id,
        timestamp=iso_of(event.timestamp_ms),
        kind=event.kind,
        history=makes_history,
        value=event.value,
        position=event.position,
        request_id=event.request_id,
    )


def _impression(shown: Impression) -> KnownImpression:
    return KnownImpression(
        request_id=shown.request_id,
        timestamp=iso_of(shown.timestamp_ms),
        catalogue=shown.catalogue,
        version=shown.version,
        variant=shown.variant or None,
        source=_source(shown.source),
        items=[
            ShownItem(item_id=item_id, score=score) for item_id, score in zip(shown.item_ids, shown.scores, strict=True)
        ],
    )


def _source(noted: str) -> AnswerSource:
    return "popularity" if noted == "popularity" else "precomputed" if noted == "precomputed" else "model"
