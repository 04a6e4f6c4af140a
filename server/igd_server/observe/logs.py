"""Log lines as JSON: one line an event, with its name and fields; no titles and no histories."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from igd_core.errors import IGDError

if TYPE_CHECKING:
    import asyncio

_MOST_CAUSES = 4

_log = logging.getLogger("igd.server")


def cause_of(error: BaseException) -> str:
    """What failed and why, in one line for operators.

    Errors of this package appear with their messages, which never hold a user's id. Of other errors only the type
    appears, since their messages may quote what a client sent.
    """
    causes: list[str] = []
    at: BaseException | None = error
    while at is not None and len(causes) < _MOST_CAUSES:
        said = (str(at).splitlines() or [""])[0] if isinstance(at, IGDError) else ""
        causes.append(f"{type(at).__name__}: {said}" if said else type(at).__name__)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "; caused by ".join(causes)


def where(error: BaseException) -> str:
    """The traceback of ``error`` and its causes: types and lines of code; messages only of this package's errors."""
    told: list[str] = []
    at: BaseException | None = error
    while at is not None and len(told) < _MOST_CAUSES:
        frames = "".join(traceback.format_tb(at.__traceback__))
        inside = "".join(f"{where(each)}\n" for each in at.exceptions) if isinstance(at, BaseExceptionGroup) else ""
        said = f": {at}" if isinstance(at, IGDError) else ""
        told.insert(0, f"Traceback (most recent call last):\n{frames}{type(at).__qualname__}{said}\n{inside}")
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "\nThe error above led to this one:\n\n".join(told).rstrip("\n")


class JsonFormatter(logging.Formatter):
    """Formats records: ours have ``extra={"fields": {...}}`` and an event name as message; others are the event "log".

    Tracebacks in records of other libraries appear without messages, which may quote what a client sent.
    """

    def __init__(self, *, replica: int | None = None) -> None:
        """``replica``: the number of this process, where several serve together."""
        super().__init__()
        self._always = {} if replica is None else {"replica": replica}

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._always,
        }
        error = record.exc_info[1] if record.exc_info else None
        if record.name.startswith("igd."):
            line |= {"event": record.msg, **getattr(record, "fields", {})}
            if record.exc_info and error is not None:
                line["traceback"] = self.formatException(record.exc_info)
        else:
            line |= {"event": "log", "logger": record.name, "message": record.getMessage()}
            if error is not None:
                line["traceback"] = where(error)
        return json.dumps(line, default=str)


def log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error of the event loop; the loop's own line would quote the error's message and the task."""
    error = context.get("exception")
    fields: dict[str, Any] = {"detail": context.get("message", "")}
    if isinstance(error, BaseException):
        fields |= {"cause": cause_of(error), "traceback": where(error)}
    _log.error("loop_error", extra={"fields": fields})


def log_to_stderr(level: str, *, replica: int | None = None) -> None:
    """Send this process's log to stderr: ours from ``level`` on, other libraries' from warnings on.

    ``replica``: the number of this process, where several serve together; each line has it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(replica=replica))
    # Names that each record would collect and that no line shows. Numbers of process and thread stay: handlers of other
    # libraries write them with %d, as vLLM's does, and without a number each of their lines would be a traceback.
    logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("igd").setLevel(level.upper())
