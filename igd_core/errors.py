"""Every error this package raises on purpose.

IGDError
├── InputError            what a caller handed in is wrong; CLI exit code 2, HTTP 422
│   ├── DataError         an interactions or items file
│   ├── CatalogueError    items, titles, paths, priors
│   └── QueryError        a recommendation request; names the field
├── ArtifactError         a bundle is truncated, altered, foreign or made for another tokenizer
├── TuningError           a tuning run cannot start or go on; what it has written stays
├── ModelError            a checkpoint cannot be loaded or has an unsupported architecture
├── StoreError            the store cannot answer now, or what it holds cannot be used
│   └── StoreUnavailable  not reached, too slow, full or read-only: the same call may work later
└── EngineError           the engine cannot answer now
    ├── DeadlineExceeded  the request's time is over
    ├── EngineClosed      the engine has shut down or died
    └── ModelFault        what the model computed is no answer: scores that are not finite, or too few of them
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class IGDError(Exception):
    """Base of every deliberate error."""


class InputError(IGDError):
    """What a caller handed in is wrong; the message names the field and the value."""


class DataError(InputError):
    """An interactions or items file cannot be used as it is."""


class CatalogueError(InputError):
    """Items, titles, token paths or priors cannot make a catalogue."""


class QueryError(InputError):
    """A recommendation request holds a value that cannot be served.

    Attributes:
        field: name of the offending request field.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ArtifactError(IGDError):
    """An artifact is truncated, altered, foreign, or made for another tokenizer.

    Attributes:
        directory: that of the artifact, where the message begins with the name of a file in it; a server, whose folders
            are nobody's business, does not tell it.
    """

    directory: Path | None = None


class TuningError(IGDError):
    """A tuning run cannot start or go on; what it has written stays."""


class ModelError(IGDError):
    """A checkpoint cannot be loaded, or its architecture is not supported."""


class StoreError(IGDError):
    """The store cannot answer, or what it holds cannot be used."""


class StoreUnavailable(StoreError):  # noqa: N818 - the name says what happened
    """The store was not reached, took too long, or is full or read-only; the same call may work later."""


class EngineError(IGDError):
    """The engine cannot answer now."""


class DeadlineExceeded(EngineError):  # noqa: N818 - the name says what happened, as in asyncio
    """The request's time was over before its answer was ready."""


class EngineClosed(EngineError):  # noqa: N818
    """The engine has shut down or died."""


class ModelFault(EngineError):  # noqa: N818 - the name says what happened
    """What the model computed is no answer: scores that are NaN or infinite, or fewer items than there must be."""


class ClientError(IGDError):
    """A call of a recommendation server brought no result."""


class ServerUnreachable(ClientError):  # noqa: N818 - the name says what happened
    """There was no answer, or not in time; what was asked for may have been done."""


class ApiProblem(ClientError):  # noqa: N818
    """The server's answer is a problem document.

    Attributes:
        kind: last part of its type, ``invalid-field`` or ``overloaded``; docs/reference/problems.md lists them.
        status: HTTP status.
        detail: one line for a person.
        field: the request's field it is about.
        request_id: names the request in the server's log.
        retry_after_s: seconds after which the server said to try again.
    """

    def __init__(
        self,
        kind: str,
        *,
        status: int,
        detail: str,
        field: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.kind = kind
        self.status = status
        self.detail = detail
        self.field = field
        self.request_id = request_id
        self.retry_after_s = retry_after_s
