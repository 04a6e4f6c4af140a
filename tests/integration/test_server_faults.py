"""A real `igd serve` under load while its Redis, its engine and its clients misbehave.

Every request gets exactly one answer, 2xx or a problem document, and no item of another version than it names
(`served_load.Load.ask`); no acknowledged event is lost. Recovery times are printed: ``pytest -s``.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from igd_server.app import Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.settings import Settings
from patience import PATIENCE_S
from publishing import edition
from redis_server import patiently
from served_load import K, Load, Stack, by_user, ranked, recorded, refused, remembered, running_stack, say, under_load

from igd_core.artifact import save_artifact
from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

RECOVERED_S = 25.0
DAY_S = 86_400
PROMPT_S = 2.0
"""An answer that Redis does not give comes from elsewhere within this time, on a busy machine."""


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("faults")
    with running_stack(root, definition, tokenizer, checkpoint_of("llama-fp32")) as running:
        yield running


async def recovered(load: Load, fault: str, since: float) -> None:
    """Wait until events are recorded and histories read again."""
    written_s = await load.until(recorded, since=since)
    read_s = await load.until(remembered, since=since)
    say(f"{fault}: events recorded again after {written_s:.2f} s, histories read after {read_s:.2f} s")
    assert max(written_s, read_s) < RECOVERED_S


def assert_served_on(load: Load, start: float, end: float) -> None:
    """While the store was away the model answered histories that came with the request, and soon."""
    answers = load.between(start, end, "history")
    assert answers
    assert {(answer.status, answer.source) for answer in answers} == {(200, "model")}
    others = load.between(start, end, "user")
    assert {answer.status for answer in others} == {200}
    assert statistics.median(answer.seconds for answer in answers + others) < PROMPT_S  # a slow machine stalls at times


async def test_redis_is_killed_and_comes_back_with_its_data(stack: Stack) -> None:
    async with stack.store() as store, stack.load("killed") as load:
        await load.until(recorded)
        start = time.monotonic()
        stack.redis.kill()
        await load.until(refused)
        await load.until(lambda answer: "history-unavailable" in answer.warnings)
        await load.until(ranked)
        end = time.monotonic()
        await asyncio.to_thread(stack.redis.start)
        await recovered(load, "killed and restarted", time.monotonic())
        assert_served_on(load, start, end)
    async with stack.store() as store:
        await load.assert_nothing_lost(store)


async def test_redis_is_killed_and_comes_back_empty(stack: Stack) -> None:
    async with stack.load("emptied") as load:
        served = (await stack.catalogue())["version"]
        start = time.monotonic()
        stack.redis.kill()
        await load.until(refused)
        shutil.rmtree(stack.root / "redis" / "appendonlydir")
        load.recorded.clear()
        await asyncio.to_thread(stack.redis.start)
        back = time.monotonic()
        await recovered(load, "killed, data lost", back)
        found = await stack.until_catalogue(lambda found: found.get("published") is None)
        assert found["version"] == served
        assert found.get("trouble") == "nothing is published under this name"
        await load.until(ranked)
        assert_served_on(load, start, time.monotonic())
        async with stack.store() as store:
            version = await stack.publish(store)
            seconds = await load.until(lambda answer: answer.version == version)
            say(f"killed, data lost: what is published next is served after {seconds:.2f} s")
    async with stack.store() as store:
        await load.assert_nothing_lost(store)


@pytest.mark.parametrize("fault", ["slow", "hanging", "frozen", "cut off"])
async def test_redis_gives_no_answer_in_time(fault: str, stack: Stack) -> None:
    async with stack.store() as store, stack.load(fault.replace(" ", "-")) as load:
        await load.until(recorded)
        start = time.monotonic()
        if fault == "slow":
            stack.proxy.delay_s = 2.0
        elif fault == "hanging":
            stack.proxy.hang()
        elif fault == "frozen":
            stack.redis.pause()
        else:
            stack.proxy.cut()
        if fault != "cut off":  # a client connects again, and nobody may have noticed
            await load.until(refused)
            await load.until(lambda answer: "history-unavailable" in answer.warnings)
        await load.until(by_user)
        await load.until(ranked)
        end = time.monotonic()
        stack.proxy.delay_s = 0.0
        stack.proxy.resume()
        if fault == "frozen":
            stack.redis.resume()
        await recovered(load, fault, time.monotonic())
        assert_served_on(load, start, end)
    async with stack.store() as store:
        await load.assert_nothing_lost(store)


async def test_a_full_redis_takes_no_event_and_gives_what_it_has(stack: Stack) -> None:
    async with stack.store() as store, stack.load("full") as load:
        await load.until(recorded)
        start = time.monotonic()
        stack.redis.cli("config", "set", "maxmemory-policy", "noeviction")
        stack.redis.cli("config", "set", "maxmemory", "1")
        await load.until(refused)
        await load.until(remembered)
        await load.until(ranked)
        end = time.monotonic()
        stack.redis.cli("config", "set", "maxmemory", "0")
        await recovered(load, "full", time.monotonic())
        assert_served_on(load, start, end)
        assert all("history-unavailable" not in answer.warnings for answer in load.between(start, end, "user"))
    async with stack.store() as store:
        await load.assert_nothing_lost(store)


async def test_clients_that_leave_in_the_middle_leave_nothing_behind(stack: Stack) -> None:
    host, port = re.findall(r"//(.+):(\d+)/", stack.url)[0]
    body = json.dumps({"history": [f"films-0-{row}" for row in range(12)], "k": K, "beams": 50}).encode()
    head = (
        f"POST /v1/recommendations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()

    async def leave(sent: int) -> None:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write((head + body)[:sent])
        await writer.drain()
        await asyncio.sleep(0.005 * (sent % 4))
        writer.transport.abort()

    async with stack.load("leaving") as load:
        start = time.monotonic()
        whole = len(head) + len(body)
        await asyncio.gather(*(leave(sent) for sent in [10, len(head), whole - 1, *[whole] * 37]))
        await load.until(by_user)
        await load.until(ranked)
        assert_served_on(load, start, time.monotonic())
    async with httpx.AsyncClient(base_url=stack.url) as client, asyncio.timeout(PATIENCE_S):
        for name in ("igd_engine_sessions", "igd_admission_running", "igd_admission_waiting"):
            while True:
                found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
                assert found is not None, name
                if float(found[1]) == 0:
                    break
                await asyncio.sleep(0.02)


async def test_what_expires_does_so_by_the_stores_clock_whatever_clients_say(stack: Stack) -> None:
    day_ms = 1000 * DAY_S
    async with httpx.AsyncClient(base_url=stack.url) as client:
        now = int(time.time() * 1000)
        stamps = {"past": "1990-01-01T00:00:00Z", "now": now, "ahead": now + day_ms - 60_000}
        for user, stamp in stamps.items():
            event = {"user_id": f"clock-{user}", "item_id": "films-0-1", "timestamp": stamp}
            assert (await client.post("/v1/events", json={"events": [event]})).status_code == 200
        late = {"user_id": "clock-late", "item_id": "films-0-1", "timestamp": now + 2 * day_ms}
        assert (await client.post("/v1/events", json={"events": [late]})).status_code == 422
        assert (await client.post("/v1/recommendations", json={"history": ["films-0-1"]})).status_code == 200
    ttl_ms = 180 * day_ms
    for user in stamps:
        (key,) = stack.redis.cli("--scan", "--pattern", f"*clock-{user}").splitlines()
        assert ttl_ms - 60_000 < int(stack.redis.cli("pttl", key)) <= ttl_ms
    assert stack.redis.cli("--scan", "--pattern", "*clock-late") == ""
    for _ in patiently("what is written behind an answer"):  # the answer itself, and what attributes events
        kept = stack.redis.cli("--scan", "--pattern", "*result:*").splitlines()
        if len(kept) >= 2:
            break
    assert all(-1 != int(stack.redis.cli("pttl", key)) <= day_ms for key in kept)


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """How far the server's clock is ahead, in seconds."""
    path = tmp_path / "clock"
    path.write_text("0")
    return path


@pytest.fixture
def jumping(
    clock: Path,
    tmp_path: Path,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Iterator[Stack]:
    """A server whose wall clock is `clock`'s, as when a machine's time is set right; Redis and clients keep theirs."""
    checkpoint = checkpoint_of("llama-fp32")
    # Redis has no fault here: on a busy machine a write that takes long is not taken for one.
    patient = {"IGD_RESULT_TTL_S": "3600", "IGD_STORE_TIMEOUT_MS": "5000"}
    with running_stack(tmp_path, definition, tokenizer, checkpoint, clock, **patient) as stack:
        yield stack


async def test_the_servers_clock_jumps(jumping: Stack, clock: Path) -> None:
    stack = jumping

    async def is_cached() -> bool:
        async with httpx.AsyncClient(base_url=stack.url) as client:
            response = await client.post("/v1/recommendations", json={"history": ["films-0-1"], "alpha": 0.125})
            assert response.status_code == 200
            return bool(response.json()["cached"])

    def ahead_s() -> float:
        return (datetime.fromisoformat(stack.server.log[-1]["time"]) - datetime.now(UTC)).total_seconds()

    async with stack.store() as store, stack.load("clock") as load:
        assert [await is_cached() for _ in range(2)] == [False, True]
        for ahead in (400 * DAY_S, 0, -0.8 * DAY_S):
            await asyncio.to_thread(clock.write_text, str(ahead))
            async with asyncio.timeout(PATIENCE_S):
                while abs(ahead_s() - ahead) > 60:  # noqa: ASYNC110 - a clock tells nobody
                    await asyncio.sleep(0.02)
            start = time.monotonic()
            assert [await is_cached() for _ in range(2)] == [False, True], "an answer outlived its hour, or had none"
            for wanted in (recorded, remembered, ranked):
                await load.until(wanted)
            assert_served_on(load, start, time.monotonic())
        version = await stack.publish(store)
        await load.until(lambda answer: answer.version == version)
        assert {answer.status for answer in load.answers} == {200}
        await load.assert_nothing_lost(store)


@pytest.mark.parametrize("fault", ["poisoned", "closed"])
async def test_the_engine_fails_and_popularity_answers(
    fault: str,
    tmp_path: Path,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> None:
    """In this process, where the engine can be got at; its model is real, and so is what goes wrong in it."""
    model_dir = tmp_path / "model"
    checkpoint_of("llama-fp32").model.save_pretrained(model_dir)
    (model_dir / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (model_dir / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    checkpoint = load_checkpoint(model_dir, device="cpu")
    engine = TreeEngine(checkpoint)
    artifact = edition(tokenizer, 0)
    save_artifact(artifact, tmp_path / "films")
    settings = Settings(artifact=tmp_path / "films", model=str(model_dir))
    apps = create_apps(
        settings,
        Sources(open_model=lambda _: OpenedModel(engine=engine, token_texts=lambda _, ids: list(map(str, ids)))),
    )

    def poison(*_: object) -> None:
        raise RuntimeError("out of memory")

    async with (
        apps.main.router.lifespan_context(apps.main),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=apps.main), base_url="http://localhost") as client,
    ):
        async with asyncio.timeout(PATIENCE_S):
            while apps.deployment.why_not_ready() is not None:  # noqa: ASYNC110 - as a probe does
                await asyncio.sleep(0.01)
        async with under_load(client, {artifact.version: 0}, fault) as load:
            hook = None
            if fault == "poisoned":
                hook = checkpoint.model.get_input_embeddings().register_forward_pre_hook(poison)  # both forwards use it
            else:
                await engine.close()
            failed = time.monotonic()
            await load.until(lambda answer: "engine-unavailable" in answer.warnings)
            strict = {"history": ["films-0-1"], "alpha": 0.123, "fallback": False}
            response = await client.post("/v1/recommendations", json=strict)
            assert (response.status_code, response.json()["type"]) == (503, "urn:igd:problem:engine-unavailable")
            if hook is None:
                ready = await client.get("/readyz")
                assert ready.status_code == 503
                async with asyncio.timeout(PATIENCE_S):
                    while apps.deployment.failure is None:  # noqa: ASYNC110 - whoever runs the server ends it then
                        await asyncio.sleep(0.01)
                say(f"engine ended: noticed after {time.monotonic() - failed:.2f} s")
            else:
                await load.until(lambda answer: answer.source == "popularity")
                hook.remove()
                seconds = await load.until(ranked, since=time.monotonic())
                say(f"engine failed for {time.monotonic() - failed:.2f} s: the model answers after {seconds:.2f} s")
                assert seconds < RECOVERED_S
            assert engine.stats().sessions < 20
        assert {answer.status for answer in load.answers} == {200}
    await engine.close()
