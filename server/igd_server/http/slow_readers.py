"""Clients that do not read their answers: how long they may take, and how many bytes may wait for them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from igd_server.observe.metrics import CutOff

_CONNECTIONS_SHARE = 4  # one connection may hold a quarter of the bytes
_LOOKS = 8  # within the time that a client may take

_log = logging.getLogger("igd.server")


class ReaderMetrics(Protocol):
    """What is counted."""

    def observe_slow_reader(self, reason: CutOff) -> None:
        """A connection was cut off."""
        ...


class Writer(Protocol):
    """A connection, as far as it is watched.

    Attributes:
        transport: what its answers are written to.
        answers: how many have been.
        paused: whether so much waits that no more is written.
    """

    transport: asyncio.Transport
    answers: int

    @property
    def paused(self) -> bool:
        """Whether so much waits that no more is written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderLimits:
    """What clients may do.

    Attributes:
        timeout_s: seconds that one may take to read what it was sent.
        max_bytes: of answers, that may wait to be read by all clients together; by one, a quarter of that.
    """

    timeout_s: float
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stuck:
    """Since when a connection has taken nothing, with how many answers."""

    since: float
    answers: int


class SlowReaders:
    """Looks at all connections a few times within the time-out, and at once when one has much to read.

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
        """Bytes that wait for clients who had not read all of their answers when last looked at."""
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
        """A client has much to read: that it has too much, or all have, is found out now."""
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
            # What was written in this very moment waits too. Only what still does at the next look is unread.
            if stuck is None or (stuck.answers != writer.answers and not writer.paused):
                stuck = _Stuck(since=now, answers=writer.answers)
            self._stuck[writer] = stuck
            if now - stuck.since >= self._limits.timeout_s:
                self._cut_off(writer, "time")
        self._bound(self._stuck)
        if self._connections:
            self._timer = loop.call_later(self._limits.timeout_s / _LOOKS, self._look, loop)

    def _bound(self, chosen: Iterable[Writer]) -> None:
        """Cut off those for whom most waits, until what is left is within the bound."""
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
