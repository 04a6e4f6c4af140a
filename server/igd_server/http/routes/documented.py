"""What routes have in common: keys and problems as OpenAPI documents them, and the check that a body is JSON."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.utils import create_model_field

from igd_server.api.problems import (
    FORBIDDEN,
    MEDIA_TYPE,
    RATE_LIMITED,
    UNAUTHENTICATED,
    ProblemKind,
)
from igd_server.api.schemas import Problem
from igd_server.http.context import refusal
from igd_server.http.media_types import refused_media

ACCESS = (UNAUTHENTICATED, FORBIDDEN, RATE_LIMITED)
"""How `igd_server.http.access.AccessMiddleware` refuses."""

_KEYS = "Made with `igd keys`; asked for where the server has a keys file."
# Documented here, decided in `igd_server.http.access.AccessMiddleware`: these let everything through.
KEYED = (
    Security(HTTPBearer(auto_error=False, scheme_name="bearer", description=_KEYS)),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="header", description=_KEYS)),
)


def problems(*kinds: ProblemKind) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these."""
    # A reference, not a model: FastAPI would document a model under application/json as well.
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    titles: dict[int, list[str]] = {}
    for kind in kinds:
        titles.setdefault(kind.status, []).append(kind.title)
    return {status: {"description": "; or: ".join(said), "content": content} for status, said in titles.items()}


class JsonRoute(APIRoute):
    """A route whose body is JSON and says so: a cross-site form cannot post to it without the browser asking first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's own signature
        super().__init__(*args, **kwargs)
        # For what `problems` refers to; in an app of such routes alone, no answer of 200 has a problem inside.
        self.response_fields[Problem.__name__] = create_model_field(
            Problem.__name__, type_=Problem, mode="serialization"
        )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check what the body says it is, then go on."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            refused = refused_media(request.headers)
            if refused is not None:
                return refusal(request.scope, refused.kind, refused.detail, headers=refused.headers)
            return await handle(request)

        return checked
