"""What a request's body says it is: JSON, and as it is, not compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_server.api.problems import UNSUPPORTED_MEDIA_TYPE, Finding

if TYPE_CHECKING:
    from starlette.datastructures import Headers

_JSON = "application/json"
_CODINGS = (("content-encoding", "identity"), ("transfer-encoding", "chunked"))
"""Headers that name codings of the body, and the only one that is undone."""
_SHOWN_CHARS = 64


def refused_media(headers: Headers) -> Finding | None:
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
