"""The server's answers as Python objects. Unknown fields are ignored, since a newer server may send more."""

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

    ``logprob`` is None if the token has weight 0 and was not scored. With gamma above 0, ``prior_logprob`` is what the
    item scorer gives the token, and ``score`` what it adds to the item's.
    """

    token: str
    token_id: int
    information_gain: float
    weight: float
    forced: bool
    logprob: float | None = None
    prior_logprob: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A ranked item.

    Attributes:
        rank: from 1.
        score: weighted log-probability in nats; for popularity, the share of interactions.
        probability: of the title, where scores are normalised over children; else None.
        duplicates: ids of other items with the same title or path.
        explanation: its tokens, if asked for and if the model ranked the items.
    """

    item_id: str
    title: str
    rank: int
    score: float
    probability: float | None = None
    duplicates: tuple[str, ...] = ()
    explanation: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something that the server ignored, or why popularity answered; branch on ``code``."""

    code: str
    detail: str
    field: str | None = None
    count: int | None = None
    sample: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Precomputed:
    """When and with what a list was made in advance: ``age_s`` seconds before the answer."""

    made_at: datetime
    age_s: float
    version: str
    model_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """A recommendation.

    Attributes:
        request_id: events on the recommended items name it.
        model_fingerprint: hash of the model's content. Absent from older servers' answers.
        source: ``model``, ``popularity``, or ``precomputed``: the model at an earlier time.
        precomputed: where that is the source.
        normalise: over what the model's probabilities in ``score`` were normalised, ``vocabulary`` or
            ``children``. None where popularity answered, and from older servers.
        gamma: weight that the catalogue's item scorer had; None where the version holds none or popularity answered.
        mixture: how it was mixed with the model, where gamma is above 0.
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
    precomputed: Precomputed | None = None
    normalise: str | None = None
    gamma: float | None = None
    mixture: str | None = None
    warnings: tuple[Warned, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A user did something with an item.

    Attributes:
        timestamp: when; without a time zone it is local time.
        event_id: an event sent twice counts once; without an id, user, item, time and kind identify it.
        request_id: of the recommendation that showed the item.
        kind: ``view``, ``click``, ``cart``, ``buy``, ``rating``, ``skip``, or as the server is told; None: ``click``.
        value: of the kind's own meaning, such as stars or a price.
        position: rank at which the item was shown, from 1.
    """

    user_id: str
    item_id: str
    timestamp: datetime
    event_id: str | None = None
    request_id: str | None = None
    kind: str | None = None
    value: float | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEvent:
    """An event that the server has on record; ``history``: whether it is in the list that histories are made of."""

    event_id: str
    item_id: str
    timestamp: datetime
    kind: str
    history: bool
    value: float | None = None
    position: int | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Impression:
    """What an answer showed; ``items`` are (item id, score) in the order of their ranks."""

    request_id: str
    timestamp: datetime
    catalogue: str
    version: str
    source: str
    items: tuple[tuple[str, float], ...]
    variant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the server has stored of a user, oldest first.

    Attributes:
        answers: how many cached answers and notes are linked to the user.
        precomputed: how many lists were made for the user in advance.
    """

    user_id: str
    events: tuple[KnownEvent, ...]
    impressions: tuple[Impression, ...]
    answers: int = 0
    precomputed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """How much of a user the server has deleted."""

    events: int = 0
    impressions: int = 0
    answers: int = 0
    precomputed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """How the server recorded events."""

    accepted: int
    duplicates: int
    warnings: tuple[Warned, ...] = ()


def sent_event(event: Event) -> dict[str, Any]:
    """An event in the form that the server takes."""
    named = {each.name: getattr(event, each.name) for each in fields(event)}
    named["timestamp"] = event.timestamp.astimezone().isoformat()
    return {name: value for name, value in named.items() if value is not None}


def sent_filter(part: object) -> object:
    """A filter, or a part of one, in the form that the server takes; a time without a zone is local time."""
    if isinstance(part, Mapping):
        return {name: sent_filter(value) for name, value in part.items()}
    if isinstance(part, (list, tuple, set, frozenset)):
        return [sent_filter(value) for value in part]
    if isinstance(part, datetime):
        return part.astimezone().isoformat()
    return part.isoformat() if isinstance(part, date) else part


def recommended_of(body: Mapping[str, Any]) -> Recommended:
    """Parse an answer of ``POST /v1/recommendations``."""
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
    made = body.get("precomputed")
    precomputed = made and _of(Precomputed, {**made, "made_at": datetime.fromisoformat(made["made_at"])})
    return _of(Recommended, {**body, "items": items, "precomputed": precomputed, "warnings": _warnings(body)})


def recorded_of(body: Mapping[str, Any]) -> Recorded:
    """Parse an answer of ``POST /v1/events``."""
    return _of(Recorded, {**body, "warnings": _warnings(body)})


def known_of(body: Mapping[str, Any]) -> Known:
    """Parse an answer of ``POST /v1/users:known``."""
    events = tuple(
        _of(KnownEvent, {**each, "timestamp": datetime.fromisoformat(each["timestamp"])}) for each in body["events"]
    )
    impressions = tuple(
        _of(
            Impression,
            {
                **each,
                "timestamp": datetime.fromisoformat(each["timestamp"]),
                "items": tuple((item["item_id"], item["score"]) for item in each["items"]),
            },
        )
        for each in body["impressions"]
    )
    return _of(Known, {**body, "events": events, "impressions": impressions})


def forgotten_of(body: Mapping[str, Any]) -> Forgotten:
    """Parse an answer of ``POST /v1/users:forget``; a server that says nothing has told no numbers."""
    return _of(Forgotten, body.get("forgotten") or {})


def _warnings(body: Mapping[str, Any]) -> tuple[Warned, ...]:
    return tuple(
        _of(Warned, {**each, "sample": tuple(each.get("sample") or ())}) for each in body.get("warnings") or ()
    )


def _of(kind: type[T], body: Mapping[str, Any]) -> T:
    """Make a ``kind`` of those fields of ``body`` that it has; a newer server may send others."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in body.items() if name in names})


def problem_of(status: int, body: Mapping[str, Any]) -> ApiProblem:
    """Turn a problem document into an error."""
    return ApiProblem(
        str(body.get("type", "")).rpartition(":")[2] or "unknown",
        status=status,
        detail=str(body.get("detail") or body.get("title") or f"HTTP {status}"),
        field=body.get("field"),
        request_id=body.get("request_id"),
    )
