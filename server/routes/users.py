"""``DELETE /v1/users/{user_id}``."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status

from igd_core.store.base import MAX_USER_ID_CHARS
from server.histories import Histories
from server.problems import (
    INTERNAL_ERROR,
    INVALID_FIELD,
    NOT_FOUND,
    STORE_UNAVAILABLE,
)
from server.routes.documented import ACCESS, KEYED, problems
from server.schemas import PRINTABLE

UserInPath = Annotated[str, Path(min_length=1, max_length=MAX_USER_ID_CHARS, pattern=PRINTABLE, examples=["u-1"])]


def users_router(histories: Histories) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["users"], dependencies=KEYED)

    # A path parameter that takes slashes: a user's id may hold them. One that holds a line feed is no path: 404.
    @router.delete(
        "/v1/users/{user_id:path}",
        summary="Forget a user",
        description="Nothing is stored under the user's id afterwards, whether or not there was anything before.",
        status_code=status.HTTP_204_NO_CONTENT,
        response_class=Response,
        responses=problems(INVALID_FIELD, NOT_FOUND, *ACCESS, INTERNAL_ERROR, STORE_UNAVAILABLE),
    )
    async def forget_user(user_id: UserInPath) -> None:
        await histories.forget(user_id)

    return router
