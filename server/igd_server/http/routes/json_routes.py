"""Routes whose body is JSON and says so, not compressed: a cross-site form cannot post to one without being asked."""

from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from fastapi.utils import create_model_field
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from igd_server.api.problems import (
    INVALID_FIELD,
    UNSUPPORTED_MEDIA_TYPE,
    Finding,
    finding_of_fields,
)
from igd_server.api.schemas import Problem
from igd_server.http.json_bodies import parsed
from igd_server.http.routes.strict_routes import StrictRoute, refused, unread_target

_JSON = "application/json"
_CODINGS = (("content-encoding", "identity"), ("transfer-encoding", "chunked"))
"""Headers that name codings of the body, and the only one that is undone."""
_NO_NAMES = frozenset[str]()
_SHOWN_CHARS = 64


class JsonRoute(StrictRoute):
    """A route that FastAPI runs, after the check of what the body says it is, and of its JSON."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's own signature
        super().__init__(*args, **kwargs)
        # For what `problems` refers to; in an app of such routes alone, no answer of 200 has a problem inside.
        self.response_fields[Problem.__name__] = create_model_field(
            Problem.__name__, type_=Problem, mode="serialization"
        )

    async def unread(self, request: Request) -> Finding | None:
        """Check what the body says it is, then its JSON: FastAPI would take the last of equal keys."""
        found = await super().unread(request) or _refused_media(request.headers)
        if found is not None:
            return found
        value = parsed(await request.body())
        return value if isinstance(value, Finding) else None


class DirectRoute(APIRoute):
    """A route that FastAPI documents but does not run: what it does around a handler costs more than a cached answer.

    Its endpoint is ``async (body: Model, request: Request) -> Response``. The body is checked as FastAPI would check
    it; what is answered is the endpoint's own business, and documented by ``response_model``. 0.04 ms a request, with
    the check of the body, instead of FastAPI's 0.25.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's own signature
        super().__init__(*args, **kwargs)
        self._body_model: type[BaseModel] = get_type_hints(self.endpoint)["body"]
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        body = (
            unread_target(scope, _NO_NAMES)
            or _refused_media(request.headers)
            or _checked(await request.body(), self._body_model)
        )
        response = refused(scope, body) if isinstance(body, Finding) else await self.endpoint(body, request)
        await response(scope, receive, send)


def _refused_media(headers: Headers) -> Finding | None:
    """Why a body with these headers is not read: of another type than JSON, or coded; None where it is read.

    A body is never decompressed: its bound would hold for what arrives, not for what it unpacks to.
    """
    declared = headers.get("content-type", "")
    if declared != _JSON:
        media_type = declared.partition(";")[0].strip().lower()
        if media_type != _JSON:
            detail = f"content-type: {media_type[:_SHOWN_CHARS]!r}; expected {_JSON!r}"
            return Finding(kind=UNSUPPORTED_MEDIA_TYPE, detail=detail, headers={"Accept": _JSON})
    for name, known in _CODINGS:
        if name in headers and (coding := _other_coding(headers, name, known)):
            detail = f"{name}: {coding[:_SHOWN_CHARS]!r}; expected {known!r} or no such header"
            return Finding(kind=UNSUPPORTED_MEDIA_TYPE, detail=detail, headers={"Accept-Encoding": "identity"})
    return None


def _other_coding(headers: Headers, name: str, known: str) -> str:
    """The first coding that is not ``known``, in whatever line of the header; "" if none."""
    named = [coding.strip() for line in headers.getlist(name) for coding in line.split(",")]
    return next((coding for coding in named if coding and coding.lower() != known), "")


def _checked(raw: bytes, model: type[BaseModel]) -> BaseModel | Finding:
    value = parsed(raw)
    if isinstance(value, Finding):
        return value
    if value is None:
        return Finding(kind=INVALID_FIELD, detail="body: required", field="body")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
        return finding_of_fields([{**each, "loc": ("body", *each["loc"])} for each in found])
