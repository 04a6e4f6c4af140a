"""Spans of a request, where an endpoint for them is set. Where none is, nothing is imported and nothing recorded.

A request's span has children: its wait for the model (``igd.queue``), each round of decoding (``igd.round``) and each
call of the store (``igd.store.OPERATION``). None carries a title, a history, a user id or a key.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    Fact: TypeAlias = bool | int | float | str


class Span(Protocol):
    """A stretch of time that is being recorded."""

    def add(self, facts: Mapping[str, Fact]) -> None:
        """Say more about it."""
        ...

    def rename(self, name: str) -> None:
        """Call it what was not known when it began."""
        ...


class Tracing:
    """Records nothing; see `igd_server.observe.otlp` for what records."""

    def request(self, headers: Mapping[str, str]) -> AbstractContextManager[Span]:  # noqa: ARG002 - for others
        """The span of an HTTP request, under the ``traceparent`` that its headers name."""
        return _NOTHING

    def span(self, name: str) -> AbstractContextManager[Span]:  # noqa: ARG002 - for others
        """A span under the current one; an exception that leaves it marks it as failed."""
        return _NOTHING

    def trace_id(self) -> str | None:
        """The current trace's id, 32 hexadecimal digits, where it is recorded: for the log."""
        return None

    def close(self) -> None:
        """Send what is left; may take seconds, so not on an event loop."""


class _Unrecorded:
    def add(self, facts: Mapping[str, Fact]) -> None:
        pass

    def rename(self, name: str) -> None:
        pass


UNRECORDED: Span = _Unrecorded()
_NOTHING = contextlib.nullcontext(UNRECORDED)
