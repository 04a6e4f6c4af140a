"""What stands between Ray Serve and the server, without Ray: starts, request ids, cancelled and lost requests."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.http.context import ContextMiddleware
from igd_server.observe.metrics import Metrics
from igd_server.ray_requests import Answered, InReplica, proxy_middlewares

from igd_core.errors import EngineError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _Deployment:
    """Ready after so many looks, or failed."""

    def __init__(self, looks: int = 0, failure: Exception | None = None) -> None:
        self.looks = looks
        self._failure = failure

    @property
    def failure(self) -> Exception | None:
        return self._failure if self.looks <= 0 else None

    def why_not_ready(self) -> str | None:
        self.looks -= 1
        return None if self.looks <= 0 and self._failure is None else "loading"


def _in_replica(inner: ASGIApp, deployment: _Deployment | None = None) -> InReplica:
    return InReplica(inner, deployment or _Deployment())  # type: ignore[arg-type]


def _request(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/v1/recommendations", "headers": list(headers)}


async def _waiting() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def _answers(scope: Scope, _: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def _sent(app: ASGIApp, scope: Scope, receive: Receive = _waiting) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages


@pytest.mark.parametrize(
    ("failure", "last"),
    [(None, "lifespan.startup.complete"), (EngineError("no such model"), "lifespan.startup.failed")],
)
async def test_the_start_ends_when_it_serves_or_never_will(
    failure: Exception | None, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igd_server.ray_requests._LOOK_S", 0.0)
    deployment = _Deployment(3, failure)
    app = _in_replica(_answers, deployment)
    await _sent(app, _request())
    assert deployment.looks == 3, "requests wait for nothing"
    sent = await _sent(app, {"type": "lifespan"})
    assert sent[-1]["type"] == last
    assert deployment.looks <= 0
    if failure is not None:
        assert sent[-1]["message"] == "no such model"


def _ids(messages: list[Message]) -> list[str]:
    return [value.decode() for name, value in messages[0]["headers"] if name == b"x-request-id"]


async def test_an_answer_has_no_second_copy_of_the_id_that_ray_serve_repeats() -> None:
    app = _in_replica(ContextMiddleware(_answers, metrics=Metrics()))
    assert _ids(await _sent(app, _request((b"x-request-id", b"abc")))) == []
    assert len(_ids(await _sent(app, _request((b"x-request-id", b"a b{}"))))) == 1, "the id that the problem names"


async def test_a_request_that_ray_serve_cancels_is_one_whose_client_has_gone() -> None:
    metrics, began, ended = Metrics(), asyncio.Event(), asyncio.Event()

    async def waits(*_: object) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    app = _in_replica(ContextMiddleware(waits, metrics=metrics))
    for when in (began.wait, lambda: asyncio.sleep(0)):
        ended.clear()
        task = asyncio.create_task(_sent(app, _request()))
        await when()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
    text = metrics.render("")[0].decode()
    counted = [line for line in text.splitlines() if line.startswith("igd_requests_total{")]
    assert counted == ['igd_requests_total{route="unmatched",status="499"} 2.0'], counted


async def test_a_lost_request_gets_a_problem_that_a_client_may_try_again() -> None:
    async def lost(*_: object) -> None:
        return

    assert [str(middleware.cls) for middleware in proxy_middlewares()] == [str(Answered)]
    app = Answered(lost)
    start, body = await _sent(app, _request((b"x-request-id", b"abc")))
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    told = json.loads(body["body"])
    assert start["status"] == 503
    assert headers["x-request-id"] == told["request_id"] == "abc"
    assert headers["retry-after"].isdecimal()
    assert told["type"] == "urn:igd:problem:engine-unavailable"

    start, body = await _sent(app, _request())
    assert _ids([start]) == [json.loads(body["body"])["request_id"]]


async def test_nothing_is_added_to_an_answer_nor_sent_to_a_client_that_has_gone() -> None:
    async def gone(_: Scope, receive: Receive, __: Send) -> None:
        await receive()

    async def disconnect() -> Message:
        return {"type": "http.disconnect"}

    assert [message["type"] for message in await _sent(Answered(_answers), _request())] == [
        "http.response.start",
        "http.response.body",
    ]
    assert await _sent(Answered(gone), _request(), disconnect) == []
    assert await _sent(Answered(_answers), {"type": "lifespan"}) == [{"type": "lifespan.startup.complete"}]


async def test_a_proxy_and_the_replica_behind_it_know_one_id() -> None:
    known: list[str] = []

    async def notes(scope: Scope, _: Receive, send: Send) -> None:
        known.extend(value.decode() for name, value in scope["headers"] if name == b"x-request-id")
        await _answers(scope, _, send)

    await _sent(Answered(notes), _request())
    assert len(known) == 1
