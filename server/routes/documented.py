"""What routes have in common: problems as OpenAPI documents them, and the check that a body is JSON."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.context import refusal
from server.problems import MEDIA_TYPE, UNSUPPORTED_MEDIA_TYPE, ProblemKind
from server.schemas import Problem


def problems(*kinds: ProblemKind) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these."""
    # A reference, not a model: FastAPI would document a model under application/json as well.
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {kind.status: {"description": kind.title, "content": content} for kind in kinds}


class JsonRoute(APIRoute):
    """A route whose body is JSON and says so: a cross-site form cannot post to it without the browser asking first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the content type, then go on."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json":
                detail = f"content-type: {media_type[:64]!r}; expected 'application/json'"
                return refusal(request.scope, UNSUPPORTED_MEDIA_TYPE, detail)
            return await handle(request)

        return checked
