"""Clients that leave: a real uvicorn in this process, so that the engine's sessions can be counted."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from films import app_runner, film_artifact
from patience import PATIENCE_S
from sockets import listening

from igd_core.engines.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from films import Running

    from igd_core.catalogue.tokenization import TitleTokenizer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0.01)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def running(engine: FakeEngine, tokenizer: TitleTokenizer, tmp_path: Path) -> AsyncIterator[Running]:
    async with app_runner(film_artifact(tokenizer), tokenizer, tmp_path)(engine) as made:
        yield made


@pytest.fixture
async def port(running: Running) -> AsyncIterator[int]:
    async with listening(running.app, http="h11") as number:
        yield number


async def send(port: int, path: str, body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize(
    ("path", "body", "sessions"),
    [
        ("/v1/recommendations", {"history": ["1"], "timeout_ms": 60_000}, 1),
        (
            "/v1/recommendations:batch",  # of different questions: equal ones are worked out once
            {"requests": [{"history": [str(item)], "timeout_ms": 60_000} for item in range(1, 6)]},
            5,
        ),
    ],
)
async def test_a_client_that_leaves_ends_its_decoding(
    running: Running, engine: FakeEngine, port: int, path: str, body: object, sessions: int
) -> None:
    engine._delay_s = 60.0
    _, writer = await send(port, path, body)
    await until(lambda: engine.stats().sessions == sessions)
    writer.close()
    await until(lambda: engine.stats().sessions == 0)
    await writer.wait_closed()
    engine._delay_s = 0.0
    metrics = (await running.client.get("/metrics")).text
    assert f'igd_requests_total{{route="{path}",status="499"}} 1.0' in metrics
    assert 'igd_requests_total{route="/v1/recommendations",status="500"}' not in metrics


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(running: Running, port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/recommendations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    async with asyncio.timeout(PATIENCE_S):
        while 'status="499"} 1.0' not in (await running.client.get("/metrics")).text:  # noqa: ASYNC110 - as a scraper
            await asyncio.sleep(0.01)


async def test_a_client_that_stays_is_answered_while_others_leave(engine: FakeEngine, port: int) -> None:
    engine._delay_s = 0.05
    leaving = [await send(port, "/v1/recommendations", {"history": ["1"]}) for _ in range(8)]
    reader, writer = await send(port, "/v1/recommendations", {"history": ["2"], "k": 1, "beams": 1})
    for _, other in leaving:
        other.close()
    async with asyncio.timeout(PATIENCE_S):
        status = await reader.readline()
    writer.close()
    await until(lambda: engine.stats().sessions == 0)
    assert status == b"HTTP/1.1 200 OK\r\n"


async def test_two_requests_sent_at_once_on_one_connection_are_both_answered(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    writer.write(one + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    await writer.drain()
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    writer.close()
    assert answer.count(b'{"status":"ok"}') == 2
