"""What a checkpoint was tuned on is told beside it, and an engine warns of a catalogue that asks otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import make_catalogue

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.items import Catalogue
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.tuned_prompt import (
    PROMPT_FILE,
    TunedCatalogue,
    TunedPrompt,
    normalisations,
    read_tuned,
    read_tuned_prompt,
    read_tuned_prompts,
    why_untuned,
)
from igd_core.errors import ModelError
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint


def prompt_of(artifact: Artifact) -> TunedPrompt:
    return TunedPrompt.of(artifact.manifest.template)


def test_what_is_written_is_read_and_a_checkpoint_of_another_origin_has_none(
    tmp_path: Path, artifact: Artifact
) -> None:
    assert read_tuned_prompt(tmp_path) is None
    prompt_of(artifact).write(tmp_path)
    assert read_tuned_prompt(tmp_path) == prompt_of(artifact)
    (tmp_path / "plain").mkdir()
    found = read_tuned_prompts(tmp_path / "plain", {"old": tmp_path, "foreign": tmp_path / "plain"})
    assert found == {"adapter 'old'": prompt_of(artifact)}


def test_a_file_says_what_scores_follow_the_loss_and_an_older_one_the_methods(
    tmp_path: Path, artifact: Artifact
) -> None:
    scored = Normalisation(normalise="children", temperature=0.7)
    tuned = TunedPrompt.of(artifact.manifest.template, scored=scored)
    (tmp_path / "new").mkdir()
    tuned.write(tmp_path / "new")
    plain = {"format": "igd-prompt", "prefix_ids": [], "bullet_ids": [], "suffix_ids": []}
    (tmp_path / PROMPT_FILE).write_text(json.dumps(plain))
    found = read_tuned(tmp_path, {"new": tmp_path / "new", "foreign": tmp_path / "gone"})
    assert found["new"] == tuned
    assert normalisations(found) == {None: Normalisation(), "new": scored}


@pytest.mark.parametrize(
    ("field", "value"), [("normalise", "siblings"), ("normalise", None), ("temperature", 0), ("temperature", "hot")]
)
def test_a_normalisation_that_this_release_does_not_know_is_refused_by_name(
    tmp_path: Path, artifact: Artifact, field: str, value: object
) -> None:
    prompt_of(artifact).write(tmp_path)
    path = tmp_path / PROMPT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ModelError, match=rf"{PROMPT_FILE}: not a tuned prompt .*{'hot' if value == 'hot' else field}"):
        read_tuned_prompt(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"format": "other", "prefix_ids": [], "bullet_ids": [], "suffix_ids": []}',
        '{"format": "igd-prompt", "prefix_ids": [1], "bullet_ids": []}',
        '{"format": "igd-prompt", "prefix_ids": 1, "bullet_ids": [], "suffix_ids": []}',
        '{"format": "igd-prompt", "prefix_ids": ["x"], "bullet_ids": [], "suffix_ids": []}',
        '{"format": "igd-prompt", "prefix_ids": [], "bullet_ids": [], "suffix_ids": [], "catalogue": []}',
        '{"format": "igd-prompt", "prefix_ids": [], "bullet_ids": [], "suffix_ids": [], "catalogue": {"name": "a"}}',
    ],
)
def test_a_file_that_is_no_prompt_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / PROMPT_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=rf"{PROMPT_FILE}: not a tuned prompt"):
        read_tuned_prompt(tmp_path)


async def test_an_engine_warns_of_each_part_that_differs_and_serves_it_all_the_same(
    artifact: Artifact,
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapted = {"adapter 'sci-fi'": TunedPrompt(prefix_ids=(), bullet_ids=(), suffix_ids=())}
    checkpoint = replace(checkpoint_of("llama-fp32"), prompts={"DIR": prompt_of(artifact), **adapted})
    engine = TreeEngine(checkpoint)
    same = BuildOptions(name="films", instruction="Films, in order:\n", max_history=3)
    shorter = build_artifact(make_catalogue(24), tokenizer, same)
    await engine.load(shorter)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        f"adapter 'sci-fi' was tuned on other prompts than those of catalogue films, version {shorter.version}: "
        "prefix 'Films, in order:\\n' instead of '', bullet '-' instead of ''; expect worse answers"
    )
    caplog.clear()
    bare = build_artifact(make_catalogue(24), tokenizer, same.replaced(bullet="", suffix="Next: "))
    await engine.load(bare)
    model, adapter = [record.getMessage() for record in caplog.records]
    assert f"version {bare.version}: bullet '' instead of '-', suffix 'Next: ' instead of ''; expect" in model
    assert adapter.startswith("adapter 'sci-fi'")
    caplog.clear()
    await engine.load(bare)
    assert not caplog.records
    assert engine.stats().versions == (shorter.version, bare.version)
    await engine.close()


def test_a_later_version_of_a_catalogue_is_the_same_and_another_of_its_name_is_not(
    tmp_path: Path, tokenizer: TitleTokenizer
) -> None:
    def films(titles: range, name: str = "films") -> Artifact:
        catalogue = Catalogue.build(
            item_ids=[str(number) for number in titles],
            titles=[f"film {number}" for number in titles],
            frequency=np.ones(len(titles), dtype=np.int64),
        )
        return build_artifact(catalogue, tokenizer, BuildOptions(name=name))

    tuned_on = films(range(1000))
    told = TunedPrompt.of(tuned_on.manifest.template, catalogue=TunedCatalogue.of(tuned_on))
    told.write(tmp_path)
    tuned = read_tuned_prompt(tmp_path)
    assert tuned == told
    assert len(TunedCatalogue.of(tuned_on).sample) == 256
    for same in (tuned_on, films(range(300, 1700)), films(range(5000)), films(range(1000), "renamed")):
        assert why_untuned(tuned, same) is None
    assert why_untuned(tuned, films(range(2000, 3000))) == (
        "the model was not tuned for catalogue 'films', but for 'films', of whose titles it has 0%"
    )
    assert "of whose titles it has 1" in str(why_untuned(tuned, films(range(850, 1700), "other")))
    assert why_untuned(None, tuned_on) == (
        "the model was not tuned for catalogue 'films': no igd_prompt.json beside its weights"
    )
    assert why_untuned(prompt_of(tuned_on), films(range(2000, 3000))) is None, "older files do not tell"
