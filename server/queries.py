"""From a request's item ids to a query of item rows, and what had to be passed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import QueryError
from igd_core.recommender import Query
from server.schemas import RequestWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.catalogue import Catalogue
    from igd_core.ids import ItemIndex
    from server.schemas import RecommendationRequest
    from server.settings import Settings

_SAMPLE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """A query for the recommender; ``warnings`` tell what of the request is not in it."""

    query: Query
    warnings: tuple[RequestWarning, ...]


def resolve(request: RecommendationRequest, catalogue: Catalogue, settings: Settings) -> ResolvedRequest:
    """Look up every item id and apply this server's bounds.

    Raises:
        QueryError: a value above a bound, or an unknown item under ``strict``; names the field.
    """
    if len(request.history) > settings.max_history_items:
        raise QueryError(
            "history", f"{len(request.history)} items; this server takes at most {settings.max_history_items}"
        )
    timeout_ms = settings.default_timeout_ms if request.timeout_ms is None else request.timeout_ms
    if timeout_ms > settings.max_timeout_ms:
        raise QueryError("timeout_ms", f"{timeout_ms}; this server takes at most {settings.max_timeout_ms}")
    warnings: list[RequestWarning] = []

    def rows(field: str, item_ids: Sequence[str]) -> list[ItemIndex]:
        found = [(item_id, catalogue.index_of(item_id)) for item_id in item_ids]
        unknown = [item_id for item_id, row in found if row is None]
        if unknown:
            warning = _unknown(field, unknown)
            if request.strict:
                raise QueryError(field, warning.detail)
            warnings.append(warning)
        return [row for _, row in found if row is not None]

    query = Query(
        history=rows("history", request.history),
        k=_count(request, catalogue),
        beams=request.beams,
        alpha=request.alpha,
        temperature=request.temperature,
        length_penalty=request.length_penalty,
        exclude_seen=request.exclude_seen,
        exclude=rows("exclude", request.exclude),
        allow=None if request.allow is None else rows("allow", request.allow),
        attributes=request.filter,
        timeout_s=timeout_ms / 1000,
    )
    return ResolvedRequest(query=query, warnings=tuple(warnings))


def _count(request: RecommendationRequest, catalogue: Catalogue) -> int:
    if "k" not in request.model_fields_set:
        return min(request.k, len(catalogue))
    if request.k > len(catalogue):
        raise QueryError("k", f"{request.k} items wanted; the catalogue has {len(catalogue)}")
    return request.k


def _unknown(field: str, unknown: list[str]) -> RequestWarning:
    sample = list(dict.fromkeys(unknown))[:_SAMPLE]
    shown = ", ".join(map(repr, sample)) + (", ..." if len(set(unknown)) > _SAMPLE else "")
    return RequestWarning(
        code="unknown-items",
        detail=f"not in the catalogue: {len(unknown)} ({shown})",
        field=field,
        count=len(unknown),
        sample=sample,
    )
