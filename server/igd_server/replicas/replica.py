"""One replica as its supervisor sees it: its process, whether it serves, and what it says on its operations port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from igd_core.cancellation import cancel_and_wait
from igd_server.replicas.orders import READY, Orders
from igd_server.replicas.shares import environment_of, share_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from igd_server.http.turns import Board
    from igd_server.replicas.changes import Changes
    from igd_server.settings import Settings

PROGRAM = (sys.executable, "-P", "-m", "igd_server.replicas")
"""``-P``: modules of the folder that the server is started in are not ours."""

_ASK_S = 1.5
_CANNOT_START = 71
_AFTER_GRACE_S = 10.0  # background writes and spans come after grace_s
_LOOKS = 4

_log = logging.getLogger("igd.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a replica's process ended.

    Attributes:
        code: its exit code; -9 if signal 9 ended it.
        served_s: for how long it had served; None if it never did.
        told: whether it was told to (`Replica.leave`).
        hung: whether it was killed because it gave no sign of life.
    """

    code: int
    served_s: float | None = None
    told: bool = False
    hung: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What every replica is started with.

    Attributes:
        settings: of the whole server.
        listener: the port's socket.
        folder: for Unix sockets; nobody else may enter it.
        program: the command; tests have others.
    """

    settings: Settings
    listener: socket.socket
    folder: Path
    program: Sequence[str] = PROGRAM

    @property
    def board_path(self) -> Path:
        """Of the file for `igd_server.http.turns.Board`."""
        return self.folder / "connections"


@dataclass(slots=True, eq=False)
class Replica:
    """A replica's place: one process after another.

    Attributes:
        number: from 1.
        serves: whether its process takes connections.
        lives: how many processes there have been.
    """

    number: int
    start: Start
    changes: Changes
    board: Board
    serves: bool = False
    lives: int = 0
    _leaving: bool = False
    _hung: bool = False
    _early: list[signal.Signals] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None
    _client: httpx.AsyncClient | None = field(default=None, repr=False)

    async def live(self) -> Ended:
        """Start a process, and wait until it ends."""
        self.lives += 1
        self.changes.tell()  # a restart that waits for the life before this one has failed
        self._early.clear()
        path = self.start.folder / f"{self.number}.{self.lives}"
        mine, theirs = socket.socketpair()
        settings = self.start.settings
        listener = self.start.listener.fileno()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.start.program,
                stdin=theirs.fileno(),
                pass_fds=(listener,),
                env=environment_of(settings, self.number, os.environ),
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, which tells the others
            )
        except OSError as error:
            mine.close()
            fields = {"replica": self.number, "detail": error.strerror or str(error)}
            _log.error("replica_not_started", extra={"fields": fields})
            return Ended(code=_CANNOT_START)
        finally:
            theirs.close()
        for number in self._early:
            self.stop(number)
        reader, writer = await asyncio.open_connection(sock=mine)
        orders = Orders(
            settings=share_of(settings, self.number),
            number=self.number,
            listener=listener,
            operations=str(path),
            board=str(self.start.board_path),
        )
        writer.write(orders.line())
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=_ASK_S)
        return await self._watch(self._process, reader, writer, path)

    async def _watch(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        path: Path,
    ) -> Ended:
        """Note when it serves, and how it ends."""
        said = b""
        since: float | None = None
        listening: asyncio.Task[None] | None = None
        try:
            # Not an end of file but an error, where the process has ended with its orders unread.
            with contextlib.suppress(OSError):
                said = await reader.readline()
            if said == READY:
                since = time.monotonic()
                self.serves = not self._leaving
                self.changes.tell()
                listening = asyncio.create_task(self._kill_if_silent(process))
            code = await process.wait()
        finally:
            told, self._leaving, self.serves = self._leaving, False, False
            hung, self._hung = self._hung, False
            await cancel_and_wait(() if listening is None else (listening,))
            self.board.write(self.number, None)
            writer.close()
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - a name in a folder of ours
            client, self._client, self._process = self._client, None, None
            if client is not None:
                await client.aclose()
            self.changes.tell()
        served_s = None if since is None else time.monotonic() - since
        return Ended(code=code, served_s=served_s, told=told and not hung, hung=hung)

    async def _kill_if_silent(self, process: asyncio.subprocess.Process) -> None:
        """Kill a process whose event loop has stood still: what it was asked would never be answered.

        Looks are counted, not seconds: while the whole machine stands still, nobody looks.
        """
        silence_s = self.start.settings.replica_silence_s
        missed = 0
        while silence_s:
            await asyncio.sleep(silence_s / _LOOKS)
            missed = 0 if await self.ask("/healthz") is not None else missed + 1
            if missed >= _LOOKS:
                _log.error("replica_hangs", extra={"fields": {"replica": self.number, "silence_s": silence_s}})
                self._hung = True
                _kill(process)
                return

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def leave(self) -> None:
        """Have its process take no more connections, answer what it has begun, and end; `live` then starts another."""
        self._leaving, self.serves = True, False
        self.changes.tell()
        self.stop(signal.SIGHUP)

    def stop(self, number: signal.Signals) -> None:
        """Send its process a signal that ends it, and kill it if it has not ended some time after its grace period."""
        process = self._process
        if process is None:
            self._early.append(number)  # for the process that may be about to exist
            return
        if process.returncode is not None:
            return
        process.send_signal(number)
        at_most_s = self.start.settings.grace_s + _AFTER_GRACE_S
        asyncio.get_running_loop().call_later(at_most_s, _kill, process)

    async def ask(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, content: bytes = b""
    ) -> httpx.Response | None:
        """Its operations port's answer; None if there is none in time."""
        client = self._client
        if client is None:
            return None
        try:
            return await client.request(method, path, headers=headers, content=content)
        except (httpx.HTTPError, RuntimeError):  # the client is closed when the process ends
            return None


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
