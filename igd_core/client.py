"""A client of the server's HTTP API: typed, asynchronous, and patient with a server that is busy.

    async with RecommendationClient("https://recs.example", key="igd_...") as client:
        answer = await client.recommend(history=["50", "172"], k=5)
        print([item.title for item in answer.items])

Needs httpx (extra ``client``, and part of ``server``).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import httpx

from igd_core.errors import ApiProblem, InputError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BUSY = (429, 503)
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of an explained item: ``logprob`` and ``information_gain`` in nats."""

    token: str
    token_id: int
    logprob: float
    information_gain: float
    weight: float
    forced: bool


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


class RecommendationClient:
    """Calls of one server; ``async with`` it, or `close` it.

    Every call has ``timeout_s`` for all its tries together. A server that is busy (429, 503) or cannot be reached is
    asked again, after the pause that it names or a growing one, as long as the time allows: every call here may be made
    twice. Answers that will not change are raised at once.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 10.0,
        tries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """``base_url``: with the path prefix, if there is one; ``transport``: for tests and proxies.

        Raises:
            InputError: a ``tries`` below 1, or ``timeout_s`` not above 0.
        """
        if tries < 1:
            raise InputError(f"tries: {tries}; at least 1 is needed")
        if not timeout_s > 0:
            raise InputError(f"timeout_s: {timeout_s:g} is not above 0")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=None, transport=transport)  # noqa: S113 - each call has its own
        self._timeout_s = timeout_s
        self._tries = tries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def recommend(
        self,
        *,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        **options: Any,  # noqa: ANN401 - checked by the server
    ) -> Recommended:
        """Rank what may follow ``history`` (item ids, oldest first), or the stored history of ``user_id``.

        Args:
            history: wins over a stored one.
            user_id: draws the variant, too.
            options: further fields of ``POST /v1/recommendations``: ``k``, ``alpha``, ``filter``, ``explain`` ...

        Raises:
            ApiProblem: the server's answer is an error.
            ServerUnreachable: there was no answer in time.
        """
        return _recommended(await self._call("POST", "v1/recommendations", _question(history, user_id, options)))

    async def recommend_many(self, requests: Sequence[Mapping[str, Any]]) -> list[Recommended | ApiProblem]:
        """Answers to several requests (fields as for `recommend`), in their order; one that fails is its problem.

        Raises:
            ApiProblem: the whole batch was refused.
            ServerUnreachable: there was no answer in time.
        """
        body = await self._call("POST", "v1/recommendations:batch", {"requests": [dict(each) for each in requests]})
        return [
            _recommended(each["recommendation"]) if each["status"] == 200 else _problem(each["status"], each["problem"])
            for each in body["results"]
        ]

    async def record(self, events: Sequence[Event]) -> Recorded:
        """Record what users did: all of it, or an error.

        Raises:
            ApiProblem: the server's answer is an error.
            ServerUnreachable: there was no answer in time; perhaps they were recorded, and may be sent again.
        """
        body = await self._call("POST", "v1/events", {"events": [_sent(event) for event in events]})
        return _of(Recorded, {**body, "warnings": _warnings(body)})

    async def forget(self, user_id: str) -> None:
        """Delete what is stored under a user's id.

        Raises:
            ApiProblem: the server's answer is an error.
            ServerUnreachable: there was no answer in time.
        """
        await self._call("DELETE", f"v1/users/{quote(user_id, safe='')}")

    async def catalogues(self) -> list[dict[str, Any]]:
        """What is being served, as ``GET /v1/catalogues`` has it.

        Raises:
            ApiProblem: the server's answer is an error.
            ServerUnreachable: there was no answer in time.
        """
        found: list[dict[str, Any]] = (await self._call("GET", "v1/catalogues"))["catalogues"]
        return found

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._patiently(method, path, body)
        except TimeoutError:
            raise ServerUnreachable(f"{method} {path}: no answer within {self._timeout_s:g} s") from None

    async def _patiently(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        tried = 0
        while True:
            tried += 1
            pause_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**tried) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            try:
                return await self._once(method, path, body)
            except ApiProblem as problem:
                if problem.status not in _BUSY:
                    raise
                pause_s = max(pause_s, problem.retry_after_s or 0.0)
                # Rather the server's own words now than a time-out later.
                if tried == self._tries or loop.time() + pause_s >= deadline:
                    raise
            except ServerUnreachable:
                if tried == self._tries or loop.time() + pause_s >= deadline:
                    raise
            await asyncio.sleep(pause_s)

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise ServerUnreachable(f"{method} {path}: {error or type(error).__name__}") from None
        if response.is_success:
            return _json(response) if response.content else {}
        raise _problem(response.status_code, _json(response), response.headers.get("Retry-After"))


def _question(history: Sequence[str] | None, user_id: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    given = {"history": None if history is None else list(history), "user_id": user_id}
    return {**{name: value for name, value in given.items() if value is not None}, **options}


def _sent(event: Event) -> dict[str, Any]:
    named = {each.name: getattr(event, each.name) for each in fields(event)}
    named["timestamp"] = event.timestamp.astimezone().isoformat()
    return {name: value for name, value in named.items() if value is not None}


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    raise ApiProblem("not-json", status=response.status_code, detail=f"HTTP {response.status_code} without JSON")


def _problem(status: int, body: Mapping[str, Any], retry_after: str | None = None) -> ApiProblem:
    return ApiProblem(
        str(body.get("type", "")).rpartition(":")[2] or "unknown",
        status=status,
        detail=str(body.get("detail") or body.get("title") or f"HTTP {status}"),
        field=body.get("field"),
        request_id=body.get("request_id"),
        retry_after_s=float(retry_after) if retry_after is not None and retry_after.isdecimal() else None,
    )


T = TypeVar("T")


def _of(kind: type[T], body: Mapping[str, Any]) -> T:
    """What ``kind`` has of ``body``: a newer server may say more."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in body.items() if name in names})


def _warnings(body: Mapping[str, Any]) -> tuple[Warned, ...]:
    return tuple(
        _of(Warned, {**each, "sample": tuple(each.get("sample") or ())}) for each in body.get("warnings") or ()
    )


def _recommended(body: Mapping[str, Any]) -> Recommended:
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
