"""An asynchronous, typed client of the server's HTTP API that retries while the server is busy.

    async with RecommendationClient("https://recs.example", key="igd_...") as client:
        answer = await client.recommend(history=["50", "172"], k=5)
        print([item.title for item in answer.items])

Needs httpx (extra ``client``, and part of ``server``).
"""

from __future__ import annotations

import asyncio
import random
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self

import httpx

from igd_core.client.answers import (
    forgotten_of,
    known_of,
    problem_of,
    recommended_of,
    recorded_of,
    sent_event,
    sent_filter,
)
from igd_core.errors import ApiProblem, InputError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.client.answers import Event, Forgotten, Known, Recommended, Recorded

_BUSY = (429, 503)
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 5.0


class RecommendationClient:
    """Calls of one server; use it with ``async with``, or `close` it.

    ``timeout_s`` bounds all tries of a call together. If the server is busy (429, 503) or unreachable, the call is
    tried again after the pause that the server names, or after a growing one, while time remains: every call here may
    safely be repeated. Errors that a retry cannot change are raised at once.
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
        """``base_url``: with its path prefix, if any; ``transport``: for tests and proxies.

        Raises:
            InputError: ``tries`` is below 1, or ``timeout_s`` is not above 0.
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
        """Close the connections."""
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
            history: used instead of the stored one.
            user_id: also draws the variant.
            options: further fields of ``POST /v1/recommendations``: ``k``, ``alpha``, ``filter``, ``explain``,
                ``exclude_seen``, ``exclude_seen_titles`` ... In a ``filter``, as ``{"released": {"gte": date(2001, 5,
                17)}, "genres": {"none_of": {"Horror"}}}``, dates, times, tuples and sets go as the server reads them.

        Raises:
            ApiProblem: the server answered with a problem.
            ServerUnreachable: there was no answer in time.
        """
        return recommended_of(await self._call("POST", "v1/recommendations", _question(history, user_id, options)))

    async def recommend_many(self, requests: Sequence[Mapping[str, Any]]) -> list[Recommended | ApiProblem]:
        """Answers to several requests (fields as for `recommend`), in order; for one that fails, its problem.

        Raises:
            ApiProblem: the server refused the whole batch.
            ServerUnreachable: there was no answer in time.
        """
        body = await self._call("POST", "v1/recommendations:batch", {"requests": [_options(each) for each in requests]})
        return [
            recommended_of(each["recommendation"])
            if each["status"] == 200
            else problem_of(each["status"], each["problem"])
            for each in body["results"]
        ]

    async def record(self, events: Sequence[Event]) -> Recorded:
        """Record events: all of them, or an error.

        Raises:
            ApiProblem: the server answered with a problem.
            ServerUnreachable: there was no answer in time; the events may have been recorded, and may be sent again.
        """
        body = await self._call("POST", "v1/events", {"events": [sent_event(event) for event in events]})
        return recorded_of(body)

    async def known(self, user_id: str) -> Known:
        """Everything that is stored of a user; the key needs the scope ``users`` or ``admin``.

        Raises:
            ApiProblem: the server answered with a problem.
            ServerUnreachable: there was no answer in time.
        """
        return known_of(await self._call("POST", "v1/users:known", {"user_id": user_id}))

    async def forget(self, user_id: str) -> Forgotten:
        """Delete everything stored about a user; returns how much there was.

        Raises:
            ApiProblem: the server answered with a problem.
            ServerUnreachable: there was no answer in time.
        """
        # In the body: proxies neither log nor shorten it there, and no error message here contains it.
        return forgotten_of(await self._call("POST", "v1/users:forget", {"user_id": user_id}))

    async def catalogues(self) -> list[dict[str, Any]]:
        """The catalogues being served, as from ``GET /v1/catalogues``.

        Raises:
            ApiProblem: the server answered with a problem.
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
                # Better the server's own words now than a time-out later.
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
        # A proxy's error page is not JSON, but its Retry-After counts.
        try:
            problem = problem_of(response.status_code, _json(response))
        except ApiProblem as unreadable:
            problem = unreadable
        problem.retry_after_s = _pause_s(response)
        raise problem


def _question(history: Sequence[str] | None, user_id: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    given = {"history": None if history is None else list(history), "user_id": user_id}
    return {**{name: value for name, value in given.items() if value is not None}, **_options(options)}


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sent_filter(value) if name == "filter" else value for name, value in options.items()}


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    raise ApiProblem("not-json", status=response.status_code, detail=f"HTTP {response.status_code} without JSON")


def _pause_s(response: httpx.Response) -> float | None:
    """``Retry-After`` in seconds, from a number or a date (RFC 9110); None if there is none."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
