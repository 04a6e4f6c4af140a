"""``GET /v1/admin/overview``: what operators look at."""

from collections.abc import Sequence
from dataclasses import asdict

from fastapi import APIRouter, Request

from igd_server.api.problems import INTERNAL_ERROR, INVALID_FIELD
from igd_server.api.schemas_catalogues import CacheCounts, LogEvent, Overview, VariantClicks
from igd_server.catalogues.deployment import Deployment
from igd_server.http.context import context_of
from igd_server.http.routes.catalogues import catalogue_list
from igd_server.http.routes.documented import ACCESS, KEYED, problems
from igd_server.http.routes.strict_routes import StrictRoute
from igd_server.observe.metrics import Metrics, VariantAnswers
from igd_server.observe.recent import RecentEvents
from igd_server.variants import Variant

_ALL_ANSWERS = ""
"""How metrics call the variant of a server that has none."""


def overview_router(
    deployment: Deployment, variants: Sequence[Variant], metrics: Metrics, recent: RecentEvents
) -> APIRouter:
    """The one route."""
    router = APIRouter(prefix="/v1/admin", tags=["administration"], route_class=StrictRoute, dependencies=KEYED)

    @router.get(
        "/overview",
        summary="What is served and refused, and what became of each variant's answers",
        response_model_exclude_none=True,
        responses=problems(INVALID_FIELD, *ACCESS, INTERNAL_ERROR),
    )
    async def overview(request: Request) -> Overview:
        served = catalogue_list(deployment, variants, context_of(request.scope).request_id)
        counted = metrics.answers_by_variant()
        clicks = [_clicks(variant, counted.get(variant.name)) for variant in variants]
        if not variants:
            found = counted.get(_ALL_ANSWERS, VariantAnswers())
            clicks = [VariantClicks(name=_ALL_ANSWERS, weight=1, answers=found.answers, followed=found.followed)]
        return Overview(
            **dict(served),
            following=[name for name in deployment.catalogue_names if deployment.live(name) is not None],
            since=metrics.since,
            clicks=clicks,
            cache=CacheCounts(**metrics.cache_outcomes()),
            events=[LogEvent(**asdict(each)) for each in recent.latest()],
        )

    return router


def _clicks(variant: Variant, found: VariantAnswers | None) -> VariantClicks:
    found = found or VariantAnswers()
    return VariantClicks(
        name=variant.name,
        weight=variant.weight,
        catalogue=variant.catalogue,
        adapter=variant.adapter,
        answers=found.answers,
        followed=found.followed,
    )
