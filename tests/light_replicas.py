"""Replicas that start in half a second: the real supervisor and the real process, around an app of a few lines.

Run as a program: ``light_replicas.py serve ...`` is the supervisor, with the flags of `igd serve`; it starts
``light_replicas.py replica``. The app tells which process answers, after ``seconds``. A replica whose number is in the
file that ``ENDS_AT_ONCE`` names cannot start.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from igd_server.observe.metrics import Metrics
    from igd_server.settings import Settings
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse


@dataclass(slots=True)
class _Deployment:
    """What a process asks of `igd_server.catalogues.deployment.Deployment`."""

    failure: Exception | None = None
    current: object = None
    draining: bool = False
    on_failure: Callable[[], None] = lambda: None
    on_ready: Callable[[], None] = lambda: None

    def start(self) -> None:
        from igd_core.errors import EngineError

        told = os.environ.get("ENDS_AT_ONCE")
        if told and Path(told).read_text():
            self.failure = EngineError(Path(told).read_text())
            self.on_failure()
        else:
            self.current = self
            self.on_ready()


@dataclass(slots=True)
class _Apps:
    """What a process asks of `igd_server.app.Apps`."""

    main: Starlette
    operations: Starlette
    metrics: Metrics
    deployment: _Deployment
    tracing: Any = field(default_factory=lambda: ModuleType("tracing"))


def _create_apps(_: Settings) -> _Apps:
    from igd_server.observe.metrics import Metrics
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    deployment, metrics = _Deployment(), Metrics()

    async def who(request: Request) -> JSONResponse:
        await asyncio.sleep(float(request.query_params.get("seconds", 0)))
        metrics.observe_request("/who", 200, 0.0)
        return JSONResponse({"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]})

    async def ready(_: Request) -> JSONResponse:
        serves = deployment.current is not None and not deployment.draining
        return JSONResponse({"status": "ready" if serves else "not ready"}, status_code=200 if serves else 503)

    async def scrape(request: Request) -> Response:
        body, media_type = metrics.render(request.headers["accept"])
        return Response(body, media_type=media_type)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_soon(deployment.start)
        yield

    probes = [Route("/readyz", ready), Route("/startupz", ready), Route("/metrics", scrape)]
    apps = _Apps(
        main=Starlette(routes=[Route("/who", who)], lifespan=lifespan),
        operations=Starlette(routes=probes),
        metrics=metrics,
        deployment=deployment,
    )
    apps.tracing.close = lambda: None
    return apps


def main() -> int:
    """Serve."""
    if sys.argv[1] == "replica":
        app = sys.modules["igd_server.app"] = ModuleType("igd_server.app")
        app.create_apps = _create_apps  # type: ignore[attr-defined]
        from igd_server.replicas import __main__ as replica

        return replica.main()
    from igd_server.replicas import supervisor

    from igd_core.cli import main as cli

    supervisor.supervise = functools.partial(supervisor.supervise, program=(sys.executable, __file__, "replica"))
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
