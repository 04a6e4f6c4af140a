"""The app: routes, middleware, error handlers and lifespan, joined from the parts handed in."""

from __future__ import annotations

import asyncio
import contextlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from igd_core.errors import IGDError
from server.bodies import BodyMiddleware
from server.context import ContextMiddleware, refusal
from server.metrics import Metrics
from server.problems import finding_of, finding_of_fields, kind_of_status
from server.recommending import RecommendationService
from server.routes.catalogues import catalogues_router
from server.routes.items import items_router
from server.routes.operations import operations_router
from server.routes.recommendations import recommendations_router
from server.routes.web import WEB_DIRECTORY, add_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.deployment import Deployment
    from server.settings import Settings


def create_app(settings: Settings, *, deployment: Deployment, web_directory: Path = WEB_DIRECTORY) -> FastAPI:
    """The server's ASGI app. It answers as soon as it runs, and is ready once ``deployment`` is."""
    metrics = Metrics(deployment)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(deployment.start())
        yield
        starting.cancel()
        await asyncio.wait((starting,))
        await deployment.close()

    app = FastAPI(
        title="IGD recommendations",
        summary="Catalogue items ranked by a language model, rebalanced by the information gain of each token.",
        version=version("igd-recommender"),
        lifespan=lifespan,
        docs_url="/docs",
        swagger_ui_oauth2_redirect_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(recommendations_router(settings, deployment, RecommendationService(settings, metrics)))
    app.include_router(items_router(deployment))
    app.include_router(catalogues_router(deployment))
    app.include_router(operations_router(deployment, metrics))
    add_page(app, web_directory)
    app.add_exception_handler(IGDError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    # The last one added is the outermost.
    app.add_middleware(BodyMiddleware, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    app.add_middleware(ContextMiddleware, metrics=metrics)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    """Every error of ours, and every field that pydantic found wrong."""
    if isinstance(error, IGDError):
        finding = finding_of(error)
    elif isinstance(error, RequestValidationError):
        finding = finding_of_fields(error.errors())
    else:
        raise error
    return refusal(request.scope, finding.kind, finding.detail, field=finding.field)


async def _answer_http(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths, wrong methods, bodies that are no JSON text at all."""
    if not isinstance(error, HTTPException):
        raise error
    detail = f"{request.method} {request.url.path}"
    return refusal(request.scope, kind_of_status(error.status_code), detail, headers=error.headers)
