"""``GET /v1/catalogues``."""

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request

from igd_server.api.problems import INTERNAL_ERROR, INVALID_FIELD
from igd_server.api.schemas_catalogues import (
    Attribute,
    CatalogueInfo,
    CatalogueList,
    RefusedVersion,
    ScorerInfo,
    UnservedCatalogue,
    VariantInfo,
)
from igd_server.catalogues.deployment import Deployment, ServedCatalogue
from igd_server.catalogues.following import LiveCatalogue
from igd_server.catalogues.refusals import Refusal
from igd_server.http.context import context_of
from igd_server.http.routes.documented import ACCESS, KEYED, problems
from igd_server.http.routes.strict_routes import StrictRoute
from igd_server.variants import Variant


def catalogues_router(deployment: Deployment, variants: Sequence[Variant]) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["catalogues"], route_class=StrictRoute, dependencies=KEYED)

    @router.get(
        "/v1/catalogues",
        summary="What is being served",
        response_model_exclude_none=True,
        responses=problems(INVALID_FIELD, *ACCESS, INTERNAL_ERROR),
    )
    async def list_catalogues(request: Request) -> CatalogueList:
        return catalogue_list(deployment, variants, context_of(request.scope).request_id)

    return router


def catalogue_list(deployment: Deployment, variants: Sequence[Variant], request_id: str) -> CatalogueList:
    """What is being served now."""
    serving = deployment.serving
    following = [live for name in deployment.catalogue_names if (live := deployment.live(name)) is not None]
    return CatalogueList(
        request_id=request_id,
        catalogues=[_info(served, deployment.live(name)) for name, served in serving.items()],
        unserved=[_unserved(live) for live in following if live.name not in serving],
        variants=[
            VariantInfo(name=variant.name, weight=variant.weight, catalogue=variant.catalogue) for variant in variants
        ]
        or None,
    )


def _info(served: ServedCatalogue, live: LiveCatalogue | None) -> CatalogueInfo:
    manifest = served.artifact.manifest
    return CatalogueInfo(
        name=served.name,
        version=served.version,
        published=None if live is None else live.published,
        trouble=None if live is None else live.trouble,
        waiting=None if live is None else live.waiting,
        on_trial=live is not None and live.takeover.on_trial == served.version,
        refusals=[] if live is None else _refused(live.refusals),
        model=served.model_id,
        model_fingerprint=served.model.fingerprint(),
        published_model=manifest.model,
        adapters={name: served.model.fingerprint(name) for name in served.model.adapters},
        loaded_at=served.loaded_at,
        items=manifest.counts.items,
        titles=manifest.counts.leaves,
        cold_items=manifest.counts.cold,
        entropy_nats=manifest.entropy_nats,
        alpha=manifest.alpha,
        beams=manifest.beams,
        max_history=manifest.template.max_history,
        scorer=None if manifest.scorer is None else ScorerInfo.of(manifest.scorer),
        attributes=[Attribute.of(name, kind) for name, kind in served.attributes.items()],
    )


def _unserved(live: LiveCatalogue) -> UnservedCatalogue:
    return UnservedCatalogue(
        name=live.name,
        published=live.published,
        trouble=live.trouble,
        waiting=live.waiting,
        refusals=_refused(live.refusals),
    )


def _refused(refusals: Iterable[Refusal]) -> list[RefusedVersion]:
    return [
        RefusedVersion(
            version=refusal.version, reason=refusal.reason, detail=refusal.detail, refused_at=refusal.refused_at
        )
        for refusal in refusals
    ]
