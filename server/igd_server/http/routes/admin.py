"""``POST /v1/admin/catalogues/{name}:rollback``, ``:reload`` and ``:allow``: commands for live catalogues."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, status

from igd_server.api.problems import (
    INTERNAL_ERROR,
    STORE_UNAVAILABLE,
    ProblemKind,
)
from igd_server.api.schemas_catalogues import (
    AllowRequest,
    PassedBy,
    PointerMoved,
    ReloadBegun,
    ReloadRequest,
    RollbackRequest,
    VersionAllowed,
)
from igd_server.catalogues.deployment import Deployment
from igd_server.http.context import context_of, refusal
from igd_server.http.routes.documented import ACCESS, BODY, KEYED, problems
from igd_server.http.routes.json_routes import JsonRoute

CATALOGUE_NOT_FOUND = ProblemKind(name="catalogue-not-found", status=404, title="No such catalogue in the store")

Name = Annotated[str, Path(max_length=64, examples=["films"])]


def admin_router(deployment: Deployment) -> APIRouter:
    """All three routes. Their bodies are JSON, if only ``{}``: no cross-site form can post to them."""
    router = APIRouter(prefix="/v1/admin", tags=["administration"], route_class=JsonRoute, dependencies=KEYED)

    @router.post(
        "/catalogues/{name}:rollback",
        summary="Move a catalogue's pointer back",
        response_model=PointerMoved,
        response_model_exclude_none=True,
        responses=problems(*BODY, *ACCESS, CATALOGUE_NOT_FOUND, INTERNAL_ERROR, STORE_UNAVAILABLE),
    )
    async def roll_back(name: Name, body: RollbackRequest, request: Request) -> PointerMoved | Response:
        live = deployment.live(name)
        if live is None:
            return _not_found(request, name, deployment)
        move = await live.roll_back(body.version)
        return PointerMoved(
            request_id=context_of(request.scope).request_id,
            catalogue=name,
            version=move.version,
            before=move.before,
            passed_by=[PassedBy(version=each, detail=str(trial)) for each, trial in move.passed_by.items()] or None,
            not_taken=str(move.trial) if move.trial.bars else None,
        )

    @router.post(
        "/catalogues/{name}:reload",
        summary="Look at a catalogue's pointer now, and try again what was refused",
        status_code=status.HTTP_202_ACCEPTED,
        response_model=ReloadBegun,
        responses=problems(*BODY, *ACCESS, CATALOGUE_NOT_FOUND, INTERNAL_ERROR),
    )
    async def reload(name: Name, _: ReloadRequest, request: Request) -> ReloadBegun | Response:
        live = deployment.live(name)
        if live is None:
            return _not_found(request, name, deployment)
        live.reload()
        return ReloadBegun(request_id=context_of(request.scope).request_id, catalogue=name)

    @router.post(
        "/catalogues/{name}:allow",
        summary="Let all servers try a version again that one refused or did not come back from",
        response_model=VersionAllowed,
        responses=problems(*BODY, *ACCESS, CATALOGUE_NOT_FOUND, INTERNAL_ERROR, STORE_UNAVAILABLE),
    )
    async def allow(name: Name, body: AllowRequest, request: Request) -> VersionAllowed | Response:
        live = deployment.live(name)
        if live is None:
            return _not_found(request, name, deployment)
        await live.allow(body.version)
        return VersionAllowed(request_id=context_of(request.scope).request_id, catalogue=name, version=body.version)

    return router


def _not_found(request: Request, name: str, deployment: Deployment) -> Response:
    following = [known for known in deployment.catalogue_names if deployment.live(known) is not None]
    known = ", ".join(following) or "none"
    return refusal(
        request.scope, CATALOGUE_NOT_FOUND, f"no catalogue {name!r} follows the store; those that do: {known}"
    )
