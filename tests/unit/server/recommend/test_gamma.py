"""An item scorer in the search, as requests, variants and the catalogue ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from films import NUM_ITEMS, app_runner
from igd_server.variants import Variant
from pydantic import ValidationError

from igd_core.scorers.counting import transition_rows
from igd_core.scorers.options import ScorerOptions
from igd_core.scorers.record import ScorerRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from films import Run

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer

VARIANTS = (
    Variant(name="plain"),
    Variant(name="mixed", weight=0, gamma=0.5),
    Variant(name="shares", weight=0, gamma=0.5, mixture="linear"),
    Variant(name="grows", weight=0, gamma=((0, 0.0), (2, 0.5), (3, 0.75))),
)


@pytest.fixture
def scored(films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path) -> Callable[..., Run]:
    """Apps on the films with a scorer that knows that each third film follows the one before it."""

    def runner(**options: Any) -> Run:
        rows = transition_rows([np.arange(0, NUM_ITEMS, 3, dtype=np.int32)], num_items=NUM_ITEMS, most=5)
        record = ScorerRecord.of(ScorerOptions(kind="transitions", **({"gamma": 0.0} | options)), len(rows.scorer_item))
        manifest = replace(films.manifest, scorer=record)
        scorer = record.scorer(rows, sha256="of these rows")
        return app_runner(
            replace(films, version=manifest.version, manifest=manifest, scorer=scorer), tokenizer, tmp_path
        )

    return runner


async def test_gamma_is_the_requests_then_the_variants_then_the_catalogues(scored: Callable[..., Run]) -> None:
    async with scored(gamma=0.25)(variants=VARIANTS) as running:

        async def items(**body: Any) -> Any:
            answer = await running.recommend(history=["1", "4"], k=5, **body)
            assert answer.status_code == 200, answer.text
            answered = answer.json()
            assert "warnings" not in answered
            over_children = answered["normalise"] == "children"
            assert all(("probability" in item) == over_children for item in answered["items"])
            return answered["items"]

        alone = await items(gamma=0)
        assert await items() == await items(gamma=0.25) != alone
        assert await items(variant="mixed") == await items(gamma=0.5) != await items()
        assert await items(variant="mixed", gamma=0) == alone
        linear = await items(variant="shares")
        assert (
            linear
            == await items(gamma=0.5, mixture="linear")
            == await items(gamma=0.5, mixture="linear", normalise="children")
        )
        assert all("probability" in item for item in linear)
        assert await items(variant="shares", mixture="log-linear") == await items(gamma=0.5)
        assert (await running.recommend(history=["1"], gamma=0)).json()["normalise"] == "vocabulary"
        assert (await running.recommend(history=["1"], gamma=0.5)).json()["normalise"] == "children"
        over_vocabulary = await items(variant="shares", normalise="vocabulary")
        assert over_vocabulary == await items(gamma=0.5, normalise="vocabulary") != await items(gamma=0.5)
        assert all("probability" in item for item in await items(gamma=0.5)), "over children, unless somebody says"
        assert not any("probability" in item for item in over_vocabulary)
        (first, *_) = await items(gamma=1)
        assert first["item_id"] == "7", "what followed the fourth film"


async def test_an_answer_of_another_gamma_or_mixture_is_not_taken_from_the_cache(scored: Callable[..., Run]) -> None:
    asked: tuple[dict[str, Any], ...] = ({}, {"gamma": 0.5}, {"gamma": 0.6}, {"gamma": 0.5, "mixture": "linear"})
    async with scored()() as running:
        for _ in range(2):
            answers = [(await running.recommend(history=["1"], **more)).json() for more in asked]
        assert [answer["cached"] for answer in answers] == [True] * 4
        assert len({answer["items"][0]["score"] for answer in answers}) == 4
        assert (await running.recommend(history=["1"], gamma=0)).json()["cached"], "the catalogue's own is 0"


async def test_gamma_by_the_length_of_the_history_is_the_default_and_the_answer_says_which_it_was(
    scored: Callable[..., Run],
) -> None:
    async with scored(gamma=((0, 0.25), (3, 0.5)), mixture="linear")(variants=VARIANTS) as running:

        async def answer(*history: str, **body: Any) -> Any:
            return (await running.recommend(history=list(history), k=5, **body)).json()

        short, long = await answer("1", "4"), await answer("1", "4", "10")
        assert [(each["gamma"], each["mixture"]) for each in (short, long)] == [(0.25, "linear"), (0.5, "linear")]
        again = await answer("1", "4", gamma=0.25)
        assert (again["cached"], again["items"]) == (True, short["items"])
        assert (await answer("1", "4", gamma=0.5))["items"] != short["items"]
        assert (await answer("1", "4", "no-such"))["gamma"] == 0.25, "what the catalogue lacks counts nothing"
        grown = [await answer(*["1", "4", "10"][:length], variant="grows") for length in (1, 2, 3)]
        assert [each["gamma"] for each in grown] == [0.0, 0.5, 0.75]
        assert "mixture" not in grown[0]
        assert (await answer("1", "4", variant="grows", gamma=1))["gamma"] == 1.0
        assert not {"gamma", "mixture", "normalise"} & (await answer()).keys(), "popularity answered"


@pytest.mark.parametrize("by_setting", [False, True])
async def test_what_a_variant_or_the_server_says_of_normalisation_holds_beside_a_linear_mixture(
    scored: Callable[..., Run], *, by_setting: bool
) -> None:
    """A linear mixture overrules the vocabulary alone, and where there is no mixture nothing does."""
    said: dict[str, Any] = {} if by_setting else {"normalise": "children"}
    variants = (
        Variant(name="grows", mixture="linear", gamma=((0, 0.0), (2, 0.5)), **said),
        Variant(name="alone", weight=0, gamma=0.0, **said),
    )
    settings = {"normalise": "children"} if by_setting else {}
    async with scored()(variants=variants, **settings) as running:
        for body in (
            {"variant": "grows"},
            {"variant": "grows", "mixture": "log-linear"},
            {"variant": "alone", "mixture": "linear"},
        ):
            for history, gamma in ((["1"], 0.0), (["1", "4"], 0.5)):
                answer = (await running.recommend(history=history, k=3, **body)).json()
                assert answer["normalise"] == "children", (body, history)
                assert all("probability" in item for item in answer["items"])
                assert answer["gamma"] == (gamma if body["variant"] == "grows" else 0.0)
    async with scored(gamma=0.5)(normalise="vocabulary") as running:
        assert (await running.recommend(history=["1"], mixture="linear")).json()["normalise"] == "children"
        assert (await running.recommend(history=["1"], mixture="linear", gamma=0)).json()["normalise"] == "vocabulary"


async def test_a_stored_history_counts_as_one_that_is_sent(scored: Callable[..., Run]) -> None:
    async with scored(gamma=((0, 0.25), (2, 0.5)))() as running:
        for length, gamma in ((1, 0.25), (2, 0.5)):
            event = {"user_id": "u", "item_id": str(length), "timestamp": f"2026-01-01T00:00:0{length}Z"}
            sent = await running.client.post("/v1/events", json={"events": [event]})
            assert sent.status_code < 300, sent.text
            assert (await running.recommend(user_id="u")).json()["gamma"] == gamma


async def test_an_explanation_tells_the_scorers_part_and_adds_up(scored: Callable[..., Run]) -> None:
    async with scored()() as running:
        for more in ({"gamma": 0.5}, {"gamma": 0.5, "mixture": "linear"}):
            answer = (await running.recommend(history=["1"], k=3, explain=True, **more)).json()
            for item in answer["items"]:
                assert sum(token["score"] for token in item["explanation"]) == pytest.approx(item["score"])
                assert all(token["prior_logprob"] <= 0 for token in item["explanation"])
        plain = (await running.recommend(history=["1"], k=3, explain=True)).json()
        assert not {"score", "prior_logprob"} & {name for token in plain["items"][0]["explanation"] for name in token}


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        ({"gamma": 1.1}, "gamma", "less than or equal to 1"),
        ({"gamma": -0.1}, "gamma", "greater than or equal to 0"),
        ({"gamma": "0.5"}, "gamma", "valid number"),
        ({"mixture": "cubic"}, "mixture", "'log-linear' or 'linear'"),
        (
            {"gamma": 0.5, "mixture": "linear", "normalise": "vocabulary"},
            "mixture",
            "is of probabilities over children",
        ),
    ],
)
async def test_a_mixture_that_cannot_be_is_a_problem_that_names_the_field(
    scored: Callable[..., Run], body: dict[str, Any], field: str, detail: str
) -> None:
    async with scored()() as running:
        answer = await running.recommend(history=["1"], **body)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert field in str(answer.json()["errors"] if "errors" in answer.json() else answer.json())
        assert detail in answer.text


async def test_without_a_scorer_a_requests_gamma_is_refused_and_a_variants_left_out_with_a_warning(run: Run) -> None:
    async with run(variants=VARIANTS) as running:
        refused = await running.recommend(history=["1"], gamma=0.5)
        assert refused.status_code == 422
        assert "gamma: 0.5, and this version of catalogue 'films' holds no item scorer" in refused.text
        plain = (await running.recommend(history=["1"], gamma=0)).json()
        mixed = (await running.recommend(history=["1"], variant="mixed")).json()
        assert mixed["items"] == plain["items"]
        assert "gamma" not in mixed
        grown = [(await running.recommend(history=["1"] * each, variant="grows")).json() for each in (1, 2)]
        assert ["warnings" in each for each in grown] == [False, True], "its gamma is 0 after one interaction"
        (warning,) = mixed["warnings"]
        assert (warning["code"], warning["field"]) == ("scorer-unavailable", "gamma")
        assert warning["detail"].startswith("variant 'mixed' has gamma 0.5, and")


async def test_so_it_is_with_a_linear_mixture(run: Run) -> None:
    variants = (*VARIANTS, Variant(name="sums", weight=0, mixture="linear", normalise="children"))
    async with run(variants=variants) as running:

        async def answer(**body: Any) -> Any:
            return (await running.recommend(history=["1"], **body)).json()

        refused = await running.recommend(history=["1"], mixture="linear")
        assert refused.status_code == 422
        assert "mixture: linear, and this version of catalogue 'films' holds no item scorer" in refused.text
        plain, warned = await answer(normalise="children"), await answer(variant="sums")
        assert warned["items"] == plain["items"]
        (warning,) = warned["warnings"]
        assert (warning["code"], warning["field"]) == ("scorer-unavailable", "mixture")
        assert [each["field"] for each in (await answer(variant="shares"))["warnings"]] == ["gamma"], "said once"
        for harmless in ({"gamma": 0, "mixture": "linear"}, {"gamma": 0, "variant": "sums"}, {"mixture": "log-linear"}):
            assert "warnings" not in await answer(**harmless)


async def test_without_a_history_popularity_answers_whatever_gamma(scored: Callable[..., Run]) -> None:
    async with scored(gamma=0.5)() as running:
        answers = [(await running.recommend(history=history, gamma=0.7)).json() for history in ([], ["no-such"])]
        assert [answer["source"] for answer in answers] == ["popularity", "popularity"]


def test_a_variant_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="mixture 'linear' is of probabilities over children"):
        Variant(name="odd", mixture="linear", normalise="vocabulary")
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Variant(name="odd", gamma=1.5)
    with pytest.raises(ValidationError, match=r"gamma\n.*is 1\.5 from 3 interactions on; 0 to 1 can be"):
        Variant.model_validate_json('{"name": "odd", "gamma": [[0, 0.5], [3, 1.5]]}')
