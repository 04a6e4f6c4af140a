"""Routes that refuse what they would ignore or misread.

These are unknown and repeated names in a query, bytes that are no UTF-8, and a body of DELETE.
"""

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Scope

from igd_server.api.problems import INVALID_FIELD, Finding
from igd_server.http.context import refusal

_SHOWN_CHARS = 64


class StrictRoute(APIRoute):
    """A route that FastAPI runs, if its request says no more than it reads.

    FastAPI passes over what it does not know in a query, takes the last of what is named twice, and replaces what is no
    UTF-8: somebody asks for one thing then, and gets another.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's own signature
        super().__init__(*args, **kwargs)
        self._query_names = frozenset(
            name for each in self.dependant.query_params for name in _names(each.alias, each.field_info.annotation)
        )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the request, then go on."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            found = await self.unread(request)
            return await handle(request) if found is None else refused(request.scope, found)

        return checked

    async def unread(self, request: Request) -> Finding | None:
        """What of a request would be ignored or read as something else; None if nothing."""
        found = unread_target(request.scope, self._query_names)
        # Some clients send an empty object with every GET; what one of DELETE says, somebody means.
        if found is None and request.method == "DELETE" and (body := await request.body()):
            return _finding("body", f"{len(body)} bytes; DELETE takes none")
        return found


def refused(scope: Scope, found: Finding) -> Response:
    """The response that a finding makes."""
    return refusal(scope, found.kind, found.detail, field=found.field, headers=found.headers)


def unread_target(scope: Scope, query_names: frozenset[str]) -> Finding | None:
    """What of a request's path and query would be ignored or read as something else; None if nothing."""
    path = scope.get("raw_path") or b""
    if b"%" in path and not _is_utf8(path):
        return _finding(", ".join(scope.get("path_params", ())) or "path", "percent-encoded bytes that are no UTF-8")
    query = scope["query_string"]
    return _unread_query(query, query_names) if query else None


def _unread_query(query: bytes, known: frozenset[str]) -> Finding | None:
    seen = set()
    for part in query.split(b"&"):
        if not part:
            continue
        name = unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")).decode(errors="replace")
        if not _is_utf8(part):
            return _finding(name, "percent-encoded bytes that are no UTF-8")
        if name not in known:
            return _finding(name, "no such field")
        if name in seen:
            return _finding(name, "named more than once")
        seen.add(name)
    return None


def _names(alias: str, annotation: Any) -> list[str]:  # noqa: ANN401 - any type
    """The parameters that one of FastAPI's stands for: of a model, its fields."""
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return list(annotation.model_fields) if is_model else [alias]


def _is_utf8(encoded: bytes) -> bool:
    try:
        unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return False
    return True


def _finding(field: str, reason: str) -> Finding:
    return Finding(kind=INVALID_FIELD, detail=f"{field[:_SHOWN_CHARS]}: {reason}", field=field)
