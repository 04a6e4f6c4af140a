"""The client against the real server, over a socket."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from film_apps import running
from films import film_artifact
from igd_server.http.keys import KeyFile, make_key, write_keys
from patience import PATIENCE_S
from sockets import listening

from igd_core.client import Event, Item, RecommendationClient, Recommended
from igd_core.client.answers import sent_filter
from igd_core.errors import ApiProblem, InputError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from igd_server.app import Apps

    from igd_core.catalogue.tokenization import TitleTokenizer

    Serve = Callable[..., AbstractAsyncContextManager[tuple[str, Apps]]]


@pytest.fixture
def serve(tokenizer: TitleTokenizer, tmp_path: Path) -> Serve:
    @contextlib.asynccontextmanager
    async def serving(**settings: Any) -> AsyncIterator[tuple[str, Apps]]:
        async with (
            running(film_artifact(tokenizer), tokenizer, tmp_path, **settings) as apps,
            listening(apps.main) as port,
        ):
            yield f"http://127.0.0.1:{port}", apps

    return serving


def slow_engine(apps: Apps, delay_s: float) -> None:
    apps.deployment.serving["films"].recommender.engine._delay_s = delay_s  # type: ignore[attr-defined]


async def test_an_answer_comes_back_whole(serve: Serve) -> None:
    async with serve() as (url, _), RecommendationClient(url) as client:
        answer = await client.recommend(history=["1", "nobody's"], k=3, explain=True)
        async with httpx.AsyncClient(base_url=url) as http:
            raw = (await http.post("v1/recommendations", json={"history": ["1"], "k": 3})).json()
        served = await client.catalogues()
        over_children = await client.recommend(history=["1"], k=3, normalise="children", alpha=0.0)
    assert {item.probability for item in answer.items} == {None}
    assert [math.log(item.probability or 0) for item in over_children.items] == pytest.approx(
        [item.score for item in over_children.items]
    )
    assert isinstance(answer, Recommended)
    assert [(item.item_id, item.title, item.rank, item.score) for item in answer.items] == [
        (item["item_id"], item["title"], item["rank"], item["score"]) for item in raw["items"]
    ]
    assert (answer.source, answer.catalogue, answer.version) == ("model", "films", raw["version"])
    assert answer.normalise == raw["normalise"] == "vocabulary"
    assert all(isinstance(item, Item) and item.explanation for item in answer.items)
    assert all(token.logprob is not None for token in answer.items[0].explanation)
    total = sum((token.logprob or 0) * token.weight for token in answer.items[0].explanation)
    assert total == pytest.approx(answer.items[0].score)
    assert [(warned.code, warned.count, warned.sample) for warned in answer.warnings] == [
        ("unknown-items", 1, ("nobody's",))
    ]
    assert [catalogue["name"] for catalogue in served] == ["films"]


async def test_events_are_recorded_once_asked_for_and_forgotten(serve: Serve) -> None:
    async with serve(impressions=True) as (url, _), RecommendationClient(url) as client:
        noon = datetime(2026, 1, 1, tzinfo=UTC)
        events = [
            Event(user_id="a/b c", item_id="1", timestamp=noon),
            Event(user_id="a/b c", item_id="2", timestamp=noon, kind="buy", value=12.5, position=3),
        ]
        first = await client.record(events)
        again = await client.record(events)
        known = await client.recommend(user_id="a/b c", k=2)
        async with asyncio.timeout(PATIENCE_S):
            while not (on_record := await client.known("a/b c")).impressions:  # noqa: ASYNC110 - written behind the answer
                await asyncio.sleep(0.01)
        forgotten = await client.forget("a/b c")
        nothing = await client.known("a/b c")
        unknown = await client.recommend(user_id="a/b c", k=2)
    assert ((first.accepted, first.duplicates), (again.accepted, again.duplicates)) == ((2, 0), (0, 2))
    assert (known.source, unknown.source) == ("model", "popularity")
    assert {(each.timestamp, each.history) for each in on_record.events} == {(noon, True)}
    assert {each.item_id: (each.kind, each.value, each.position) for each in on_record.events} == {
        "1": ("click", None, None),
        "2": ("buy", 12.5, 3),
    }
    (shown,) = on_record.impressions
    assert shown.items == tuple((item.item_id, item.score) for item in known.items)
    assert (shown.request_id, shown.source) == (known.request_id, known.source)
    assert (forgotten.events, forgotten.impressions) == (2, 1)
    assert (nothing.events, nothing.impressions, nothing.answers) == ((), (), 0)


async def test_a_batch_gives_each_request_its_answer_or_its_problem(serve: Serve) -> None:
    async with serve() as (url, _), RecommendationClient(url) as client:
        good, bad = await client.recommend_many([{"history": ["1"], "k": 2}, {"history": ["1"], "k": 0}])
    assert isinstance(good, Recommended)
    assert len(good.items) == 2
    assert isinstance(bad, ApiProblem)
    assert (bad.status, bad.kind, bad.field) == (422, "invalid-field", "k")


async def test_a_wrong_field_is_named_and_not_asked_again(serve: Serve) -> None:
    class Counting(httpx.AsyncHTTPTransport):
        requests = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.requests += 1
            return await super().handle_async_request(request)

    transport = Counting()
    async with serve() as (url, _), RecommendationClient(url, transport=transport) as client:
        with pytest.raises(ApiProblem, match="alpha") as caught:
            await client.recommend(history=["1"], alpha=7)
    assert transport.requests == 1
    assert (caught.value.status, caught.value.kind, caught.value.field) == (422, "invalid-field", "alpha")


async def test_a_key_is_sent_and_its_lack_is_told(serve: Serve, tmp_path: Path) -> None:
    key = make_key("shop", frozenset({"recommend"}), None)
    write_keys(tmp_path / "keys.json", KeyFile(keys=(key.stored,)))
    async with serve(keys_file=tmp_path / "keys.json") as (url, _):
        async with RecommendationClient(url, key=key.token) as client:
            assert (await client.recommend(history=["1"])).items
            with pytest.raises(ApiProblem) as forbidden:
                await client.record([Event(user_id="u", item_id="1", timestamp=datetime.now(UTC))])
        async with RecommendationClient(url) as client:
            with pytest.raises(ApiProblem) as unknown:
                await client.recommend(history=["1"])
    assert (forbidden.value.status, unknown.value.status, unknown.value.kind) == (403, 401, "unauthenticated")


async def test_after_429_it_waits_as_long_as_it_was_told(serve: Serve) -> None:
    async with serve(rate_limit="1/3 second") as (url, _), RecommendationClient(url, timeout_s=40, tries=9) as client:
        seconds = []
        for item in "1234":  # one of them may come just as a window ends, not each
            start = time.monotonic()
            assert (await client.recommend(history=[item])).items
            seconds.append(time.monotonic() - start)
        assert max(seconds) > 0.9  # told in whole seconds


async def test_a_pause_that_does_not_fit_is_not_waited_for(serve: Serve) -> None:
    rate = "1/999999 day"  # windows begin with the epoch's: one that ends soon is told to wait less
    async with serve(rate_limit=rate) as (url, _), RecommendationClient(url, timeout_s=40.0) as client:
        await client.recommend(history=["1"])
        start = time.monotonic()
        with pytest.raises(ApiProblem) as caught:
            await client.recommend(history=["2"])
        assert time.monotonic() - start < 20  # where it waits, it does so to the end of its 40 s
    assert (caught.value.status, caught.value.kind) == (429, "rate-limited")
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 60


async def test_an_overloaded_server_is_asked_again(serve: Serve) -> None:
    async with serve(max_running=1, max_waiting=0) as (url, apps):
        slow_engine(apps, 0.5)
        async with RecommendationClient(url, timeout_s=30.0, tries=20) as client:
            answers = await asyncio.gather(*(client.recommend(history=[item]) for item in "123"))
            assert [answer.source for answer in answers] == ["model"] * 3
        async with RecommendationClient(url, tries=1) as hasty:
            results = await asyncio.gather(
                *(hasty.recommend(history=[item]) for item in "4567"), return_exceptions=True
            )
    problems = [result for result in results if isinstance(result, ApiProblem)]
    assert problems
    assert {(problem.status, problem.kind) for problem in problems} == {(503, "overloaded")}


async def test_time_runs_out_here_and_there(serve: Serve) -> None:
    async with serve() as (url, apps):
        slow_engine(apps, 60.0)
        async with RecommendationClient(url) as client:
            assert (await client.recommend(history=["1"], timeout_ms=300)).source == "popularity"
            with pytest.raises(ApiProblem) as late:
                await client.recommend(history=["1"], timeout_ms=300, fallback=False)
        async with RecommendationClient(url, timeout_s=0.3) as client:
            with pytest.raises(ServerUnreachable, match=r"no answer within 0\.3 s"):
                await client.recommend(history=["1"])
    assert (late.value.status, late.value.kind) == (504, "deadline-exceeded")


async def test_a_server_that_is_not_there_yet_is_x_it_is(serve: Serve) -> None:
    async with serve() as (url, _):
        pass
    async with RecommendationClient(url, timeout_s=5.0, tries=2) as client:
        with pytest.raises(ServerUnreachable, match="POST v1/recommendations: "):
            await client.recommend(history=["1"])


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_proxys_pause_counts_too(as_date: bool) -> None:
    asked: list[float] = []

    def busy_at_first(_: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        if len(asked) > 1:
            return httpx.Response(200, json={"catalogues": []})
        # A date has whole seconds: 2 to 3 s ahead of now.
        pause = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True) if as_date else "2"
        return httpx.Response(503, text="<html>", headers={"Retry-After": pause})

    async with RecommendationClient("http://proxy", transport=httpx.MockTransport(busy_at_first)) as client:
        assert await client.catalogues() == []
    assert asked[1] - asked[0] > 1.5


async def test_an_answer_that_is_no_json_is_said_to_be_none() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(502, text="<html>"))
    async with RecommendationClient("http://proxy", transport=transport) as client:
        with pytest.raises(ApiProblem, match="502 not-json"):
            await client.catalogues()


@pytest.mark.parametrize(("settings", "message"), [({"tries": 0}, "tries: 0"), ({"timeout_s": 0}, "timeout_s: 0")])
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RecommendationClient("http://x", **settings)


async def test_a_filter_is_sent_with_operators_and_warned_about(serve: Serve) -> None:
    """Films are of 1990 on, one a year."""
    wanted = {"year": {"gte": 1992, "lt": 1996, "none_of": (1993, 1066)}}
    async with serve() as (url, _), RecommendationClient(url) as client:
        answer = await client.recommend(history=["19"], k=5, filter=wanted)
        (many,) = await client.recommend_many([{"history": ["19"], "k": 5, "filter": wanted}])
        with pytest.raises(ApiProblem, match=r"'1992' is no integer.* the attribute is integer") as caught:
            await client.recommend(filter={"year": "1992"})
    assert sorted(item.item_id for item in answer.items) == ["3", "5", "6"]
    assert isinstance(many, Recommended)
    assert many.items == answer.items
    (warning,) = answer.warnings
    assert (warning.code, warning.field, warning.sample) == ("unknown-values", "filter.year", ("1066",))
    assert caught.value.field == "filter.year"


def test_dates_sets_and_tuples_of_a_filter_become_json() -> None:
    noon = datetime(2001, 5, 17, 12, tzinfo=UTC)
    sent = sent_filter({"released": {"gte": noon.date()}, "seen": [noon], "genres": {"none_of": {"x"}}, "n": 1})
    assert isinstance(sent, dict)
    assert sent["released"] == {"gte": "2001-05-17"}
    assert datetime.fromisoformat(sent["seen"][0]) == noon
    assert (sent["genres"], sent["n"]) == ({"none_of": ["x"]}, 1)
