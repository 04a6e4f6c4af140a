"""A model that computes no numbers: popularity or 503, counted, told once, never kept, never ready with it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from films import NUM_ITEMS
from igd_server.catalogues.opening import OpenedModel, warmed

from igd_core.engines.fake import FakeEngine
from igd_core.errors import EngineError, ModelFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from films import Run

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring


class SpoilableEngine(FakeEngine):
    """Computes no numbers when told so, or with one of its adapters."""

    def __init__(self, *, spoiled: bool = False, adapters: Sequence[str] = (), bad_adapter: str | None = None) -> None:
        super().__init__(adapters=dict.fromkeys(adapters))  # type: ignore[arg-type]
        self.spoiled = spoiled
        self.bad_adapter = bad_adapter
        self.asked = 0

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        self.asked += 1
        if self.spoiled or (scoring.adapter is not None and scoring.adapter == self.bad_adapter):
            raise ModelFault("model fake: 3 of 3 scores are not finite")
        return await super().open(version, prompt_ids, scoring)


class ShortEngine(FakeEngine):
    """Takes few tokens, or as many as it is told."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    @property
    def context_tokens(self) -> int:
        return self.tokens


async def test_a_fault_is_answered_as_the_request_wants_counted_told_once_and_never_kept(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    engine = SpoilableEngine()
    async with run(engine) as running:
        engine.spoiled = True
        engine.asked = 0
        with caplog.at_level(logging.ERROR, logger="igd.server"):
            for _ in range(2):
                body = (await running.recommend(history=["1", "3"], k=5)).json()
                assert (body["source"], body["cached"], len(body["items"])) == ("popularity", False, 5)
                assert [warning["code"] for warning in body["warnings"]] == ["engine-unavailable"]
            refused = await running.recommend(history=["1", "3"], k=5, fallback=False)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:igd:problem:engine-unavailable")
        assert engine.asked == 3, "asked anew each time"
        metrics = (await running.client.get("/metrics")).text
        assert 'igd_model_faults_total{adapter="",model="fake"} 3.0' in metrics
        told = [record for record in caplog.records if record.getMessage() == "model_fault"]
        assert [record.fields["model"] for record in told] == ["fake"]  # type: ignore[attr-defined]
        engine.spoiled = False
        assert (await running.recommend(history=["1", "3"], k=5)).json()["source"] == "model"


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(SpoilableEngine(spoiled=True), id="the model"),
        pytest.param(SpoilableEngine(adapters=("good", "bad"), bad_adapter="bad"), id="one of its adapters"),
    ],
)
async def test_warming_judges_what_it_gets(engine: SpoilableEngine, films: Artifact, tokenizer: TitleTokenizer) -> None:
    model = OpenedModel(engine=engine, token_texts=tokenizer.token_texts, adapters=tuple(engine._adapters))
    with pytest.raises(EngineError, match="not finite"):
        await warmed(films, model, name="films")
    assert engine.stats().versions == ()


async def test_a_model_with_no_room_for_any_history_is_not_served(films: Artifact, tokenizer: TitleTokenizer) -> None:
    engine = ShortEngine(films.trie.depth + len(films.prompt([])))
    with pytest.raises(EngineError, match=r"no title of a history fits into the model's \d+ tokens"):
        await warmed(films, OpenedModel(engine=engine, token_texts=tokenizer.token_texts), name="films")


async def test_what_the_context_has_no_room_for_is_told_also_of_an_answer_that_was_kept(
    run: Run, films: Artifact
) -> None:
    history: list[Any] = [str(number) for number in range(1, 11)]
    engine = ShortEngine(1000)
    async with run(engine) as running:
        whole = (await running.recommend(history=history, k=3)).json()
        assert "warnings" not in whole
        rows = [films.catalogue.index_of(item_id) for item_id in history]
        engine.tokens = len(films.prompt(rows[2:])) + films.trie.depth  # type: ignore[arg-type]
        for cached in (False, True):
            short = (await running.recommend(history=history, k=4)).json()
            (warning,) = short["warnings"]
            assert (short["source"], short["cached"]) == ("model", cached)
            assert (warning["code"], warning["field"], warning["count"]) == ("history-shortened", "history", 2)
        assert not {item["item_id"] for item in short["items"]} & set(history), "what is not shown is still seen"
        engine.tokens = films.trie.depth
        none = (await running.recommend(history=history, k=NUM_ITEMS - 10)).json()
        assert none["source"] == "popularity"
        assert [(each["code"], each["count"]) for each in none["warnings"]] == [("history-shortened", 10)]
