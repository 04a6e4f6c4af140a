"""From a request to a query of item rows: whose history, which variant, and what had to be passed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.catalogue.attributes import AttributeIndex
from igd_core.catalogue.conditions import conditions_of
from igd_core.errors import QueryError
from igd_core.search.recommender import Query
from igd_server.api.schemas import RequestWarning
from igd_server.variants import Variant, assign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.catalogue.conditions import Condition
    from igd_core.catalogue.items import Catalogue
    from igd_core.ids import ItemIndex
    from igd_server.api.schemas import RecommendationRequest
    from igd_server.settings import Settings

_SAMPLE = 5
_AS_REQUESTED = Variant(name="as-requested")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """A query for the recommender; ``warnings`` tell what of the request is not in it."""

    query: Query
    warnings: tuple[RequestWarning, ...]


def variant_of(request: RecommendationRequest, variants: Sequence[Variant]) -> Variant | None:
    """The one named, else the user's, else the first in the draw; None where there are no variants.

    Raises:
        QueryError: no variant of that name.
    """
    if request.variant is not None:
        named = next((variant for variant in variants if variant.name == request.variant), None)
        if named is None:
            known = ", ".join(variant.name for variant in variants) or "none"
            raise QueryError("variant", f"no variant {request.variant!r}; this server has: {known}")
        return named
    if not variants:
        return None
    if request.user_id is not None:
        return assign(request.user_id, variants)
    return next(variant for variant in variants if variant.weight)


def timeout_s_of(request: RecommendationRequest, settings: Settings) -> float:
    """Seconds that the request has.

    Raises:
        QueryError: more than this server takes.
    """
    timeout_ms = settings.default_timeout_ms if request.timeout_ms is None else request.timeout_ms
    if timeout_ms > settings.max_timeout_ms:
        raise QueryError("timeout_ms", f"{timeout_ms}; this server takes at most {settings.max_timeout_ms}")
    return timeout_ms / 1000


def resolve(
    request: RecommendationRequest,
    catalogue: Catalogue,
    settings: Settings,
    *,
    stored: Sequence[str] | None = None,
    variant: Variant | None = None,
    attributes: AttributeIndex | None = None,
) -> ResolvedRequest:
    """Look up every item id and apply this server's bounds; the query gets no deadline.

    Args:
        request: what was sent.
        catalogue: whose items are meant.
        settings: this server's.
        stored: the user's stored history, oldest first, where that is to be used instead of the request's. Items that
            are not in the catalogue are skipped even under ``strict``: they may be another's.
        variant: gives what the request leaves open.
        attributes: of the catalogue's items; None to make one.

    Raises:
        QueryError: a value above a bound, a condition that is not of its attribute's type, or an unknown item or value
            under ``strict``; names the field.
    """
    if len(request.history) > settings.max_history_items:
        raise QueryError(
            "history", f"{len(request.history)} items; this server takes at most {settings.max_history_items}"
        )
    warnings: list[RequestWarning] = []

    def rows(field: str, item_ids: Sequence[str], *, strict: bool = request.strict) -> list[ItemIndex]:
        found = [(item_id, catalogue.index_of(item_id)) for item_id in item_ids]
        unknown = [item_id for item_id, row in found if row is None]
        if unknown:
            warning = unknown_items(field, unknown)
            if strict:
                raise QueryError(field, warning.detail)
            warnings.append(warning)
        return [row for _, row in found if row is not None]

    variant = variant or _AS_REQUESTED
    forced_weight = variant.forced_weight if request.forced_weight is None else request.forced_weight
    query = Query(
        history=rows("history", request.history) if stored is None else rows("user_id", stored, strict=False),
        k=_count(request, catalogue),
        beams=request.beams if variant.beams is None or "beams" in request.model_fields_set else variant.beams,
        alpha=variant.alpha if request.alpha is None else request.alpha,
        temperature=request.temperature,
        length_penalty=request.length_penalty,
        forced_weight=1.0 if forced_weight is None else forced_weight,
        exclude_seen=request.exclude_seen,
        exclude_seen_titles=(
            settings.exclude_seen_titles if request.exclude_seen_titles is None else request.exclude_seen_titles
        ),
        exclude=rows("exclude", request.exclude),
        allow=None if request.allow is None else rows("allow", request.allow),
        attributes=_conditions(request, attributes or AttributeIndex(catalogue.metadata, catalogue.types), warnings),
    )
    return ResolvedRequest(query=query, warnings=tuple(warnings))


def _conditions(
    request: RecommendationRequest, attributes: AttributeIndex, warnings: list[RequestWarning]
) -> dict[str, Condition]:
    if not request.filter:
        return {}
    conditions = conditions_of(request.filter, attributes.types)
    for unknown in attributes.unknown_values(conditions):
        field = f"filter.{unknown.attribute}"
        if request.strict:
            raise QueryError(field, str(unknown))
        warnings.append(
            RequestWarning(
                code="unknown-values",
                detail=f"{field}: {unknown}",
                field=field,
                count=len(unknown.values),
                sample=[str(value) for value in unknown.values[:_SAMPLE]],
            )
        )
    return conditions


def _count(request: RecommendationRequest, catalogue: Catalogue) -> int:
    if "k" not in request.model_fields_set:
        return min(request.k, len(catalogue))
    if request.k > len(catalogue):
        raise QueryError("k", f"{request.k} items wanted; the catalogue has {len(catalogue)}")
    return request.k


def shortened_history(left_out: int, context_tokens: int) -> RequestWarning:
    """A warning of the oldest items that the model was not shown."""
    return RequestWarning(
        code="history-shortened",
        detail=f"the oldest {left_out} of the items that a prompt shows do not fit into the model's {context_tokens} "
        "tokens and were left out",
        field="history",
        count=left_out,
    )


def unknown_items(field: str, unknown: Sequence[str]) -> RequestWarning:
    """A warning of item ids in ``field`` that mean nothing here."""
    sample = list(dict.fromkeys(unknown))[:_SAMPLE]
    shown = ", ".join(map(repr, sample)) + (", ..." if len(set(unknown)) > _SAMPLE else "")
    return RequestWarning(
        code="unknown-items",
        detail=f"not in the catalogue: {len(unknown)} ({shown})",
        field=field,
        count=len(unknown),
        sample=sample,
    )
