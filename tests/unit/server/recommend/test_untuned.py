"""Answers of a model that was not tuned for the catalogue say so, in the answer, the log and a metric."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from film_apps import ask
from igd_server.app import Sources, create_apps
from igd_server.catalogues.opening import OpenedModel, log_other_normalisations
from igd_server.settings import Settings

from igd_core.engines.fake import FakeEngine
from igd_core.engines.tuned_prompt import TunedCatalogue, TunedPrompt
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer


async def test_an_untuned_model_is_told_of_and_an_adapter_that_is_tuned_is_not(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = TunedPrompt.of(films.manifest.template, catalogue=TunedCatalogue.of(films))
    opened = OpenedModel(
        engine=FakeEngine(adapters={"good": tmp_path}),
        token_texts=tokenizer.token_texts,
        tuned={None: None, "good": tuned},
    )
    settings: dict[str, Any] = {
        "adapters": f"good={tmp_path}",
        "variants": [{"name": "plain"}, {"name": "better", "adapter": "good"}],
    }
    apps = create_apps(
        Settings(artifact=tmp_path, model="fake", **settings),
        Sources(open_model=lambda _: opened, read_artifact=lambda _: films),
    )
    with caplog.at_level(logging.WARNING, logger="igd.server"):
        await apps.deployment.start()
    assert apps.deployment.failure is None
    (line,) = [record for record in caplog.records if record.getMessage() == "model_untuned"]
    assert line.__dict__["fields"]["adapter"] is None
    body = {"history": ["1"], "k": 2}
    plain = [(await ask(apps, "/v1/recommendations", {**body, "variant": "plain"})).json() for _ in range(2)]
    better = (await ask(apps, "/v1/recommendations", {**body, "variant": "better"})).json()
    popular = (await ask(apps, "/v1/recommendations", {"k": 2, "variant": "plain"})).json()
    metrics = (await ask(apps, "/metrics")).text
    await apps.deployment.close()
    await apps.store.close()
    assert [each["cached"] for each in plain] == [False, True]
    for each in plain:
        (warning,) = each["warnings"]
        assert warning["code"] == "model-untuned"
        assert "not tuned for catalogue 'films': no igd_prompt.json" in warning["detail"]
    assert "warnings" not in better
    assert "warnings" not in popular
    assert 'igd_untuned_answers_total{catalogue="films",variant="plain"} 2.0' in metrics
    assert 'variant="better"} ' not in "".join(line for line in metrics.splitlines() if "untuned" in line)


def test_a_server_that_scores_otherwise_than_its_model_was_tuned_for_says_so_at_its_start(
    films: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = films.manifest.template
    over_children = TunedPrompt.of(template, scored=Normalisation(normalise="children", temperature=0.5))
    tuned = {None: TunedPrompt.of(template), "masked": over_children, "foreign": None}

    def told(**settings: Any) -> list[dict[str, Any]]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="igd.server"):
            log_other_normalisations(Settings(artifact=tmp_path, model="fake", **settings), tuned)
        assert {record.getMessage() for record in caplog.records} <= {"other_normalisation"}
        return [record.__dict__["fields"] for record in caplog.records]

    assert told() == []
    assert told(normalise="vocabulary") == []
    (whole,) = told(normalise="children")
    assert (whole["variant"], whole["adapter"], whole["asked"]) == (None, None, "children at temperature 1")
    variants = [
        {"name": "follows", "adapter": "masked"},
        {"name": "same", "adapter": "masked", "normalise": "children", "temperature": 0.5},
        {"name": "unknown", "adapter": "foreign", "normalise": "children"},
        {"name": "as-paper", "adapter": "masked", "normalise": "vocabulary"},
        {"name": "hotter", "adapter": "masked", "temperature": 1.0},
    ]
    found = told(variants=variants)
    assert [each["variant"] for each in found] == ["as-paper", "hotter"]
    assert {each["tuned_for"] for each in found} == {"children at temperature 0.5"}
