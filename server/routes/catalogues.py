"""``GET /v1/catalogues``."""

from fastapi import APIRouter, Request

from server.context import context_of
from server.deployment import Deployment, ServedCatalogue
from server.problems import INTERNAL_ERROR
from server.routes.documented import problems
from server.schemas import CatalogueInfo, CatalogueList


def catalogues_router(deployment: Deployment) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["catalogues"])

    @router.get("/v1/catalogues", summary="What is being served", responses=problems(INTERNAL_ERROR))
    async def list_catalogues(request: Request) -> CatalogueList:
        served = deployment.current
        return CatalogueList(
            request_id=context_of(request.scope).request_id, catalogues=[] if served is None else [_info(served)]
        )

    return router


def _info(served: ServedCatalogue) -> CatalogueInfo:
    manifest = served.artifact.manifest
    return CatalogueInfo(
        name=manifest.name,
        version=served.artifact.version,
        model=served.model_id,
        loaded_at=served.loaded_at,
        items=manifest.counts.items,
        titles=manifest.counts.leaves,
        cold_items=manifest.counts.cold,
        entropy_nats=manifest.entropy_nats,
        alpha=manifest.alpha,
        max_history=manifest.template.max_history,
        attributes=sorted(served.catalogue.metadata),
    )
