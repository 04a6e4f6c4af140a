"""Run the apps in a process: sockets, log, signals, draining, and failures at the start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import disable_created_metrics

from igd_server.app import create_apps
from igd_server.catalogues.heap import settle_collector
from igd_server.http.draining import DrainableApp
from igd_server.http.protocol import http_protocol
from igd_server.http.slow_readers import ReaderLimits
from igd_server.http.sockets import BACKLOG, Server, listen, url_of
from igd_server.http.turns import CountedConnections, Turns
from igd_server.observe.logs import log_loop_error, log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp

    from igd_server.app import Apps
    from igd_server.http.turns import Board
    from igd_server.settings import Settings

_QUIET_S = 1.0
_LOOK_S = 0.05

_log = logging.getLogger("igd.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a supervisor hands to one of several processes that serve a port together (`igd_server.replicas`).

    Attributes:
        number: from 1; log lines have it as ``replica``.
        listener: the port's socket, from which all of them take connections.
        board: how many connections each of them has.
        operations: where this one's operations port is: the path of a Unix socket.
        say_ready: tells the supervisor that recommendations are served.
    """

    number: int
    listener: socket.socket
    board: Board
    operations: Path
    say_ready: Callable[[], None]


def serve(settings: Settings, seat: Seat | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; docs/how-to/operate.md has the order of events.

    With a ``seat``, connections are taken from the moment in which recommendations are served: those that come earlier
    wait for another process. SIGHUP then means that the others stay: no more connections are taken, at once.

    Raises:
        InputError: an address cannot be listened on.
        EngineError: the engine failed while serving; raised after draining.
        IGDError: the artifact or the model cannot be loaded.
    """
    log_to_stderr(settings.log_level, replica=None if seat is None else seat.number)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # half of all series would be times at which others began
    with contextlib.ExitStack() as listening:
        if seat is None:
            main = listening.enter_context(listen(settings.host, settings.port, name="port"))
        else:
            main = listening.enter_context(seat.listener)
        operations = None
        if seat is not None:
            operations = listening.enter_context(_listen_at(seat.operations))
        elif settings.operations_port is not None:
            operations = listening.enter_context(
                listen(settings.host, settings.operations_port, name="operations_port")
            )
        apps = create_apps(settings)
        process = _Process(settings, apps, main, operations, seat)
        with asyncio.Runner(loop_factory=process.main.config.get_loop_factory()) as runner:
            runner.run(process.run())
        apps.tracing.close()
    if apps.deployment.failure is not None:
        raise apps.deployment.failure


@dataclass(slots=True)
class _Stop:
    """Why the process stops, and since when; whether new connections are still served for a while."""

    reason: str
    at: float
    patient: bool
    alone: bool = False


class _Process:
    """The servers of one process, from start to end."""

    def __init__(
        self,
        settings: Settings,
        apps: Apps,
        listener: socket.socket,
        operations_listener: socket.socket | None,
        seat: Seat | None,
    ) -> None:
        self._settings = settings
        self._seat = seat
        self._apps = apps
        self._main_app = DrainableApp(apps.main)
        self._listener = listener
        self._operations_listener = operations_listener
        self.main = self._server(self._main_app, lifespan=True)
        self._turns: Turns | None = None
        if seat is not None:
            connections = CountedConnections(seat.board, seat.number)
            self.main.server_state.connections = connections  # type: ignore[assignment]
            self._turns = Turns(listener, seat.board, connections)
        self._stop: _Stop | None = None
        self._stopping = asyncio.Event()

    def _server(self, app: ASGIApp, *, lifespan: bool) -> Server:
        settings = self._settings
        return Server(
            uvicorn.Config(
                app,
                http=http_protocol(
                    self._apps.metrics,
                    head_timeout_s=settings.body_timeout_s,
                    readers=ReaderLimits(timeout_s=settings.write_timeout_s, max_bytes=settings.max_unsent_bytes),
                    max_connections=settings.max_connections if app is self._main_app else None,
                ),
                ws="none",
                lifespan="on" if lifespan else "off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=settings.keep_alive_s,
            )
        )

    async def run(self) -> None:
        """Serve, drain, end."""
        self._apps.deployment.on_failure = self._on_failure
        self._apps.deployment.on_ready = self._on_ready
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if self._seat is not None:
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        urls = {"url": url_of(self._listener)}
        others: list[tuple[Server, asyncio.Task[None]]] = []
        if self._operations_listener is not None and self._apps.operations is not None:
            server = self._server(self._apps.operations, lifespan=False)
            others.append((server, asyncio.create_task(server.serve([self._operations_listener]))))
            if self._seat is None:
                urls["operations_url"] = url_of(self._operations_listener)
        if self._seat is None:
            _log.info("listening", extra={"fields": urls})
        serving = asyncio.create_task(self.main.serve([self._listener] if self._seat is None else []))
        asked = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        await self._drain()
        await serving
        for server, task in others:  # probes and metrics until the end
            server.config.timeout_graceful_shutdown = 1
            server.should_exit = True
            await task
        self._say_stopped()

    def _on_ready(self) -> None:
        settle_collector()
        if self._seat is not None and self._turns is not None and self._stop is None:
            self._turns.begin(self.main.protocol)
            self._seat.say_ready()

    def _on_hangup(self) -> None:
        self._begin_to_stop("SIGHUP", patient=True, alone=True)

    def _on_signal(self, number: signal.Signals) -> None:
        """The first signal asks to drain, a terminal's interrupt for a shorter time; a further one ends the process."""
        if self._stop is None:
            self._begin_to_stop(number.name, patient=number == signal.SIGTERM)
            return
        self._stop.patient = False
        self.main.config.timeout_graceful_shutdown = 0
        self.main.force_exit = True

    def _on_failure(self) -> None:
        """After a failure, a server that has served answers by popularity until load balancers have noticed."""
        self._begin_to_stop("failure", patient=self._apps.deployment.current is not None)

    def _begin_to_stop(self, reason: str, *, patient: bool, alone: bool = False) -> None:
        if self._stop is None:
            self._stop = _Stop(reason, time.monotonic(), patient, alone)
            self._stopping.set()

    async def _drain(self) -> None:
        """Become not ready; serve until no requests come, at most half of the grace period; the rest is for answers.

        Load balancers notice only after a while that the server is not ready, and send requests until then.
        """
        stop, grace_s = self._stop, self._settings.grace_s
        if stop is None:  # the server could not start
            return
        self._apps.deployment.draining = self._main_app.draining = True
        fields = {"reason": stop.reason, "requests_running": len(self.main.server_state.tasks), "grace_s": grace_s}
        _log.info("draining", extra={"fields": fields})
        if stop.alone and self._turns is not None:
            self._turns.end()
        while (  # noqa: ASYNC110 - that nothing happens is no event
            stop.patient and self._main_app.quiet_s < _QUIET_S and time.monotonic() < stop.at + grace_s / 2
        ):
            await asyncio.sleep(_LOOK_S)
        left_s = stop.at + grace_s - time.monotonic()
        if not self.main.force_exit:
            self.main.config.timeout_graceful_shutdown = max(1, math.floor(left_s))
        if self._turns is not None:
            self._turns.end()
        self.main.should_exit = True

    def _say_stopped(self) -> None:
        if self._stop is not None:
            seconds = round(time.monotonic() - self._stop.at, 3)
            _log.info("stopped", extra={"fields": {"reason": self._stop.reason, "seconds": seconds}})


def _listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener
