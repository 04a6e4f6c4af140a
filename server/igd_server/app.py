"""Builds everything that one process serves from its settings: the one module that knows all parts."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from igd_core.artifact import load_artifact
from igd_core.cancellation import cancel_and_wait
from igd_core.errors import IGDError
from igd_core.release import RELEASE
from igd_core.store.base import HistoryLimits, StoreOptions
from igd_core.store.open import open_store
from igd_server.api.problems import finding_of, finding_of_fields, kind_of_status
from igd_server.catalogues.deployment import Deployment
from igd_server.catalogues.gauges import DeploymentGauges
from igd_server.catalogues.opening import OpenedModel, open_model
from igd_server.http.access import Access, AccessMiddleware
from igd_server.http.bodies import BodyMiddleware
from igd_server.http.context import ContextMiddleware, refusal
from igd_server.http.heads import HeadMiddleware
from igd_server.http.hosts import AllowedHosts, HostMiddleware
from igd_server.http.limits import open_limiter
from igd_server.http.routes.admin import admin_router
from igd_server.http.routes.catalogues import catalogues_router
from igd_server.http.routes.events import events_router
from igd_server.http.routes.items import items_router
from igd_server.http.routes.operations import operations_router
from igd_server.http.routes.overview import overview_router
from igd_server.http.routes.recommendations import recommendations_router
from igd_server.http.routes.users import users_router
from igd_server.http.routes.web import WEB_DIRECTORY, add_docs, add_operators_page, add_page
from igd_server.instrumentation import observed_store, traced_engine
from igd_server.observe.logs import cause_of
from igd_server.observe.metrics import Metrics
from igd_server.observe.recent import RecentEvents
from igd_server.observe.tracing import open_tracing
from igd_server.recommend.admission import Admission
from igd_server.services import RequestServices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.search.engine import Engine
    from igd_core.store.base import Store
    from igd_core.store.published_models import ModelManifest
    from igd_server.observe.tracing import Tracing
    from igd_server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the parts come from; tests pass others.

    Attributes:
        open_model: loads the checkpoint; may block.
        read_artifact: reads and verifies an artifact; may block.
        web_directory: the page's files.
    """

    open_model: Callable[[Settings], OpenedModel] = open_model
    read_artifact: Callable[[Path], Artifact] = load_artifact
    web_directory: Path = field(default=WEB_DIRECTORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Apps:
    """What `igd_server.process` runs.

    Attributes:
        main: the app on ``port``; its lifespan starts and closes the deployment.
        operations: the app on ``operations_port``; None if that is not set.
        deployment: what is served.
        metrics: of both apps.
        tracing: of both apps.
        store: used by the deployment and the requests.
    """

    main: FastAPI
    operations: FastAPI | None
    deployment: Deployment
    metrics: Metrics
    tracing: Tracing
    store: Store


def create_apps(settings: Settings, sources: Sources | None = None) -> Apps:
    """Build the parts and join them; nothing is loaded or connected yet.

    Raises:
        InputError: a setting that cannot be used, such as a missing keys file.
    """
    sources = sources or Sources()
    tracing = open_tracing(settings.otlp_endpoint)
    metrics = Metrics()
    store = observed_store(
        open_store(settings.store, options=_store_options(settings)), metrics=metrics, tracing=tracing
    )

    def open_traced_model(_: Settings) -> OpenedModel:
        model = sources.open_model(settings)
        return _traced(model, tracing) if settings.otlp_endpoint else model

    deployment = Deployment(
        settings,
        store=store,
        metrics=metrics,
        open_model=open_traced_model,
        read_artifact=sources.read_artifact,
    )
    metrics.watch_catalogues(deployment.catalogue_names, DeploymentGauges(deployment, metrics.begin_model))
    admission = Admission(settings.max_running, settings.max_waiting, metrics=metrics, tracing=tracing)
    metrics.watch_admission(admission)
    if settings.engine == "vllm":
        metrics.watch_vllm()
    services = RequestServices.join(settings, catalogues=deployment, store=store, slots=admission, metrics=metrics)
    access = Access.open() if settings.keys_file is None else Access.from_file(settings.keys_file, metrics=metrics)
    limiter = open_limiter(settings, metrics)
    hosts = AllowedHosts.of(settings)
    recent = RecentEvents()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with recent.listening():
            starting = asyncio.create_task(deployment.start())
            yield
            await cancel_and_wait((starting,))
            await services.close()
            await deployment.close()
            if limiter is not None:
                await limiter.close()
            await store.close()

    apart = settings.operations_port is not None
    main = _new_app(lifespan=lifespan)
    main.include_router(recommendations_router(settings, services.recommendations))
    main.include_router(
        events_router(
            deployment,
            histories=services.histories,
            kinds=services.kinds,
            attribution=services.attribution,
            metrics=metrics,
        )
    )
    main.include_router(users_router(services.people))
    main.include_router(items_router(deployment, timeout_s=settings.default_timeout_ms / 1000))
    main.include_router(catalogues_router(deployment, settings.variants))
    main.include_router(operations_router(deployment, None if apart else metrics))
    add_page(main, sources.web_directory)
    operations = _new_app() if apart else None
    if operations is not None:
        operations.include_router(operations_router(deployment, metrics))
        add_operators_page(operations, sources.web_directory)
    for router in (admin_router(deployment), overview_router(deployment, settings.variants, metrics, recent)):
        (operations or main).include_router(router)
    for app in filter(None, (main, operations)):
        # The middleware added last is the outermost.
        app.add_middleware(HeadMiddleware)
        app.add_middleware(BodyMiddleware, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
        app.add_middleware(
            AccessMiddleware, access=access, limiter=limiter, metrics=metrics, metrics_are_open=app is operations
        )
        if hosts is not None:
            app.add_middleware(HostMiddleware, allowed=hosts, metrics=metrics)
        app.add_middleware(ContextMiddleware, metrics=metrics, tracing=tracing)
    return Apps(main=main, operations=operations, deployment=deployment, metrics=metrics, tracing=tracing, store=store)


def _traced(model: OpenedModel, tracing: Tracing) -> OpenedModel:
    """The model, and whatever is opened beside it, with spans."""

    def open_published(folder: Path, manifest: ModelManifest, beside: Engine) -> OpenedModel:
        return _traced(model.open_published(folder, manifest, beside), tracing)

    return replace(model, engine=traced_engine(model.engine, tracing), open_published=open_published)


def _store_options(settings: Settings) -> StoreOptions:
    return StoreOptions(
        prefix=settings.store_prefix,
        timeout_s=settings.store_timeout_ms / 1000,
        history=HistoryLimits(max_events=settings.history_max_events, ttl_s=settings.history_ttl_days * 86_400),
    )


def _new_app(**options: object) -> FastAPI:
    app = FastAPI(
        title="IGD recommendations",
        summary="Catalogue items ranked by a language model, rebalanced by the information gain of each token.",
        version=RELEASE,
        docs_url=None,  # `add_docs` serves it from files of ours
        redoc_url=None,
        redirect_slashes=False,
        **options,  # type: ignore[arg-type]
    )
    add_docs(app)
    app.add_exception_handler(IGDError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    """Answer an error of ours, or pydantic's errors on fields."""
    if isinstance(error, IGDError):
        finding = finding_of(error)
    elif isinstance(error, RequestValidationError):
        finding = finding_of_fields(error.errors())
    else:
        raise error
    return refusal(
        request.scope,
        finding.kind,
        finding.detail,
        field=finding.field,
        headers=finding.headers,
        cause=cause_of(error) if isinstance(error, IGDError) else None,
    )


async def _answer_http(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: unknown paths, wrong methods, bodies that are not text."""
    if not isinstance(error, HTTPException):
        raise error
    detail = f"{request.method} {request.url.path}"
    headers = dict(error.headers or {})
    methods = headers.get("Allow", "").split(", ")
    if "GET" in methods and "HEAD" not in methods:  # `igd_server.http.heads` answers it
        headers["Allow"] = ", ".join([*methods, "HEAD"])
    cause = f"{error.status_code}: {type(error).__name__}"  # for a 5xx's log line; the path may hold a user's id
    return refusal(request.scope, kind_of_status(error.status_code), detail, headers=headers, cause=cause)
