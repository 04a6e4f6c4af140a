"""A list made in advance answers when the model cannot, as far as the request's filters admit it; else popularity."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from films import RecordingEngine, SlowEngine
from patience import PATIENCE_S
from publishing import PATIENT
from redis_server import RedisServer

from igd_core.errors import EngineError
from igd_core.store.open import open_store
from igd_core.store.precomputed import PrecomputedList

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from films import Run, Running

    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring

_RANKED = ["9", "ghost", "16", "17", "3", "13", "5", "14", "1", "7"]  # 16 and 17 have one title


class FailingEngine(RecordingEngine):
    """Fails once it is told to."""

    failing = False

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        if self.failing:
            raise EngineError("told to fail")
        return await super().open(version, prompt_ids, scoring)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


async def keep(redis: RedisServer, user_id: str, *, catalogue: str = "films", items: list[str] = _RANKED) -> None:
    made = PrecomputedList(
        catalogue=catalogue,
        version="earlier",
        model_fingerprint="f" * 16,
        made_at_ms=int(time.time() * 1000) - 5_000,
        item_ids=tuple(items),
        scores=tuple(-float(rank) for rank in range(1, len(items) + 1)),
    )
    store = open_store(redis.url, options=PATIENT)
    await store.add_records("precomputed", {user_id: [made.packed()]}, keep=2, ttl_s=60)
    await store.close()


async def answer(running: Running, **body: Any) -> dict[str, Any]:
    response = await running.recommend(**body)
    assert response.status_code == 200, response.text
    decoded: dict[str, Any] = response.json()
    return decoded


def ids(body: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in body["items"]]


async def test_it_answers_in_the_models_place(run: Run, redis: RedisServer) -> None:
    engine = FailingEngine()
    await keep(redis, "ann")
    async with run(engine, store=redis.url, precomputed=True, impressions=True) as running:
        before = await answer(running, user_id="ann", history=["2"], k=3)
        engine.failing = True
        now = await answer(running, user_id="ann", history=["2", "1"], k=5)
        metrics = (await running.client.get("/metrics")).text
        known = (await running.client.get("/v1/users/ann")).json()
        forgotten = (await running.client.delete("/v1/users/ann")).json()
        gone = await answer(running, user_id="ann", history=["2", "1"], k=3)
    assert before["source"] == "model"
    assert "precomputed" not in before
    assert (now["source"], now["cached"]) == ("precomputed", False)
    assert ids(now) == ["9", "16", "3", "13", "5"]
    assert [item["rank"] for item in now["items"]] == [1, 2, 3, 4, 5]
    assert [item["score"] for item in now["items"]] == [-1.0, -3.0, -5.0, -6.0, -7.0]
    assert now["items"][1]["duplicates"] == ["17"]
    assert [warning["code"] for warning in now["warnings"]] == ["engine-unavailable"]
    made = now["precomputed"]
    assert 5 <= made["age_s"] < 5 + PATIENCE_S
    assert (made["version"], made["model_fingerprint"]) == ("earlier", "f" * 16)
    assert 'igd_recommendations_total{catalogue="films",source="precomputed",variant=""} 1.0' in metrics
    assert known["precomputed"] == 1
    assert forgotten["forgotten"]["precomputed"] == 1
    assert gone["source"] == "popularity"


async def test_it_answers_in_the_time_that_a_deadline_leaves(run: Run, redis: RedisServer) -> None:
    engine = SlowEngine(60.0)
    await keep(redis, "ann")
    async with run(engine, store=redis.url, precomputed=True) as running:
        engine.slow_down()
        for _ in range(20):  # 25 ms are left, and a busy machine may take them
            late = await answer(running, user_id="ann", history=["2"], k=5, timeout_ms=600)
            if late["source"] == "precomputed":
                break
    assert late["source"] == "precomputed"
    assert [warning["code"] for warning in late["warnings"]] == ["deadline-exceeded"]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"k": 2, "exclude": ["9"]}, ["16", "3"]),
        ({"k": 2, "history": ["9", "16"]}, ["3", "13"]),  # 17 reads as 16 does
        ({"k": 2, "allow": ["7", "14", "2"]}, ["14", "7"]),
        ({"k": 2, "filter": {"genres": ["Horror"]}}, ["13", "14"]),
        ({"k": 8}, ["9", "16", "3", "13", "5", "14", "1", "7"]),
    ],
)
async def test_what_the_request_leaves_out_does_not_come(
    run: Run, redis: RedisServer, body: dict[str, Any], found: list[str]
) -> None:
    engine = FailingEngine()
    await keep(redis, "ann")
    async with run(engine, store=redis.url, precomputed=True) as running:
        engine.failing = True
        late = await answer(running, **{"user_id": "ann", "history": ["2"], **body})
    assert (late["source"], ids(late)) == ("precomputed", found)


async def test_popularity_answers_where_no_list_fills_the_answer(run: Run, redis: RedisServer) -> None:
    engine = FailingEngine()
    await keep(redis, "ann")
    await keep(redis, "bob", catalogue="books")
    asked = {"history": ["2"]}
    async with run(engine, store=redis.url, precomputed=True) as running:
        engine.failing = True
        assert (await answer(running, user_id="ann", k=9, **asked))["source"] == "popularity"
        assert (await answer(running, user_id="bob", k=1, **asked))["source"] == "popularity"
        assert (await answer(running, user_id="eve", k=1, **asked))["source"] == "popularity"
        assert (await answer(running, k=1, **asked))["source"] == "popularity"
        strict = await running.recommend(user_id="ann", k=1, fallback=False, **asked)
    assert strict.status_code == 503
    engine = FailingEngine()
    async with run(engine, store=redis.url) as running:
        engine.failing = True
        assert (await answer(running, user_id="ann", k=1, **asked))["source"] == "popularity", "not asked for"


async def test_a_store_that_hangs_takes_no_more_than_the_time_that_is_left(run: Run, redis: RedisServer) -> None:
    engine = SlowEngine(5.0)
    await keep(redis, "ann")
    async with run(engine, store=redis.url, store_timeout_ms=2000, precomputed=True) as running:
        engine.slow_down()
        redis.pause()
        late = await answer(running, user_id="ann", history=["2"], k=1, timeout_ms=400)
        redis.resume()
    assert late["source"] == "popularity"
    assert late["timings"]["total_ms"] < 400
