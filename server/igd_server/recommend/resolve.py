"""Resolve a request: which variant, whose history, which item rows; and warn of what was ignored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from igd_core.catalogue.conditions import conditions_of
from igd_core.errors import QueryError
from igd_core.scorers.gamma import gamma_after
from igd_core.search.query import Query
from igd_server.api.schemas import RequestWarning
from igd_server.variants import Variant, assign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.catalogue.attributes import AttributeIndex
    from igd_core.catalogue.conditions import Condition
    from igd_core.catalogue.items import Catalogue
    from igd_core.ids import ItemIndex
    from igd_core.scorers.options import Mixture
    from igd_core.search.query import ResolvedQuery
    from igd_server.api.schemas import RecommendationRequest
    from igd_server.catalogues.served import ServedCatalogue
    from igd_server.settings import Settings

_SAMPLE = 5
_AS_REQUESTED = Variant(name="as-requested")


@dataclass(slots=True, kw_only=True)
class Asked:
    """A request being answered; ``started``, ``deadline`` and ``store_by`` are times of the event loop.

    Attributes:
        request: as the client sent it.
        request_id: in the answer and the log.
        caller: whose share of the model it uses.
        variant: fills in what the request leaves open; None if there are no variants.
        served: the catalogue version that it began with.
        timeout_s: seconds for the answer.
        started: when it arrived.
        deadline: the model's answer must be there before it.
        store_by: the store's answer must be there before it.
        warnings: what was ignored, and why the model did not answer.
        resolved: the resolved query; `resolve` sets it once the history is known.
        key: of its answer by the model, once that is asked for.
    """

    request: RecommendationRequest
    request_id: str
    caller: str
    variant: Variant | None
    served: ServedCatalogue
    timeout_s: float
    started: float
    deadline: float
    store_by: float
    warnings: list[RequestWarning] = field(default_factory=list)
    resolved: ResolvedQuery = field(init=False)
    key: str | None = None


def variant_of(request: RecommendationRequest, variants: Sequence[Variant]) -> Variant | None:
    """The variant that the request names, else the user's, else the first with a weight; None if there are no variants.

    Raises:
        QueryError: no variant has this name.
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
    """The request's time in seconds.

    Raises:
        QueryError: more than this server allows.
    """
    timeout_ms = settings.default_timeout_ms if request.timeout_ms is None else request.timeout_ms
    if timeout_ms > settings.max_timeout_ms:
        raise QueryError("timeout_ms", f"{timeout_ms}; this server takes at most {settings.max_timeout_ms}")
    return timeout_ms / 1000


def resolve(asked: Asked, settings: Settings, *, stored: Sequence[str] | None = None) -> None:
    """Look up every item id, apply this server's limits and defaults, and set ``asked.resolved``.

    What is ignored is added to ``asked.warnings``.

    Args:
        asked: the request; its ``resolved`` is set.
        settings: this server's.
        stored: the user's stored history, oldest first, if it is to be used. Its items that are not in the catalogue
            are skipped even under ``strict``: they may belong to another catalogue.

    Raises:
        QueryError: names the field: a value above a limit, a condition of another type than its attribute; or, under
            ``strict``, an unknown item or value.
    """
    request, recommender = asked.request, asked.served.recommender
    if len(request.history) > settings.max_history_items:
        raise QueryError(
            "history", f"{len(request.history)} items; this server takes at most {settings.max_history_items}"
        )
    variant = asked.variant or _AS_REQUESTED
    mixture, normalise = _mixture(asked, variant), variant.normalise or settings.normalise
    forced_weight = variant.forced_weight if request.forced_weight is None else request.forced_weight
    history = (
        _rows(asked, "history", request.history) if stored is None else _rows(asked, "user_id", stored, strict=False)
    )
    gamma = _gamma(asked, variant, len(history))
    if mixture == "linear" and normalise == "vocabulary" and gamma != 0:
        normalise = None  # a linear mixture is of probabilities over children; a request that says both is refused
    query = Query(
        history=history,
        k=_count(request, asked.served.catalogue),
        beams=variant.beams if request.beams is None else request.beams,
        alpha=variant.alpha if request.alpha is None else request.alpha,
        normalise=request.normalise or normalise,
        temperature=variant.temperature if request.temperature is None else request.temperature,
        length_penalty=request.length_penalty,
        forced_weight=1.0 if forced_weight is None else forced_weight,
        gamma=gamma,
        mixture=mixture,
        exclude_seen=request.exclude_seen,
        exclude_seen_titles=(
            settings.exclude_seen_titles if request.exclude_seen_titles is None else request.exclude_seen_titles
        ),
        exclude=_rows(asked, "exclude", request.exclude),
        allow=None if request.allow is None else _rows(asked, "allow", request.allow),
        attributes=_conditions(request, recommender.attributes, asked.warnings),
        explain=request.explain,
    )
    asked.resolved = recommender.resolve(query, adapter=variant.adapter)
    if asked.resolved.left_out:
        asked.warnings.append(shortened_history(asked.resolved.left_out, recommender.engine.context_tokens))


def _gamma(asked: Asked, variant: Variant, interactions: int) -> float | None:
    """The request's, or the variant's where the catalogue's version holds an item scorer; None for the catalogue's."""
    if asked.request.gamma is not None or variant.gamma is None:
        return asked.request.gamma
    own = gamma_after(variant.gamma, interactions)
    if not own or asked.served.recommender.scorer is not None:
        return own
    asked.warnings.append(_no_scorer(f"variant {variant.name!r} has gamma {own:g}", "gamma"))
    return None


def _mixture(asked: Asked, variant: Variant) -> Mixture | None:
    """The same of how the scorer is mixed; a variant's does not change what the request is normalised over."""
    request = asked.request
    if request.mixture is not None or request.normalise == "vocabulary":
        return request.mixture
    if variant.mixture != "linear" or asked.served.recommender.scorer is not None:
        return variant.mixture
    if request.gamma is None and variant.gamma is None:  # else there is nothing to mix, or gamma is complained of
        asked.warnings.append(_no_scorer(f"variant {variant.name!r} has mixture 'linear'", "mixture"))
    return None


def _no_scorer(what: str, field: str) -> RequestWarning:
    return RequestWarning(
        code="scorer-unavailable",
        detail=f"{what}, and this version of the catalogue holds no item scorer: the model ranked alone",
        field=field,
    )


def _rows(asked: Asked, field: str, item_ids: Sequence[str], *, strict: bool | None = None) -> list[ItemIndex]:
    """Rows of the items in the catalogue. Others are warned of, or refused if ``strict`` (None: the request's)."""
    catalogue = asked.served.catalogue
    found = [catalogue.index_of(item_id) for item_id in item_ids]
    if None in found:
        warning = unknown_items(field, [item_id for item_id, row in zip(item_ids, found, strict=True) if row is None])
        if asked.request.strict if strict is None else strict:
            raise QueryError(field, warning.detail)
        asked.warnings.append(warning)
    return [row for row in found if row is not None]


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
    """Warning of the oldest items, which the model was not shown."""
    return RequestWarning(
        code="history-shortened",
        detail=f"the oldest {left_out} of the items that a prompt shows do not fit into the model's {context_tokens} "
        "tokens and were left out",
        field="history",
        count=left_out,
    )


def unknown_items(field: str, unknown: Sequence[str]) -> RequestWarning:
    """Warning of item ids in ``field`` that are not in the catalogue."""
    sample = list(dict.fromkeys(unknown))[:_SAMPLE]
    shown = ", ".join(map(repr, sample)) + (", ..." if len(set(unknown)) > _SAMPLE else "")
    return RequestWarning(
        code="unknown-items",
        detail=f"not in the catalogue: {len(unknown)} ({shown})",
        field=field,
        count=len(unknown),
        sample=sample,
    )
