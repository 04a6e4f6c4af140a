"""Kinds of events: what they make of a history, what counts as a success, and which are refused."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.settings import Settings, read_settings
from patience import PATIENCE_S

from igd_core.errors import InputError
from igd_core.event_kinds import KINDS, steps

if TYPE_CHECKING:
    from pathlib import Path

    import httpx
    from films import Run, Running

NOON_MS = 1_769_860_800_000


async def did(running: Running, *events: tuple[str, str | None], **more: Any) -> httpx.Response:
    """User u did these things, (item id, kind), one a second."""
    sent = [
        {"user_id": "u", "item_id": item_id, "timestamp": NOON_MS + 1000 * at, **({"kind": kind} if kind else {})}
        for at, (item_id, kind) in enumerate(events)
    ]
    return await running.client.post("/v1/events", json={"events": [each | more for each in sent]})


async def seen_as(running: Running, *history: str) -> bool:
    """Whether u's answer is the one to this history."""
    stored = (await running.recommend(user_id="u", k=5)).json()
    given_ = (await running.recommend(history=list(history), k=5)).json()
    return bool(stored["items"] == given_["items"] and stored["source"] == given_["source"])


async def test_only_kinds_that_make_a_history_do(run: Run) -> None:
    async with run() as running:
        assert (await did(running, ("4", "view"), ("7", "skip"))).json()["accepted"] == 2
        assert (await running.recommend(user_id="u", k=2)).json()["source"] == "popularity"
        await did(running, ("1", "click"), ("4", "view"), ("3", None), ("5", "rating"), ("9", "buy"))
        assert await seen_as(running, "1", "3", "5", "9")
        text = (await running.client.get("/metrics")).text
    assert 'igd_event_kinds_total{kind="view"} 2.0' in text
    assert 'igd_event_kinds_total{kind="click"} 2.0' in text


async def test_click_cart_and_buy_of_one_item_are_one_step(run: Run) -> None:
    async with run() as running:
        await did(running, ("1", "click"), ("3", None), ("3", "cart"), ("9", "view"), ("3", "buy"), ("1", "buy"))
        assert await seen_as(running, "1", "3", "1")


async def test_an_operators_own_kinds_are_taken_and_no_others(run: Run) -> None:
    kinds = {"event_kinds": ("click", "borrow", "return"), "history_kinds": ("borrow",)}
    async with run(**kinds) as running:
        refused = await did(running, ("1", "borrow"), ("1", "buy"))
        assert refused.status_code == 422
        assert refused.json()["field"] == "events[1].kind"
        assert refused.json()["detail"] == (
            "events[1].kind: 'buy' is no kind of event here; known are click, borrow, return"
        )
        assert (await running.recommend(user_id="u", k=2)).json()["source"] == "popularity", "half was stored"
        await did(running, ("1", None), ("2", "borrow"), ("3", "return"))
        assert await seen_as(running, "2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", ""),
        ("kind", "Buy"),
        ("kind", "b" * 33),
        ("kind", "buy\n"),
        ("kind", 3),
        ("value", "12"),
        ("value", 1e13),
        ("value", True),
        ("position", 0),
        ("position", 10_001),
        ("position", 1.5),
        ("request_id", "a b"),
        ("request_id", "x" * 161),
    ],
)
async def test_what_is_out_of_bounds_is_refused_by_name_and_stores_nothing(run: Run, field: str, value: object) -> None:
    async with run() as running:
        refused = await did(running, ("1", "buy"), **{field: value})
        assert (refused.status_code, refused.json()["field"]) == (422, f"events[0].{field}")
        assert (await running.recommend(user_id="u", k=2)).json()["source"] == "popularity"


async def test_one_moment_has_an_event_of_each_kind_and_of_each_but_one(run: Run) -> None:
    async with run() as running:
        first = await did(running, ("1", "click"))
        again = await did(running, ("1", None))
        other = await did(running, ("1", "buy"))
    assert [each.json()["accepted"] for each in (first, again, other)] == [1, 0, 1], (
        "a click is an event without a kind"
    )


async def test_only_kinds_of_success_count_for_an_answer(run: Run) -> None:
    async with run(success_kinds=("buy", "rating")) as running:
        answer = (await running.recommend(history=["1"], k=4)).json()
        shown = [item["item_id"] for item in answer["items"]]
        said = {"request_id": answer["request_id"]}
        await did(running, (shown[0], "click"), (shown[1], "view"), (shown[2], None), **said)
        await did(running, (shown[3], "rating"), **said)
        await until_counted(running, 'igd_attributed_events_total{catalogue="films",variant=""} 1.0')
        await did(running, (shown[0], "buy"), **said)
        await until_counted(running, 'igd_attributed_events_total{catalogue="films",variant=""} 2.0')


async def until_counted(running: Running, line: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while line not in (await running.client.get("/metrics")).text:  # noqa: ASYNC110 - as a scraper
            await asyncio.sleep(0.001)


def test_settings_agree_on_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGD_ARTIFACT", str(tmp_path))
    monkeypatch.setenv("IGD_MODEL", "fake")
    assert read_settings().event_kinds == KINDS
    for variable, value, told in (
        ("EVENT_KINDS", "view,buy", "event_kinds: without 'click'"),
        ("HISTORY_KINDS", "click,borrow", "history_kinds: 'borrow' is not in event_kinds"),
        ("SUCCESS_KINDS", "sale", "success_kinds: 'sale' is not in event_kinds"),
        ("EVENT_KINDS", "click,Buy", "event_kinds.1: "),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(f"IGD_{variable}", value)
            with pytest.raises(InputError, match=told):
                read_settings()
    assert Settings(artifact=tmp_path, model="fake", event_kinds=("click", "borrow")).history_kinds != ()


CHOSEN = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["click", "cart", "buy"])), max_size=30)


@given(CHOSEN)
def test_steps_are_runs_on_one_item_without_a_kind_twice(chosen: list[tuple[str, str]]) -> None:
    begins = steps(chosen)
    assert begins == sorted(set(begins))
    assert bool(begins) == bool(chosen)
    runs = [chosen[begin:end] for begin, end in itertools.pairwise([*begins, len(chosen)])]
    assert [each for run in runs for each in run] == chosen
    for run in runs:
        assert len({item for item, _ in run}) == 1
        assert len({kind for _, kind in run}) == len(run)
    for run, following in itertools.pairwise(runs):
        assert following[0][0] != run[0][0] or following[0][1] in {kind for _, kind in run}, "two steps could be one"


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_histories_of_one_kind_are_as_they_always_were(items: list[str]) -> None:
    assert steps((item, "click") for item in items) == list(range(len(items)))
