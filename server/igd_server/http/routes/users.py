"""``POST /v1/users:forget`` and ``DELETE /v1/users/{user_id}``."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status

from igd_core.store.events import MAX_USER_ID_CHARS
from igd_server.api.problems import (
    INTERNAL_ERROR,
    INVALID_FIELD,
    NOT_FOUND,
    STORE_UNAVAILABLE,
)
from igd_server.api.schemas import PRINTABLE
from igd_server.api.schemas_events import ForgetRequest
from igd_server.http.routes.documented import ACCESS, BODY, KEYED, problems
from igd_server.http.routes.json_routes import JsonRoute
from igd_server.recommend.histories import Histories

_UNABLE = (*ACCESS, INTERNAL_ERROR, STORE_UNAVAILABLE)
UserInPath = Annotated[str, Path(min_length=1, max_length=MAX_USER_ID_CHARS, pattern=PRINTABLE, examples=["u-1"])]


def users_router(histories: Histories) -> APIRouter:
    """Both routes do the same; with the id in the body, no proxy logs or changes it."""
    router = APIRouter(tags=["users"], dependencies=KEYED)
    with_body = APIRouter(route_class=JsonRoute)

    @with_body.post(
        "/v1/users:forget",
        summary="Forget a user",
        description="Nothing is stored under the user's id afterwards, whether or not there was anything before.",
        status_code=status.HTTP_204_NO_CONTENT,
        response_class=Response,
        responses=problems(*BODY, *_UNABLE),
    )
    async def forget(body: ForgetRequest) -> None:
        await histories.forget(body.user_id)

    # A path parameter that may contain slashes: a user's id may. An id with a line feed is not a path: 404.
    @router.delete(
        "/v1/users/{user_id:path}",
        summary="Forget a user whose id may stand in a URL",
        description="As `POST /v1/users:forget`, for ids that logs of proxies may hold, and that no proxy changes.",
        status_code=status.HTTP_204_NO_CONTENT,
        response_class=Response,
        responses=problems(INVALID_FIELD, NOT_FOUND, *_UNABLE),
    )
    async def forget_user(user_id: UserInPath) -> None:
        await histories.forget(user_id)

    router.include_router(with_body)
    return router
