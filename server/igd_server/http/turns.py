"""Taking turns: several processes take connections from one listening socket, each next one by who has fewest.

Left to themselves, event loops take all that wait at once: of bursts of 8 connections to two idle processes one process
got all 8, and connections last. So each process writes down how many it has, in memory that all of them map, and leaves
a connection for a moment to those that have fewer. If none of them takes it then (it is busy, or hangs), it takes one,
after the next moment two, then four, and so on: nobody waits long for a process that does nothing.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NOT_TAKING = (1 << 31) - 1
_BYTES = 4
_LEAVE_S = 0.004  # a busy machine gives a process its turn after so long
_MOST_AT_ONCE = 64
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FULL_S = 1.0


class Board:
    """How many connections each process has; a file that all of them map."""

    def __init__(self, path: Path, *, places: int | None = None) -> None:
        """``places``: make the file, for so many processes; none of them takes connections yet."""
        if places is not None:
            path.write_bytes(_NOT_TAKING.to_bytes(_BYTES, "little") * places)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def write(self, number: int, connections: int | None) -> None:
        """``number``, from 1, has so many; None: it takes none."""
        count = _NOT_TAKING if connections is None else connections
        self._map[_BYTES * (number - 1) : _BYTES * number] = count.to_bytes(_BYTES, "little")

    def fewest(self) -> int:
        """The smallest number that one of them has."""
        counts = self._map[:]
        return min(int.from_bytes(counts[at : at + _BYTES], "little") for at in range(0, len(counts), _BYTES))

    def close(self) -> None:
        """Unmap."""
        self._map.close()


class CountedConnections(set[asyncio.Protocol]):
    """uvicorn's set of open connections, with their number on the board while ``taking``."""

    def __init__(self, board: Board, number: int) -> None:
        super().__init__()
        self._board = board
        self._number = number
        self.taking = False

    def add(self, connection: asyncio.Protocol, /) -> None:
        """One more."""
        super().add(connection)
        self.tell()

    def discard(self, connection: object, /) -> None:
        """One less."""
        super().discard(connection)
        self.tell()

    def tell(self) -> None:
        """Write the number down."""
        self._board.write(self._number, len(self) if self.taking else None)


class Turns:
    """Takes connections from a listening socket that other processes have too."""

    def __init__(self, listener: socket.socket, board: Board, connections: CountedConnections) -> None:
        """Takes none yet."""
        self._listener = listener
        self._board = board
        self._connections = connections
        self._protocol: Callable[[], asyncio.Protocol] | None = None
        self._arriving: set[asyncio.Task[object]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._at_once = 1

    def begin(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Take connections from now on; ``protocol`` makes one's protocol."""
        self._protocol = protocol
        self._listener.setblocking(False)
        self._connections.taking = True
        self._connections.tell()
        self._wait()

    def end(self) -> None:
        """Take no more; those that wait are for the others."""
        if self._protocol is not None:
            self._protocol = None
            self._connections.taking = False
            self._connections.tell()
            asyncio.get_running_loop().remove_reader(self._listener)
        if self._later is not None:
            self._later.cancel()
        self._listener.close()

    def _wait(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._on_waiting)

    def _on_waiting(self) -> None:
        """Connections wait: take them while nobody has fewer; leave the rest for a moment."""
        while self._is_ours():
            if not self._take():
                self._at_once = 1
                return
        self._look_again(_LEAVE_S, self._take_what_is_left)

    def _take_what_is_left(self) -> None:
        """The others had a moment for it."""
        self._later = None
        for _ in range(self._at_once):
            if not self._take():
                self._at_once = 1
                break
        else:
            self._at_once = min(2 * self._at_once, _MOST_AT_ONCE)
        if self._later is None and self._protocol is not None:
            self._wait()

    def _is_ours(self) -> bool:
        return len(self._connections) + len(self._arriving) <= self._board.fewest()

    def _take(self) -> bool:
        """Take one; False if none waits, or there is no room for it."""
        protocol = self._protocol
        if protocol is None:
            return False
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # none is left, or its client has gone
            if error.errno in _FULL:
                self._look_again(_FULL_S, self._wait)
            return False
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arriving = asyncio.create_task(self._connect(protocol, connection))
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arriving.discard)
        return True

    async def _connect(self, protocol: Callable[[], asyncio.Protocol], connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)

    def _look_again(self, in_s: float, then: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._later = loop.call_later(in_s, then)
