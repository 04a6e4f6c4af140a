"""What routes have in common: keys and problems, as OpenAPI documents them."""

from typing import Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer

from igd_server.api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    FORBIDDEN,
    INVALID_FIELD,
    MALFORMED_JSON,
    MEDIA_TYPE,
    RATE_LIMITED,
    UNAUTHENTICATED,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemKind,
)
from igd_server.api.schemas import Problem

BODY = (MALFORMED_JSON, BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_FIELD)
"""How a body is refused."""

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
