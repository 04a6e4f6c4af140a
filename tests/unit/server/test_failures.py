"""Every 5xx has its cause in the log, with the request's id, whatever raised it; and no word that a client sent."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Response
from igd_server.http.access import AccessMiddleware
from igd_server.http.context import ContextMiddleware
from igd_server.observe.logs import JsonFormatter, cause_of, log_loop_error, where
from igd_server.observe.metrics import Metrics

from igd_core.engines.fake import FakeEngine
from igd_core.errors import EngineError, InputError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from films import Run
    from starlette.types import Receive, Scope, Send

    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring

USER = "ann.secret@example.org"
EVENT = {"events": [{"user_id": USER, "item_id": "1", "timestamp": 1_760_000_000_000}]}


class FailingEngine(FakeEngine):
    """Raises ``error`` where a request opens a session, once told to."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        if self.error is not None:
            raise self.error
        return await super().open(version, prompt_ids, scoring)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """What the log holds, as it is written."""
    caplog.set_level(logging.DEBUG, "igd")
    return lambda: [json.loads(JsonFormatter().format(record)) for record in caplog.records]


def told(lines: list[dict[str, Any]], request_id: str) -> dict[str, Any]:
    """The line of a request, which must say why it failed; no line names the user."""
    (line,) = [line for line in lines if line["event"] == "request" and line["request_id"] == request_id]
    assert line["cause"]
    assert line["level"] == ("error" if line["status"] == 500 else "warning")
    assert USER not in json.dumps(lines)
    return line


def failing_store(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("append", "forget", "history"):
        monkeypatch.setattr("igd_core.store.memory.MemoryStore." + name, fail)


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (StoreUnavailable("redis://***@redis: gone"), 503, "StoreUnavailable: redis://***@redis: gone"),
        (StoreError("the record cannot be read"), 500, "StoreError: the record cannot be read"),
        (KeyError(USER), 500, "KeyError"),
        (RuntimeError(f"boom {USER}"), 500, "RuntimeError"),
        (ExceptionGroup(USER, [ValueError(USER)]), 500, "ExceptionGroup"),
    ],
)
async def test_what_the_store_raises_is_told(
    run: Run,
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    cause: str,
) -> None:
    async with run() as running:
        failing_store(error, monkeypatch)
        answers = [
            await running.client.post("/v1/events", json=EVENT),
            await running.client.delete(f"/v1/users/{USER}"),
            await running.recommend(user_id=USER, fallback=False),
        ]
    for answer in answers:
        assert answer.status_code == status
        assert USER not in answer.text
        line = told(lines(), answer.headers["x-request-id"])
        assert line["cause"] == cause
        assert line["status"] == status
    unforeseen = [line for line in lines() if line["event"] == "unforeseen_error"]
    assert len(unforeseen) == (0 if isinstance(error, StoreError) else 3)
    for line in unforeseen:
        assert line["cause"] == cause
        assert ", in fail\n" in line["traceback"]
        assert line["request_id"] in {answer.headers["x-request-id"] for answer in answers}


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (EngineError("the model gave numbers that are none"), 503, "EngineError: the model gave numbers that are none"),
        (ZeroDivisionError(USER), 500, "ZeroDivisionError"),
    ],
)
async def test_what_the_engine_raises_is_told_also_inside_a_batch(
    run: Run, lines: Callable[[], list[dict[str, Any]]], error: Exception, status: int, cause: str
) -> None:
    engine = FailingEngine()
    async with run(engine) as running:
        engine.error = error
        alone = await running.recommend(history=["1"], fallback=False)
        engine_asked = {"history": ["2"], "fallback": False}
        batch = await running.client.post(
            "/v1/recommendations:batch", json={"requests": [engine_asked, {"history": []}, {"k": 0}]}
        )
    assert alone.status_code == status
    assert told(lines(), alone.headers["x-request-id"])["cause"] == cause
    assert [result["status"] for result in batch.json()["results"]] == [status, 200, 422]
    failed = batch.json()["results"][0]["problem"]["request_id"]
    (line,) = [line for line in lines() if line.get("request_id") == failed]
    assert line["event"] == ("unforeseen_error" if status == 500 else "entry_failed")
    assert line["cause"] == cause
    assert line["level"] == ("error" if status == 500 else "warning")


async def test_refusals_and_deadlines_are_told(run: Run, lines: Callable[[], list[dict[str, Any]]]) -> None:
    class Slow(FakeEngine):
        slow = False

        async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
            if self.slow:
                await asyncio.sleep(0.3)
            return await super().open(version, prompt_ids, scoring)

    engine = Slow()
    async with run(engine, max_running=1, max_waiting=0) as running:
        engine.slow = True
        late, full = await asyncio.gather(
            running.recommend(history=["1"], fallback=False, timeout_ms=50),
            running.recommend(history=["2"], fallback=False),
        )
    assert {late.status_code, full.status_code} <= {503, 504}
    for answer in (late, full):
        assert "s are left" in (cause := told(lines(), answer.headers["x-request-id"])["cause"]) or (
            "no answer within" in cause or "requests are waiting" in cause
        )


async def test_a_probe_that_fails_is_told_once_until_its_reason_changes(
    run: Run, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async with run() as running:
        running.deployment.draining = True
        probes = [await running.client.get("/readyz") for _ in range(3)]
        running.deployment.draining = False
        assert (await running.client.get("/readyz")).status_code == 200
        running.deployment.draining = True
        probes.append(await running.client.get("/readyz"))
    assert {probe.status_code for probe in probes} == {503}
    said = [line for line in lines() if line["event"] == "not_ready"]
    assert [line["request_id"] for line in said] == [
        probes[0].headers["x-request-id"],
        probes[3].headers["x-request-id"],
    ]
    assert {(line["cause"], line["level"]) for line in said} == {("the server is stopping", "warning")}
    debug = [line for line in lines() if line["event"] == "request" and line["status"] == 503]
    assert [line["level"] for line in debug] == ["debug"] * 4
    assert all(line["cause"] for line in debug)


@pytest.mark.parametrize("path", ["/metrics", "/v1/catalogues", "/"])
async def test_a_middleware_that_fails_is_told(
    run: Run, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def fail(*_: object) -> None:
        raise OSError(f"no such thing: {USER}")

    async with run() as running:
        monkeypatch.setattr(AccessMiddleware, "__call__", fail)
        running.app.middleware_stack = None
        answer = await running.client.get(path)
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:igd:problem:internal-error"
    assert told(lines(), answer.headers["x-request-id"])["cause"] == "OSError"


async def asked(app: Any) -> httpx.Response:
    transport = httpx.ASGITransport(ContextMiddleware(app, metrics=Metrics()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get("/thing")


async def test_an_app_that_answers_nothing_a_route_that_answers_5xx_and_a_framework_error_are_told(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    async def silent(_: Scope, __: Receive, ___: Send) -> None:
        pass

    route = FastAPI()

    @route.get("/thing")
    async def thing() -> Response:
        return Response(status_code=502)

    raising = FastAPI()

    @raising.get("/thing")
    async def broken() -> Response:
        raise HTTPException(507)

    answers = [await asked(silent), await asked(route), await asked(raising)]
    assert [answer.status_code for answer in answers] == [500, 502, 507]
    causes = [told(lines(), answer.headers["x-request-id"])["cause"] for answer in answers]
    assert causes == ["no part of the server answered", *["the route answered so itself"] * 2]


async def test_an_answer_that_breaks_off_is_told(lines: Callable[[], list[dict[str, Any]]]) -> None:
    async def breaks(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[1,", "more_body": True})
        raise RuntimeError(USER)

    with pytest.raises((httpx.HTTPError, AssertionError, RuntimeError)):
        assert (await asked(breaks)).text == "whole"
    (line,) = [line for line in lines() if line["event"] == "request"]
    assert (line["status"], line["cut"], line["cause"], line["level"]) == (200, True, "RuntimeError", "error")
    assert USER not in json.dumps(lines())


def failed(error: Exception) -> Exception:
    """The error as it is caught, with what led to it."""

    def fail() -> None:
        try:
            int(USER)
        except ValueError as inner:
            raise error from inner

    with pytest.raises(type(error)) as caught:
        fail()
    return caught.value


def test_a_cause_tells_what_led_to_it_in_types_and_in_words_of_ours_alone() -> None:
    assert cause_of(failed(StoreError("told\nby us"))) == "StoreError: told; caused by ValueError"
    assert cause_of(failed(KeyError(USER))) == "KeyError; caused by ValueError"
    text = where(failed(ExceptionGroup(USER, [InputError("ours"), OSError(USER)])))
    assert USER not in text
    for part in ("ValueError", "ExceptionGroup", "InputError: ours", "OSError", "raise error from inner"):
        assert part in text


def test_libraries_and_the_event_loop_quote_no_error_of_a_request(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    error = failed(KeyError(USER))
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    loop = asyncio.new_event_loop()
    log_loop_error(loop, {"message": "Task exception was never retrieved", "exception": error})
    loop.close()
    library, ours = lines()
    assert (library["event"], ours["event"]) == ("log", "loop_error")
    assert ours["cause"] == "KeyError; caused by ValueError"
    assert "raise error from inner" in library["traceback"]
    assert USER not in json.dumps([library, ours])
