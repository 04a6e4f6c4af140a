"""Clients that do not read their answers: limits on their time, and on the bytes that may wait for them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from igd_server.observe.metrics import CutOff

_CONNECTIONS_SHARE = 4  # one connection may have a quarter of the bytes
_LOOKS = 8  # checks within the time that a client may take

_log = logging.getLogger("igd.server")


class ReaderMetrics(Protocol):
    """Counters for slow readers."""

    def observe_slow_reader(self, reason: CutOff) -> None:
        """Count a closed connection."""
        ...


class Writer(Protocol):
    """A connection, as far as it is watched.

    Attributes:
        transport: what its answers are written to.
        answers: how many were written.
        paused: whether so much waits that writing has stopped.
    """

    transport: asyncio.Transport
    answers: int

    @property
    def paused(self) -> bool:
        """Whether so much waits that writing has stopped."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderLimits:
    """The limits for clients.

    Attributes:
        timeout_s: seconds that a client may take to read what it was sent.
        max_bytes: of answers that wait for all clients together; for one, a quarter of that.
    """

    timeout_s: float
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stuck:
    """A connection that has taken nothing: since when, and with how many answers."""

    since: float
    answers: int


class SlowReaders:
    """Checks all connections a few times within the time-out, and at once when one has much to read.

    Nothing is done for an answer that is read: what waits is the transport's own count of bytes that the kernel has not
    taken. Cutting off means to close without sending the rest; the kernel's own buffers go with it.
    """

    def __init__(self, limits: ReaderLimits, metrics: ReaderMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._connections: set[Writer] = set()
        self._stuck: dict[Writer, _Stuck] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def unsent_bytes(self) -> int:
        """Bytes waiting for clients that had unread answers at the last check."""
        return sum(map(_unsent, self._stuck))

    def watch(self, writer: Writer, loop: asyncio.AbstractEventLoop) -> None:
        """A connection begins."""
        self._connections.add(writer)
        if self._timer is None:
            self._timer = loop.call_later(self._limits.timeout_s / _LOOKS, self._look, loop)

    def forget(self, writer: Writer) -> None:
        """A connection has ended."""
        self._connections.discard(writer)
        self._stuck.pop(writer, None)

    def paused(self, writer: Writer) -> None:
        """A client has much to read: check at once whether it, or all together, have too much."""
        if _unsent(writer) > self._limits.max_bytes // _CONNECTIONS_SHARE:
            self._cut_off(writer, "bytes")
        self._bound(each for each in self._connections if each.paused)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now, before, self._stuck = loop.time(), self._stuck, {}
        for writer in list(self._connections):
            if not _unsent(writer):
                continue
            stuck = before.get(writer)
            # What was just written waits too. Only what still waits at the next check is unread.
            if stuck is None or (stuck.answers != writer.answers and not writer.paused):
                stuck = _Stuck(since=now, answers=writer.answers)
            self._stuck[writer] = stuck
            if now - stuck.since >= self._limits.timeout_s:
                self._cut_off(writer, "time")
        self._bound(self._stuck)
        if self._connections:
            self._timer = loop.call_later(self._limits.timeout_s / _LOOKS, self._look, loop)

    def _bound(self, chosen: Iterable[Writer]) -> None:
        """Close the connections with the most waiting bytes, until the rest is within the limit."""
        writers = list(chosen)
        waiting = sum(map(_unsent, writers))
        for writer in sorted(writers, key=_unsent, reverse=True):
            if waiting <= self._limits.max_bytes:
                return
            waiting -= _unsent(writer)
            self._cut_off(writer, "bytes")

    def _cut_off(self, writer: Writer, reason: CutOff) -> None:
        unsent = _unsent(writer)
        self._stuck.pop(writer, None)
        writer.transport.abort()
        self._metrics.observe_slow_reader(reason)
        _log.warning("slow_reader_cut_off", extra={"fields": {"reason": reason, "unsent_bytes": unsent}})


def _unsent(writer: Writer) -> int:
    return writer.transport.get_write_buffer_size()
