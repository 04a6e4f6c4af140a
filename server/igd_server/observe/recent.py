"""The last events of this process's log, for operators who look at a page and not at a log."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KEPT = 30
_MOST_CHARS = 300
_OF_REQUESTS = frozenset({"request", "fallback"})
"""Events of single requests, which would leave no room for others."""


@dataclass(slots=True, kw_only=True)
class RecentEvent:
    """An event, or the same one several times in a row.

    Attributes:
        at: when it came, the last time.
        level: ``info``, ``warning`` or ``error``.
        event: its name, as in docs/reference/log-events.md.
        detail: its fields that hold something, in one line; cut to 300 characters.
        times: how often in a row.
    """

    at: datetime
    level: str
    event: str
    detail: str
    times: int = 1


class RecentEvents(logging.Handler):
    """Keeps the last events of information and above; those of single requests are left out."""

    def __init__(self) -> None:
        """Keep nothing yet: see `listening`."""
        super().__init__(logging.INFO)
        self._kept: deque[RecentEvent] = deque(maxlen=_KEPT)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what this process logs from now on, until the block ends."""
        logger = logging.getLogger("igd")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one event."""
        event = str(record.msg)
        if event in _OF_REQUESTS:
            return
        fields = getattr(record, "fields", {})
        told = (f"{name}: {_told(value)}" for name, value in fields.items() if value not in ("", None))
        detail = ", ".join(told)[:_MOST_CHARS]
        at = datetime.fromtimestamp(record.created, UTC)
        last = self._kept[-1] if self._kept else None
        if last is not None and (last.event, last.detail) == (event, detail):
            last.at, last.times = at, last.times + 1
            return
        self._kept.append(RecentEvent(at=at, level=record.levelname.lower(), event=event, detail=detail))

    def latest(self) -> Sequence[RecentEvent]:
        """The last events, the latest first."""
        return [*reversed(self._kept)]


def _told(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
