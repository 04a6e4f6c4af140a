"""What the server's answers hold, and reading them: unknown fields are passed over, as a newer server may say more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from typing import Any, TypeVar

from igd_core.errors import ApiProblem

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of an explained item: ``logprob`` and ``information_gain`` in nats.

    ``logprob`` is None where it counts nothing and was not computed.
    """

    token: str
    token_id: int
    information_gain: float
    weight: float
    forced: bool
    logprob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A ranked item.

    Attributes:
        rank: from 1.
        score: weighted log-probability in nats; for popularity, the share of interactions.
        duplicates: other item ids that read the same.
        explanation: its tokens, where asked for and the model ranked.
    """

    item_id: str
    title: str
    rank: int
    score: float
    duplicates: tuple[str, ...] = ()
    explanation: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something that the server passed over, or why popularity answered; ``code`` is what to branch on."""

    code: str
    detail: str
    field: str | None = None
    count: int | None = None
    sample: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """An answer.

    Attributes:
        request_id: to be named by events on what it showed.
        model_fingerprint: of the model's content; equal for equal models. Absent from answers of older servers.
        source: ``model`` or ``popularity``.
        timings: milliseconds and counts, by name.
    """

    request_id: str
    catalogue: str
    version: str
    model: str
    source: str
    cached: bool
    items: tuple[Item, ...]
    model_fingerprint: str | None = None
    variant: str | None = None
    warnings: tuple[Warned, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A user chose an item.

    Attributes:
        timestamp: when; one without a time zone is taken as local time.
        event_id: the same event sent twice counts once; without one, user, item and time say which it is.
        request_id: the answer that showed the item.
    """

    user_id: str
    item_id: str
    timestamp: datetime
    event_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of events."""

    accepted: int
    duplicates: int
    warnings: tuple[Warned, ...] = ()


def sent_event(event: Event) -> dict[str, Any]:
    """An event as the server takes it."""
    named = {each.name: getattr(event, each.name) for each in fields(event)}
    named["timestamp"] = event.timestamp.astimezone().isoformat()
    return {name: value for name, value in named.items() if value is not None}


def sent_filter(part: object) -> object:
    """A filter, or a part of one, as the server takes it; a time without a zone is taken as local time."""
    if isinstance(part, Mapping):
        return {name: sent_filter(value) for name, value in part.items()}
    if isinstance(part, (list, tuple, set, frozenset)):
        return [sent_filter(value) for value in part]
    if isinstance(part, datetime):
        return part.astimezone().isoformat()
    return part.isoformat() if isinstance(part, date) else part


def recommended_of(body: Mapping[str, Any]) -> Recommended:
    """Read an answer of ``POST /v1/recommendations``."""
    items = tuple(
        _of(
            Item,
            {
                **each,
                "duplicates": tuple(each.get("duplicates") or ()),
                "explanation": tuple(_of(Token, token) for token in each.get("explanation") or ()),
            },
        )
        for each in body["items"]
    )
    return _of(Recommended, {**body, "items": items, "warnings": _warnings(body)})


def recorded_of(body: Mapping[str, Any]) -> Recorded:
    """Read an answer of ``POST /v1/events``."""
    return _of(Recorded, {**body, "warnings": _warnings(body)})


def _warnings(body: Mapping[str, Any]) -> tuple[Warned, ...]:
    return tuple(
        _of(Warned, {**each, "sample": tuple(each.get("sample") or ())}) for each in body.get("warnings") or ()
    )


def _of(kind: type[T], body: Mapping[str, Any]) -> T:
    """What ``kind`` has of ``body``: a newer server may say more."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in body.items() if name in names})


def problem_of(status: int, body: Mapping[str, Any]) -> ApiProblem:
    """A problem document as an error."""
    return ApiProblem(
        str(body.get("type", "")).rpartition(":")[2] or "unknown",
        status=status,
        detail=str(body.get("detail") or body.get("title") or f"HTTP {status}"),
        field=body.get("field"),
        request_id=body.get("request_id"),
    )
