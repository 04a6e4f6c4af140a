from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from factories import EOS
from films import GENRES, HOSTILE_TITLE, ITEM_IDS, NUM_ITEMS, TITLES, RecordingEngine
from igd_server.api.schemas import RecommendationRequest, RecommendationResponse
from igd_server.catalogues.served import ServedCatalogue
from igd_server.catalogues.titles import TitleSearch
from igd_server.recommend import service as recommending
from igd_server.recommend.admission import Admission
from igd_server.recommend.resolve import Asked, resolve
from igd_server.settings import Settings
from igd_server.variants import Variant

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.items import Catalogue
from igd_core.engines.fake import FakeEngine
from igd_core.errors import QueryError
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from films import Run

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.fake import FakeSession
    from igd_core.search.fairness import Turn
    from igd_core.search.session import Scoring


def ids(body: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in body["items"]]


async def test_an_answer_says_what_ranked_which_items_and_what_it_cost(run: Run) -> None:
    async with run() as running:
        response = await running.recommend(history=["1", "3"], k=5)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {
        *("request_id", "catalogue", "version", "model", "model_fingerprint", "source", "normalise"),
        *("cached", "items", "timings"),
    }
    assert body["cached"] is False
    assert (body["catalogue"], body["model"], body["source"]) == ("films", "fake", "model")
    assert [item["rank"] for item in body["items"]] == [1, 2, 3, 4, 5]
    assert [item["title"] for item in body["items"]] == [TITLES[ITEM_IDS.index(item_id)] for item_id in ids(body)]
    scores = [item["score"] for item in body["items"]]
    assert scores == sorted(scores, reverse=True)
    timings = body["timings"]
    assert set(timings) == {
        "total_ms", "queue_ms", "model_ms", "rounds", "prompt_tokens", "cached_tokens", "model_tokens"
    }  # fmt: skip
    assert timings["rounds"] >= 1
    assert timings["model_tokens"] > timings["prompt_tokens"] > 0


async def test_an_answer_is_written_as_it_is_documented(run: Run) -> None:
    async with run(variants=(Variant(name="a"),)) as running:
        asked: dict[str, Any] = {"history": ["1", "ghost"], "k": NUM_ITEMS, "beams": NUM_ITEMS}
        answers = [
            (await running.recommend(**asked, explain=explain, exclude_seen=False, forced_weight=weight)).content
            for explain, weight in ((True, 1.0), (True, 0.0), (False, 1.0), (False, 1.0))
        ]
        answers.append((await running.recommend(explain=True)).content)
        answers.append((await running.recommend(history=["1"], normalise="children")).content)
    for answer in answers:
        document = RecommendationResponse.model_validate_json(answer, strict=True)
        assert json.loads(answer) == document.model_dump(exclude_none=True), "a field that is not in the document"
    found = [RecommendationResponse.model_validate_json(answer) for answer in answers]
    # All that may be absent was there, and was absent elsewhere: or this test would show nothing.
    tokens = [token for item in found[1].items for token in item.explanation or ()]
    assert {token.logprob is None for token in tokens} == {True, False}
    assert {item.duplicates is None for item in found[0].items} == {True, False}
    assert [answer.items[0].explanation is None for answer in found] == [False, False, True, True, True, True]
    assert [answer.items[0].probability is None for answer in found] == [True] * 5 + [False]
    assert [answer.warnings is None for answer in found] == [False] * 4 + [True] * 2
    assert [answer.cached for answer in found] == [False, False, False, True, False, False]


async def test_the_answer_is_the_recommenders_own(run: Run) -> None:
    asked: dict[str, Any] = {
        "k": 7, "alpha": 0.4, "beams": 20, "temperature": 0.7, "length_penalty": 0.5, "forced_weight": 0.5
    }  # fmt: skip
    async with run() as running:
        assert running.deployment.current is not None
        expected = await running.deployment.current.recommender.recommend(
            Query(history=[ItemIndex(0), ItemIndex(2)], **asked)
        )
        body = (await running.recommend(history=["1", "3"], **asked)).json()
    assert ids(body) == [ITEM_IDS[item.item] for item in expected.items]
    assert [item["score"] for item in body["items"]] == pytest.approx([item.score for item in expected.items])


async def test_over_children_every_title_has_a_probability_and_no_answer_is_shared_with_the_other_way(run: Run) -> None:
    asked: dict[str, Any] = {"history": ["1"], "k": NUM_ITEMS, "beams": NUM_ITEMS, "exclude_seen": False}
    async with run() as running:
        over_vocabulary, over_children, warm, again = [
            (await running.recommend(**asked, **more)).json()
            for more in (
                {},
                {"normalise": "children"},
                {"normalise": "children", "temperature": 0.5},
                {"normalise": "children", "forced_weight": 0.5},
            )
        ]
    assert [each["cached"] for each in (over_vocabulary, over_children, warm, again)] == [False, False, False, True]
    assert not any("probability" in item for item in over_vocabulary["items"])
    for body in (over_children, warm):
        assert sum(item["probability"] for item in body["items"]) == pytest.approx(1.0, abs=1e-6)
    assert over_children["items"] != warm["items"]
    assert any("duplicates" in item for item in over_children["items"]), "one title, one probability"


@pytest.mark.parametrize("by_default", [True, False])
async def test_an_item_that_reads_like_one_of_the_history_comes_back_only_when_wanted(
    run: Run, by_default: bool
) -> None:
    first, second = (ITEM_IDS[row] for row, title in enumerate(TITLES) if title == "Sabrina")
    asked: dict[str, Any] = {"history": [first], "k": NUM_ITEMS, "beams": NUM_ITEMS}
    async with run(exclude_seen_titles=by_default) as running:
        came = {
            wanted: second in ids((await running.recommend(**asked, **wanted_field(wanted))).json())
            for wanted in (None, True, False)
        }
        # Of the whole list, duplicates too: what is cached for one question is not given to the other.
        again = (await running.recommend(**asked, exclude_seen_titles=not by_default)).json()
    assert came == {None: not by_default, True: False, False: True}
    assert again["cached"] is True


def wanted_field(wanted: bool | None) -> dict[str, bool]:
    return {} if wanted is None else {"exclude_seen_titles": wanted}


async def test_items_of_the_history_come_back_only_when_wanted(run: Run) -> None:
    history = ITEM_IDS[:10]
    async with run() as running:
        new = ids((await running.recommend(history=history, k=9)).json())
        all_of_them = ids((await running.recommend(history=history, k=NUM_ITEMS, exclude_seen=False)).json())
    assert not set(new) & set(history)
    assert set(history) <= set(all_of_them)


async def test_an_allow_list_of_three_with_k_10_returns_exactly_these_three(run: Run) -> None:
    async with run() as running:
        body = (await running.recommend(history=["1"], k=10, allow=["5", "9", "13"])).json()
    assert sorted(ids(body)) == ["13", "5", "9"]
    assert body["source"] == "model"


async def test_filters_keep_what_has_one_of_the_values_in_every_attribute(run: Run) -> None:
    async with run() as running:
        body = (
            await running.recommend(history=["6"], k=20, filter={"genres": ["Sci-Fi", "Horror"], "year": [1990, 2003]})
        ).json()
        single = (await running.recommend(history=["6"], k=20, filter={"genres": "Romance"})).json()
    assert sorted(ids(body)) == ["1", "14"]
    returned = set(ids(single)) | {other for item in single["items"] for other in item.get("duplicates", [])}
    assert returned == {ITEM_IDS[row] for row, genres in enumerate(GENRES) if "Romance" in genres}


async def test_excluded_items_do_not_come_back(run: Run) -> None:
    async with run() as running:
        body = (await running.recommend(history=[], k=3, exclude=["1", "2"])).json()
    assert ids(body) == ["3", "4", "5"]


async def test_items_of_one_title_are_one_answer_that_names_the_others(run: Run) -> None:
    async with run() as running:
        body = (await running.recommend(history=["1"], k=10, allow=["16", "17"])).json()
    assert ids(body) == ["16"]
    assert body["items"][0]["duplicates"] == ["17"]


async def test_an_explanation_adds_up_to_the_score(run: Run) -> None:
    async with run() as running:
        body = (await running.recommend(history=["1"], k=9, beams=20, alpha=0.3, explain=True)).json()
    for item in body["items"]:
        tokens = item["explanation"]
        assert sum(token["logprob"] * token["weight"] for token in tokens) == pytest.approx(item["score"])
        assert "".join(token["token"] for token in tokens) == item["title"] + "\n" + EOS
        assert all(token["weight"] == 1 and token["information_gain"] == 0 for token in tokens if token["forced"])
    async with run() as running:
        plain = (await running.recommend(history=["1"], k=3)).json()
    assert "explanation" not in plain["items"][0]


async def test_by_decisions_alone_what_was_not_computed_is_left_out_of_the_explanation(run: Run) -> None:
    async with run() as running:
        body = (await running.recommend(history=["1"], k=9, beams=20, forced_weight=0, explain=True)).json()
        whole = (await running.recommend(history=["1"], k=9, beams=20, explain=True)).json()
    assert body["timings"]["model_tokens"] < whole["timings"]["model_tokens"]
    for item in body["items"]:
        tokens = item["explanation"]
        assert "logprob" not in tokens[-1], "the end of a title decides nothing"
        counted = [token for token in tokens if not token["forced"]]
        assert sum(token["logprob"] * token["weight"] for token in counted) == pytest.approx(item["score"])
        assert all(token["weight"] == 0 for token in tokens if token["forced"])


@pytest.mark.parametrize("body", [{}, {"history": []}, {"history": ["no", "nor this"]}])
async def test_without_a_known_item_popularity_answers_and_says_so(run: Run, body: dict[str, Any]) -> None:
    async with run() as running:
        answer = (await running.recommend(k=4, explain=True, **body)).json()
    assert answer["source"] == "popularity"
    assert ids(answer) == ["1", "2", "3", "4"]
    assert "explanation" not in answer["items"][0]
    assert answer["timings"]["rounds"] == 0


async def test_unknown_items_are_skipped_and_counted_per_field(run: Run) -> None:
    unknown = [f"no-{number}" for number in range(9)]
    async with run() as running:
        body = (await running.recommend(history=["1", *unknown], allow=["2", "x"], exclude=["y", "y"], k=2)).json()
        clean = (await running.recommend(history=["1"], allow=["2"], k=2)).json()
    assert body["items"] == clean["items"]
    assert [(warning["code"], warning["field"], warning["count"]) for warning in body["warnings"]] == [
        ("unknown-items", "history", 9),
        ("unknown-items", "exclude", 2),
        ("unknown-items", "allow", 1),
    ]
    assert body["warnings"][0]["sample"] == unknown[:5]
    assert body["warnings"][1]["sample"] == ["y"]
    assert "warnings" not in clean


@pytest.mark.parametrize("field", ["history", "exclude", "allow"])
async def test_strict_refuses_unknown_items_and_names_them(run: Run, field: str) -> None:
    async with run() as running:
        response = await running.recommend(**{"history": ["1"], field: ["2", "ghost"], "strict": True})
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert "'ghost'" in response.json()["detail"]


@pytest.mark.parametrize("allow", [[], ["ghost"]])
@pytest.mark.parametrize("history", [["1"], []])
async def test_an_allow_list_without_a_known_item_allows_nothing(
    run: Run, allow: list[str], history: list[str]
) -> None:
    async with run() as running:
        response = await running.recommend(history=history, allow=allow)
    assert response.status_code == 200
    assert response.json()["items"] == []


async def test_k_may_be_as_large_as_the_catalogue(run: Run) -> None:
    async with run() as running:
        too_many = await running.recommend(history=["1"], k=NUM_ITEMS + 1)
        exactly = await running.recommend(history=["1"], k=NUM_ITEMS)
    assert (too_many.status_code, too_many.json()["field"]) == (422, "k")
    assert f"{NUM_ITEMS + 1} items wanted; the catalogue has {NUM_ITEMS}" in too_many.json()["detail"]
    assert exactly.status_code == 200


def test_a_k_that_nobody_asked_for_fits_the_smallest_catalogue(tokenizer: TitleTokenizer) -> None:
    catalogue = Catalogue.build(item_ids=["a", "b"], titles=["A", "B"])
    served = ServedCatalogue(
        name="two",
        recommender=Recommender(build_artifact(catalogue, tokenizer, BuildOptions(smoothing=1.0)), FakeEngine()),
        titles=TitleSearch(catalogue),
        token_texts=tokenizer.token_texts,
        attributes={},
        loaded_at=datetime.now(UTC),
    )

    def k_of(**fields: Any) -> int:
        asked = Asked(
            request=RecommendationRequest(**fields),
            request_id="r",
            caller="",
            variant=None,
            served=served,
            timeout_s=1.0,
            started=0.0,
            deadline=1.0,
            store_by=1.0,
        )
        resolve(asked, Settings(artifact=Path("a"), model="m"))
        return asked.resolved.k

    assert k_of() == 2
    with pytest.raises(QueryError, match="k: 3 items wanted"):
        k_of(k=3)


async def test_a_title_that_holds_a_control_token_and_quotes_reaches_the_model_as_plain_text(
    run: Run, tokenizer: TitleTokenizer, films: Artifact
) -> None:
    engine = RecordingEngine()
    async with run(engine) as running:
        engine.prompts.clear()
        response = await running.recommend(history=["odd/id 20%", "1"], k=3)
        back = (await running.recommend(history=["1"], allow=["odd/id 20%"], explain=True)).json()
    assert response.status_code == 200
    prompt = engine.prompts[0]
    assert tokenizer.eos_id not in prompt
    assert HOSTILE_TITLE in "".join(tokenizer.token_text(token) for token in prompt)
    assert back["items"][0]["title"] == HOSTILE_TITLE
    assert [token["token_id"] == tokenizer.eos_id for token in back["items"][0]["explanation"]].count(True) == 1
    assert films.manifest.eos_id == tokenizer.eos_id


@pytest.mark.parametrize(
    ("broken", "code", "status"),
    [({"timeout_ms": 20}, "deadline-exceeded", 504), ({}, "engine-unavailable", 503)],
)
async def test_when_the_model_gives_no_answer_popularity_does_unless_refused(
    run: Run, broken: dict[str, Any], code: str, status: int
) -> None:
    engine = FakeEngine()
    async with run(engine) as running:
        if broken:
            engine._delay_s = 5.0
        else:
            await engine.close()
        answer = (await running.recommend(history=["1"], k=3, **broken)).json()
        refused = await running.recommend(history=["1"], k=3, fallback=False, **broken)
        metrics = (await running.client.get("/metrics")).text
    assert answer["source"] == "popularity"
    assert ids(answer) == ["2", "3", "4"]  # the history is still left out
    assert [warning["code"] for warning in answer["warnings"]] == [code]
    assert refused.status_code == status
    assert refused.json()["type"] == f"urn:igd:problem:{code}"
    assert ("retry-after" in refused.headers) == (status == 503)
    assert f'igd_fallbacks_total{{reason="{code}"}} 1.0' in metrics
    assert engine.stats().sessions == 0


@pytest.mark.parametrize(("timeout_ms", "most_s"), [(10_000, 9.95), (100, 0.09)])
async def test_the_model_gets_less_than_the_request_has_so_that_popularity_still_comes_in_time(
    run: Run, monkeypatch: pytest.MonkeyPatch, timeout_ms: int, most_s: float
) -> None:
    given: list[float] = []

    class Recording(Admission):
        def slot(self, timeout_s: float, turn: Turn | None = None) -> AbstractAsyncContextManager[float]:  # type: ignore[override]
            given.append(timeout_s)
            return super().slot(timeout_s, turn)

    monkeypatch.setattr("igd_server.app.Admission", Recording)
    async with run() as running:
        await running.recommend(history=["1"], timeout_ms=timeout_ms)
    assert len(given) == 1
    assert given[0] <= most_s


async def test_a_batch_answers_each_request_in_order_and_alone(run: Run) -> None:
    requests = [
        {"history": ["1"], "k": 3},
        {"history": ["1"], "k": 0},
        {"history": ["ghost"], "strict": True},
        "no object",
        {"history": [], "k": 2, "colour": "red"},
        {"history": [], "k": 2},
    ]
    async with run() as running:
        alone = (await running.recommend(**requests[0])).json()  # type: ignore[arg-type]
        response = await running.client.post(
            "/v1/recommendations:batch", json={"requests": requests}, headers={"X-Request-ID": "batch-7"}
        )
    assert response.status_code == 200
    body = response.json()
    assert [result["status"] for result in body["results"]] == [200, 422, 422, 422, 422, 200]
    assert body["results"][0]["recommendation"]["items"] == alone["items"]
    assert [result.get("problem", {}).get("field") for result in body["results"]] == [
        None, "k", "history", "body", "colour", None
    ]  # fmt: skip
    assert body["results"][5]["recommendation"]["source"] == "popularity"
    inner = [(result.get("recommendation") or result["problem"])["request_id"] for result in body["results"]]
    assert inner == [f"batch-7.{position}" for position in range(6)]


class MeetingEngine(FakeEngine):
    """Once ``meeting`` is set, a session opens only when as many are being opened at once."""

    meeting: asyncio.Barrier | None = None

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        if self.meeting is not None:
            await self.meeting.wait()
        return await super().open(version, prompt_ids, scoring)


async def test_a_batch_runs_its_requests_side_by_side(run: Run) -> None:
    engine = MeetingEngine()
    async with run(engine, max_running=4) as running:
        engine.meeting = asyncio.Barrier(4)
        requests = [{"history": [item], "k": 1, "fallback": False} for item in "1234"]
        response = await running.client.post("/v1/recommendations:batch", json={"requests": requests})
    assert [result["status"] for result in response.json()["results"]] == [200] * 4


@pytest.mark.parametrize(("count", "field"), [(0, "requests"), (5, "requests"), (300, "requests")])
async def test_a_batch_is_bounded(run: Run, count: int, field: str) -> None:
    async with run(max_batch=4) as running:
        response = await running.client.post("/v1/recommendations:batch", json={"requests": [{}] * count})
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert str(count) in response.json()["detail"]


@pytest.mark.parametrize(("count", "beside"), [(56, False), (57, True)])
async def test_a_filter_of_many_values_is_checked_beside_the_event_loop(
    run: Run, monkeypatch: pytest.MonkeyPatch, count: int, beside: bool
) -> None:
    threads = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return resolve(*args, **kwargs)

    monkeypatch.setattr(recommending, "resolve", watched)
    async with run() as running:
        years = {"any_of": [*range(1990, 2090)], "none_of": [*range(3000, 3000 + count)]}
        genres = {"none_of": [f"genre {number}" for number in range(100)]}
        answer = await running.recommend(history=["1"], k=2, filter={"year": years, "genres": genres})
    assert len(answer.json()["items"]) == 2
    assert [warning["count"] for warning in answer.json()["warnings"]] == [100 - NUM_ITEMS + count, 100]
    assert [thread != threading.get_ident() for thread in threads] == [beside]
