"""Requests that name a user or a variant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from films import ITEM_IDS, RecordingEngine
from igd_server.variants import Variant, assign

from igd_core.engines.fake import FakeEngine
from igd_core.errors import InputError
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    from films import Run, Running

VARIANTS = (
    Variant(name="plain", weight=1, alpha=0.0),
    Variant(name="strong", weight=3, alpha=0.9, beams=4),
    Variant(name="trial", weight=0),
    Variant(name="decisions", weight=0, forced_weight=0.0),
    Variant(name="shares", weight=0, normalise="children", temperature=0.5),
)


def ids(body: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in body["items"]]


async def happened(running: Running, user_id: str, *item_ids: str) -> None:
    events = [
        {"user_id": user_id, "item_id": item_id, "timestamp": 1_700_000_000 + at} for at, item_id in enumerate(item_ids)
    ]
    assert (await running.client.post("/v1/events", json={"events": events})).status_code == 200


async def test_a_user_id_alone_uses_the_stored_history_and_a_history_goes_before_it(run: Run) -> None:
    async with run() as running:
        await happened(running, "u", "1", "3", "5")
        stored = (await running.recommend(user_id="u", k=5)).json()
        given = (await running.recommend(history=["1", "3", "5"], k=5)).json()
        both = (await running.recommend(user_id="u", history=["2"], k=5)).json()
        empty = (await running.recommend(user_id="u", history=[], k=5)).json()
        stranger = (await running.recommend(user_id="who", k=5)).json()
    assert stored["items"] == given["items"]
    assert both["items"] != stored["items"]
    assert not set(ids(stored)) & {"1", "3", "5"}
    assert empty["source"] == stranger["source"] == "popularity"
    assert "warnings" not in stranger


async def test_all_of_a_stored_history_counts_though_requests_may_send_less(run: Run) -> None:
    engine = RecordingEngine()
    async with run(engine, max_history_items=3) as running:
        await happened(running, "u", *ITEM_IDS[:12])
        body = (await running.recommend(user_id="u", k=5)).json()
        refused = await running.recommend(history=ITEM_IDS[:4])
    assert not set(ids(body)) & set(ITEM_IDS[:12])
    assert refused.status_code == 422


async def test_only_the_latest_events_are_kept(run: Run) -> None:
    async with run(history_max_events=4) as running:
        await happened(running, "u", *ITEM_IDS[:10])
        back = set(ids((await running.recommend(user_id="u", k=16, beams=40)).json()))
    assert set(ITEM_IDS[:6]) <= back
    assert not set(ITEM_IDS[6:10]) & back


async def test_every_user_has_a_variant_and_always_the_same(run: Run) -> None:
    async with run(variants=VARIANTS) as running:
        names = {}
        for user_id in (f"user-{number}" for number in range(12)):
            answers = [(await running.recommend(user_id=user_id, history=["1"], k=3)).json() for _ in range(2)]
            assert len({answer["variant"] for answer in answers}) == 1
            names[user_id] = answers[0]["variant"]
            assert names[user_id] == assign(user_id, VARIANTS).name
        nobody = (await running.recommend(history=["1"], k=3)).json()
        metrics = (await running.client.get("/metrics")).text
    assert set(names.values()) == {"plain", "strong"}
    assert nobody["variant"] == "plain"
    assert 'igd_recommendations_total{catalogue="films",source="model",variant="strong"}' in metrics


async def test_a_variant_gives_what_the_request_leaves_open(run: Run) -> None:
    async with run(variants=VARIANTS) as running:

        async def items(**body: Any) -> Any:
            return (await running.recommend(history=["1", "3"], k=3, explain=True, **body)).json()["items"]

        assert await items(variant="strong") == await items(variant="trial", alpha=0.9, beams=4)
        assert await items(variant="strong", alpha=0.1) == await items(variant="trial", alpha=0.1, beams=4)
        assert await items(variant="strong", beams=10) == await items(variant="plain", alpha=0.9)
        assert await items(variant="trial") == await items(variant="plain", alpha=0.0), "the catalogue's own"
        assert await items(variant="strong") != await items(variant="plain")
        assert await items(variant="decisions") == await items(variant="trial", forced_weight=0)
        assert await items(variant="decisions", forced_weight=1) == await items(variant="trial")
        assert await items(variant="decisions") != await items(variant="trial")
        assert await items(variant="shares") == await items(variant="trial", normalise="children", temperature=0.5)
        assert await items(variant="shares", temperature=1.0) == await items(variant="trial", normalise="children")
        assert await items(variant="shares", normalise="vocabulary") == await items(variant="trial", temperature=0.5)


@pytest.mark.parametrize("tuned", [None, Normalisation(normalise="children", temperature=0.5)])
@pytest.mark.parametrize("default", [None, "vocabulary", "children"])
async def test_scores_follow_the_model_unless_server_variant_or_request_say_otherwise(
    run: Run, tuned: Normalisation | None, default: str | None
) -> None:
    async with run(FakeEngine(tuned_for=tuned), variants=VARIANTS, normalise=default) as running:

        async def has_probability(**body: Any) -> bool:
            return "probability" in (await running.recommend(history=["1"], k=1, **body)).json()["items"][0]

        assert await has_probability() == ((default or ("children" if tuned else "vocabulary")) == "children")
        assert await has_probability(variant="shares")
        assert not await has_probability(variant="shares", normalise="vocabulary")
        assert await has_probability(variant="plain", normalise="children")


async def test_a_variant_can_be_named_even_one_that_nobody_draws(run: Run) -> None:
    async with run(variants=VARIANTS) as running:
        named = (await running.recommend(user_id="user-1", history=["1"], variant="trial")).json()
        unknown = await running.recommend(history=["1"], variant="tiral")
        batch = (
            await running.client.post(
                "/v1/recommendations:batch",
                json={"requests": [{"history": ["1"], "variant": "strong"}, {"history": ["1"], "variant": "x"}]},
            )
        ).json()
    assert named["variant"] == "trial"
    assert unknown.status_code == 422
    assert unknown.json()["field"] == "variant"
    assert "this server has: plain, strong, trial, decisions" in unknown.json()["detail"]
    assert batch["results"][0]["recommendation"]["variant"] == "strong"
    assert batch["results"][1]["problem"]["field"] == "variant"


async def test_a_catalogue_can_be_named(run: Run) -> None:
    async with run(
        variants=(Variant(name="lost", catalogue="music"), Variant(name="found", catalogue="films"))
    ) as running:
        assert (await running.recommend(catalogue="films", variant="lost")).status_code == 200
        assert (await running.recommend(variant="found")).status_code == 200
        for body in ({"catalogue": "music"}, {"variant": "lost"}):
            refused = await running.recommend(**body)
            assert refused.status_code == 422
            assert refused.json()["field"] == "catalogue"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"name": "v", "adapter": "lora"}, "variants: 'v' names the adapter 'lora'; this server has: none"),
    ],
)
async def test_a_variant_that_cannot_be_served_stops_the_start(run: Run, variant: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        async with run(variants=(Variant(**variant),)):
            pass


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": "x" * 257}, "user_id"),
        ({"user_id": "a\tb"}, "user_id"),
        ({"user_id": "\x9f"}, "user_id"),
        ({"user_id": 5}, "user_id"),
        ({"variant": ""}, "variant"),
        ({"catalogue": "x" * 65}, "catalogue"),
    ],
)
async def test_names_are_checked(run: Run, body: dict[str, Any], field: str) -> None:
    async with run() as running:
        response = await running.recommend(**body)
    assert response.status_code == 422
    assert response.json()["field"] == field
