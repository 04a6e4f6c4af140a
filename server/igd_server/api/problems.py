"""Problem documents (RFC 9457), and the one table from errors to them."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from igd_core.errors import DeadlineExceeded, EngineError, IGDError, InputError, QueryError, StoreUnavailable
from igd_server.api.schemas import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEDIA_TYPE = "application/problem+json"
_MAX_DETAIL_CHARS = 500
_MAX_FIELD_CHARS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemKind:
    """A kind of problem. Its name never changes, so that clients may branch on it.

    Attributes:
        name: last part of the ``type`` URI.
        status: HTTP status.
        title: the same for every problem of this kind.
        retry_after_s: a default for ``Retry-After``, where trying again may help.
    """

    name: str
    status: int
    title: str
    retry_after_s: int | None = None

    def problem(self, detail: str, request_id: str, *, field: str | None = None) -> Problem:
        """A problem document of this kind; text from the client is cut to a bounded length."""
        return Problem(
            type=f"urn:igd:problem:{self.name}",
            title=self.title,
            status=self.status,
            detail=detail[:_MAX_DETAIL_CHARS],
            field=None if field is None else field[:_MAX_FIELD_CHARS],
            request_id=request_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong with a request: what its problem document will say.

    Attributes:
        kind: the class of problem.
        detail: one line for a person.
        field: the field of the request.
        headers: further headers of the response, such as ``Retry-After``.
    """

    kind: ProblemKind
    detail: str
    field: str | None = None
    headers: Mapping[str, str] | None = None


class Refused(IGDError):  # noqa: N818 - the name says what happened
    """The server refuses a request for a reason outside its body: key, rate, load.

    Attributes:
        finding: what the client is told.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


MALFORMED_JSON = ProblemKind(name="malformed-json", status=400, title="The body is not JSON")
UNAUTHENTICATED = ProblemKind(name="unauthenticated", status=401, title="An API key is needed")
FORBIDDEN = ProblemKind(name="forbidden", status=403, title="The API key may not do this")
NOT_FOUND = ProblemKind(name="not-found", status=404, title="No such resource")
ITEM_NOT_FOUND = ProblemKind(name="item-not-found", status=404, title="No such item")
METHOD_NOT_ALLOWED = ProblemKind(name="method-not-allowed", status=405, title="The resource has no such method")
BODY_TIMEOUT = ProblemKind(name="body-timeout", status=408, title="The body took too long to arrive")
BODY_TOO_LARGE = ProblemKind(name="body-too-large", status=413, title="The body is too large")
UNSUPPORTED_MEDIA_TYPE = ProblemKind(
    name="unsupported-media-type", status=415, title="The body must be JSON that is not compressed"
)
INVALID_FIELD = ProblemKind(name="invalid-field", status=422, title="A field has a value that cannot be served")
RATE_LIMITED = ProblemKind(name="rate-limited", status=429, title="Too many requests", retry_after_s=1)
INTERNAL_ERROR = ProblemKind(name="internal-error", status=500, title="The server made a mistake")
ENGINE_UNAVAILABLE = ProblemKind(
    name="engine-unavailable", status=503, title="The model cannot answer now", retry_after_s=2
)
OVERLOADED = ProblemKind(name="overloaded", status=503, title="The server has more to do than it can", retry_after_s=1)
STORE_UNAVAILABLE = ProblemKind(
    name="store-unavailable", status=503, title="The store cannot be reached now", retry_after_s=2
)
DEADLINE_EXCEEDED = ProblemKind(name="deadline-exceeded", status=504, title="The deadline passed")

_KIND_OF_ERROR: Mapping[type[IGDError], ProblemKind] = {
    InputError: INVALID_FIELD,
    DeadlineExceeded: DEADLINE_EXCEEDED,
    EngineError: ENGINE_UNAVAILABLE,
    StoreUnavailable: STORE_UNAVAILABLE,
    IGDError: INTERNAL_ERROR,
}
_OUR_OWN = (INTERNAL_ERROR, STORE_UNAVAILABLE)
"""Messages of these kinds name hosts and files: they are logged, and not sent."""

_KIND_OF_STATUS: Mapping[int, ProblemKind] = {
    kind.status: kind for kind in (MALFORMED_JSON, NOT_FOUND, METHOD_NOT_ALLOWED)
}


def finding_of(error: IGDError) -> Finding:
    """An error as a problem: the kind of its nearest listed class; its first line, unless only the log may have it."""
    if isinstance(error, Refused):
        return error.finding
    kind = next(_KIND_OF_ERROR[cls] for cls in type(error).__mro__ if cls in _KIND_OF_ERROR)
    detail = kind.title if kind in _OUR_OWN else (str(error).splitlines() or [kind.title])[0]
    return Finding(kind=kind, detail=detail, field=error.field if isinstance(error, QueryError) else None)


def finding_of_fields(errors: Sequence[Mapping[str, Any]]) -> Finding:
    """Turn pydantic's errors into a problem: the first error, and how many more there are."""
    first = errors[0]
    field = _field_name(first["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Finding(kind=INVALID_FIELD, detail=f"{field}: {_complaint(first)}{more}", field=field)


def kind_of_status(status: int) -> ProblemKind:
    """The kind of problem for a status that the framework raised."""
    return _KIND_OF_STATUS.get(status, INTERNAL_ERROR)


def response_of(kind: ProblemKind, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem document as an HTTP response."""
    retry = {} if kind.retry_after_s is None else {"Retry-After": str(kind.retry_after_s)}
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=kind.status,
        media_type=MEDIA_TYPE,
        headers={**retry, **(headers or {})},
    )


def _field_name(location: Sequence[str | int]) -> str:
    """``("body", "history", 3)`` is ``history[3]``; the body itself is ``body``."""
    inside = location[1:] if location and location[0] in {"body", "query", "path"} else location
    name = ""
    for part in inside:
        name += f"[{part}]" if isinstance(part, int) else f"{'.' if name else ''}{part}"
    return name or "body"


def _complaint(found: Mapping[str, Any]) -> str:
    if found["type"] == "extra_forbidden":
        return "no such field"
    if found["type"] == "missing":
        return "required"
    message = str(found["ctx"]["error"]) if found["type"] == "value_error" else found["msg"]
    # A check of ours that looks into a value shows the part of it that is wrong.
    return message if "; got " in message else f"{message}; got {_shown(found['input'])}"


def _shown(value: object) -> str:
    """A value as messages show it; a long one by its length."""
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    shown = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, (bool, type(None))) else None
    return shown or reprlib.repr(value)
