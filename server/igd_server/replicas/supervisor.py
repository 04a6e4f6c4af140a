"""Start the replicas, start again those that end, stop all together; docs/how-to/operate.md has the order of events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import disable_created_metrics

from igd_core.errors import InputError
from igd_server.http.protocol import http_protocol
from igd_server.http.slow_readers import ReaderLimits
from igd_server.http.sockets import BACKLOG, Server, listen, url_of
from igd_server.http.turns import Board
from igd_server.observe.logs import log_loop_error, log_to_stderr
from igd_server.observe.metrics import Metrics
from igd_server.replicas.changes import Changes
from igd_server.replicas.operations import OperationsApp, ReplicaMetrics, StandInApp, own_metrics, wrapped
from igd_server.replicas.replica import PROGRAM, Ended, Replica, Start

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp

    from igd_server.settings import Settings

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SOUND_S = 60.0  # a replica that served for so long is started again without a growing pause
_LONGEST_PATH = 80  # of a folder for Unix sockets, whose paths the kernel bounds

_log = logging.getLogger("igd.server")


def supervise(settings: Settings, *, program: Sequence[str] = PROGRAM) -> int:
    """Serve with ``settings.replicas`` processes until SIGTERM or SIGINT; returns the exit code.

    ``program`` starts a replica.

    Raises:
        InputError: an address cannot be listened on.
    """
    log_to_stderr(settings.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    with contextlib.ExitStack() as held:
        listener = held.enter_context(listen(settings.host, settings.port, name="port"))
        operations = held.enter_context(listen(settings.host, settings.operations_port or 0, name="operations_port"))
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="igd-")))  # 0700
        if len(str(folder)) > _LONGEST_PATH:
            raise InputError(f"TMPDIR: {folder} is too long a path for Unix sockets")
        start = Start(settings=settings, listener=listener, folder=folder, program=program)
        return asyncio.run(Supervisor(start).run(operations))


class Supervisor:
    """The replicas of one server, from start to end."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._settings = start.settings
        self._changes = Changes()
        numbers = range(1, start.settings.replicas + 1)
        board = Board(start.board_path, places=start.settings.replicas)
        self.replicas = [Replica(number, start, self._changes, board) for number in numbers]
        self.draining = False
        self._stopped_by: signal.Signals | None = None
        self._stop_at = 0.0
        self._stopping = asyncio.Event()
        self._code = 0
        self._rolling: asyncio.Task[None] | None = None
        self._metrics = Metrics()
        self._replica_metrics = ReplicaMetrics(numbers)
        self._operations = OperationsApp(self, own=lambda: own_metrics(self._metrics), replicas=self._replica_metrics)
        self._protocol = http_protocol(
            self._metrics,
            head_timeout_s=self._settings.body_timeout_s,
            readers=ReaderLimits(timeout_s=self._settings.write_timeout_s, max_bytes=self._settings.max_unsent_bytes),
        )

    async def run(self, operations: socket.socket) -> int:
        """Start, watch, stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        server = self._server(self._operations)
        probes = asyncio.create_task(server.serve([operations]))
        urls = {"url": url_of(self._start.listener), "operations_url": url_of(operations)}
        _log.info("listening", extra={"fields": {**urls, "replicas": len(self.replicas)}})
        standing_in = asyncio.create_task(self._stand_in())
        keeping = [asyncio.create_task(self._keep(self.replicas[0]))]
        # The first alone: what keeps all of them from starting is said once, and a new version has one to try it.
        await self._until(lambda: self.replicas[0].serves)
        keeping += [asyncio.create_task(self._keep(replica)) for replica in self.replicas[1:]]
        await self._stopping.wait()
        await self._drain([standing_in, *keeping])
        server.config.timeout_graceful_shutdown = 1
        server.should_exit = True
        await probes
        if self._stopped_by is not None:
            seconds = round(time.monotonic() - self._stop_at, 3)
            _log.info("stopped", extra={"fields": {"reason": self._stopped_by.name, "seconds": seconds}})
        return self._code

    def _server(self, app: ASGIApp) -> Server:
        config = uvicorn.Config(
            wrapped(app, self._settings, self._metrics),
            http=self._protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=self._settings.keep_alive_s,
        )
        return Server(config)

    # --- what is running ----------------------------------------------------------------------------------------------

    async def _keep(self, replica: Replica) -> None:
        """Run a replica, and run it again whenever it ends."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            ended = await self._life(replica)
            if self._stopping.is_set():
                return
            if ended.served_s is None and ended.code and not ended.told and not self._anyone_serves():
                self._give_up(replica, ended)
                return
            self._replica_metrics.observe_restart(replica.number, ended)
            if ended.told:
                continue
            pause_s = _FIRST_PAUSE_S if (ended.served_s or 0.0) >= _SOUND_S else pause_s
            fields = {"replica": replica.number, "exit_code": ended.code, "restart_in_s": pause_s}
            _log.error("replica_ended", extra={"fields": fields})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def _life(self, replica: Replica) -> Ended:
        """How a process of a replica ended; an error of ours is an end too: else nobody would start it again."""
        try:
            return await replica.live()
        except Exception as error:  # noqa: BLE001 - the other replicas are no worse for it
            _report(error, f"replica {replica.number} could not be watched")
            return Ended(code=os.EX_SOFTWARE)

    def _give_up(self, replica: Replica, ended: Ended) -> None:
        """Nobody serves, and who was to serve cannot start: end as that one did, and say no more than it has."""
        self._code = ended.code if ended.code > 0 else 128 - ended.code
        if ended.code < 0:
            fields = {"replica": replica.number, "exit_code": ended.code}
            _log.error("replica_ended", extra={"fields": fields})
        self._begin_to_stop()

    async def _stand_in(self) -> None:
        """Answer on the port while no replica serves."""
        while not self._stopping.is_set():
            server = self._server(StandInApp(self._operations))
            serving = asyncio.create_task(server.serve([self._start.listener.dup()]))
            await self._until(self._anyone_serves)
            server.config.timeout_graceful_shutdown = 1
            server.should_exit = True
            await serving
            await self._until(lambda: not self._anyone_serves())

    async def _roll(self) -> None:
        """Restart one replica after another, each while another serves; one that does not come back ends it."""
        _log.info("restarting", extra={"fields": {"replicas": len(self.replicas)}})
        for replica in self.replicas:
            if not await self._renew(replica):
                _log.error("restart_failed", extra={"fields": {"replica": replica.number}})
                return
        _log.info("restarted", extra={"fields": {"replicas": len(self.replicas)}})

    async def _renew(self, replica: Replica) -> bool:
        """Restart a replica once another serves; returns whether it serves again."""
        await self._until(lambda: any(each.serves for each in self.replicas if each is not replica))
        if replica.runs and not self._stopping.is_set():  # else it is about to be started
            next_life = replica.lives + 1
            replica.leave()
            await self._until(lambda: replica.lives > next_life or (replica.lives == next_life and replica.serves))
            return replica.lives == next_life or self._stopping.is_set()
        return True

    def _anyone_serves(self) -> bool:
        return any(replica.serves for replica in self.replicas)

    async def _until(self, true: Callable[[], bool]) -> None:
        """Return once ``true()`` is, or the server is stopping."""
        await self._changes.until(lambda: self._stopping.is_set() or true())

    # --- the end ------------------------------------------------------------------------------------------------------

    def _on_hangup(self) -> None:
        if self._rolling is None or self._rolling.done():
            self._rolling = asyncio.create_task(self._roll())

    def _on_signal(self, number: signal.Signals) -> None:
        """The first signal asks all to drain; a further one ends them at once, as each does it."""
        if self._stopping.is_set():
            self._tell(number)
            return
        self._stopped_by = number
        self._begin_to_stop()

    def _begin_to_stop(self) -> None:
        self._stop_at = time.monotonic()
        self.draining = True
        self._stopping.set()
        self._changes.tell()

    async def _drain(self, others: Sequence[asyncio.Task[None]]) -> None:
        """Stop all replicas; ``others`` end with them. When the last has closed the port, nobody has it open."""
        self._start.listener.close()
        self._tell(self._stopped_by or signal.SIGINT)
        # One that fails does not end the wait for the others, which may have requests to answer.
        for failed in await asyncio.gather(*others, return_exceptions=True):
            if failed is not None:
                _report(failed, "failed before the server had stopped")
        if self._rolling is not None:
            await self._rolling

    def _tell(self, number: signal.Signals) -> None:
        for replica in self.replicas:
            replica.stop(number)


def _report(error: BaseException, detail: str) -> None:
    """Log an error that nobody waits for."""
    asyncio.get_running_loop().call_exception_handler({"message": detail, "exception": error})
