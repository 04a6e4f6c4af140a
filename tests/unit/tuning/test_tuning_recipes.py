"""Every packaged recipe on a hundred made-up raw reviews: rows, artifact, one step of a tiny model, a record."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from factories import EOS

from igd_core.artifact import load_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.cli.main import main
from igd_core.errors import IGDError, InputError
from igd_core.tuning.recipes import build_options, prepare_recipe, read_recipe, recipe_names
from igd_core.tuning.settings import TuningSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

AMAZON = [name for name in recipe_names() if name.startswith("amazon-")]
OCTOBER_2015 = 1_443_657_600
PAPER_BETA = {"cds": 0.1, "games": 0.2, "toys": 0.5, "books": 0.1}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any]) -> Mapping[str, Path]:
    """Ten users and ten items, all hundred pairs, and a tokenizer's folder."""
    folder: Path = tmp_path_factory.mktemp("raw")
    pairs = [(user, item) for user in range(10) for item in range(10)]
    reviews = [
        {
            "reviewerID": f"u{user}",
            "asin": f"i{item}",
            "overall": 4.0,
            "unixReviewTime": OCTOBER_2015 + 86_400 * (10 * item + user),
        }
        for user, item in pairs
    ]
    titles = [{"asin": f"i{item}", "title": f"The Quiet House {item}"} for item in range(10)]
    for name, entries in (("reviews", reviews), ("metadata", titles)):
        (folder / name).write_bytes(gzip.compress("".join(json.dumps(entry) + "\n" for entry in entries).encode()))
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return {"reviews": folder / "reviews", "metadata": folder / "metadata", "tokenizer": folder}


def test_the_four_data_sets_and_both_backbones_are_there() -> None:
    assert len(AMAZON) == 8
    assert {"ml-100k-smollm2-lora", "ml-100k-small-llama", "small-llama"} <= set(recipe_names())


@pytest.mark.parametrize("name", AMAZON)
def test_a_recipe_of_the_paper_has_the_papers_settings_and_runs_dry(
    name: str, raw: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_recipe(name)
    settings = TuningSettings.read(recipe.tuning)
    assert settings.beta == PAPER_BETA[name.split("-")[1]]
    assert (settings.lr, settings.batch, settings.epochs, settings.warmup_steps) == (1e-4, 128, 3, 20)
    assert (settings.patience, settings.max_tokens, recipe.build["max_history"]) == (1, 512, 10)
    if "llama" in name:
        assert settings.four_bit
        assert settings.lora is not None
        assert (settings.lora.rank, settings.lora.alpha, settings.lora.dropout) == (32, 64, 0.05)
        assert settings.lora.targets == ("all-linear",)
    else:
        assert settings.lora is None
    words = ["tune", "--recipe", name, "--dry-run", "--device", "cpu", "--out", tmp_path / "out", "--json"]
    words += [word for option, path in raw.items() for word in (f"--{option}", path)]
    assert main(list(map(str, words))) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == "finished"
    assert record["artifact"]["name"] == "amazon-" + name.split("-")[1]
    assert (tmp_path / "out" / "run" / "model" / "model.safetensors").is_file()


FROM_SCRATCH = """
data: {source: amazon, max_history: 5}
tokenizer: pruned
build: {alpha: 0, max_history: 5, scorer: {kind: transitions, gamma: [[0, 1], [3, 0.5]], decay: 0, mixture: linear}}
tuning:
  normalise: children
  epochs: 1
  batch: 64
  warmup_steps: 0
  from_config: {hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1}
"""


def test_a_recipe_from_scratch_makes_rows_tokenizer_scorer_and_model(
    raw: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "films.yaml").write_text(FROM_SCRATCH)
    words = ["tune", "--recipe", tmp_path / "films.yaml", "--device", "cpu", "--out", tmp_path / "out"]
    words += [word for option, path in raw.items() for word in (f"--{option}", path)]
    assert main(list(map(str, words))) == 0, capsys.readouterr().err
    whole, pruned, tuned = (
        TitleTokenizer.from_directory(path)
        for path in (raw["tokenizer"], tmp_path / "out" / "tokenizer", tmp_path / "out" / "run" / "model")
    )
    assert pruned.vocab_size < whole.vocab_size
    assert tuned.fingerprint == pruned.fingerprint
    artifact = load_artifact(tmp_path / "out" / "artifact")
    assert artifact.manifest.tokenizer_sha256 == pruned.fingerprint
    assert artifact.manifest.alpha == 0
    scorer = artifact.manifest.scorer
    assert scorer is not None
    assert (scorer.kind, scorer.gamma, scorer.decay, scorer.mixture) == ("transitions", ((0, 1), (3, 0.5)), 0, "linear")
    # Each chose the ten items in one order, and the training split ends before the last: seven or eight pairs.
    assert scorer.entries in range(1, 9)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in AMAZON])
def test_the_recipes_for_a_cpu_are_valid(name: str) -> None:
    recipe = read_recipe(name)
    settings = TuningSettings.read(recipe.tuning)
    assert build_options(recipe).name == recipe.build.get("name", name)
    assert not settings.four_bit
    assert settings.precision == ("bf16" if name == "ml-100k-smollm2-lora" else "fp32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuning: {betta: 0.1}", "no setting 'betta'"),
        ("tunning: {}", "no part 'tunning'"),
        ("tuning: {lr: 1e-4}", "lr: '1e-4' is a str"),
        ("tuning: {lora: {rang: 3}}", "lora: there is no setting 'rang'"),
        ("tuning: {batch: true}", "batch: True is a bool"),
        ("tuning: 5", "tuning is not a mapping"),
        ("data: {source: netflix}", "'netflix'; one of"),
        ("- 1", "not a mapping"),
        ("a: [", "recipe.yaml"),
    ],
)
def test_a_recipe_that_says_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        TuningSettings.read(read_recipe(str(path)).tuning, where="tuning")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("build: {max_historie: 3}", "build: there is no setting 'max_historie'; is 'max_history' meant"),
        ("build: {max_history: '3'}", "build: max_history: '3' is a str"),
        ("build: {alpha: 2}", "build: alpha: 2 is not in 0..1"),
        ("build: {on_unspellable: spel}", "build: on_unspellable: 'spel' is not one of error, skip, spell"),
        ("build: {scorer: transitions}", "build: scorer: 'transitions' is a str"),
        ("build: {scorer: {gamma: 0.4}}", "build: scorer.kind: is needed"),
        (
            "build: {scorer: {kind: trnsitions}}",
            "build: scorer.kind: 'trnsitions' is not one of transitions, neighbours",
        ),
        (
            "build: {scorer: {kind: transitions, gama: 1}}",
            "build: scorer: there is no setting 'gama'; is 'gamma' meant",
        ),
        ("build: {scorer: {kind: transitions, gamma: high}}", "build: scorer.gamma: is 'high'; 0 to 1 can be"),
        ("build: {scorer: {kind: transitions, gamma: [[1, 0.5]]}}", "build: scorer.gamma: begins at 1 interactions"),
        ("build: {scorer: {kind: transitions, gamma: 1.5}}", "build: scorer.gamma: is 1.5; 0 to 1 can be"),
        ("build: {scorer: {kind: transitions, most: 0}}", "build: scorer.most: 0 is not in 1..10000"),
        ("build: {scorer: {kind: sasrec}}", "scorer.makers are of []; sasrec"),
        (
            "build: {scorer: {kind: ease, makers: mine}}",
            "build: scorer.makers: 'mine' is a str; names and values are needed",
        ),
        ("build: {scorer: {kind: ease, ridge: 0}}", "build: scorer.ridge: 0 is not in 0.001..1e+06"),
        ("{data: {source: ml-100k, core: 5}}", "data: there is no setting 'core'"),
        ("{data: {source: ml-100k, max_history: ten}}", "data: max_history: 'ten' is a str"),
        ("{data: {source: ml-100k, max_history: 0}}", "data: max_history: 0 is not in 1.."),
        ("{data: {source: ml-100k, split: random}}", "data: split: 'random' is not one of time, leave-one-out"),
        ("{data: {source: amazon, coar: 5}}", "data: there is no setting 'coar'"),
        ("tokenizer: prund", "tokenizer 'prund'; one of whole, pruned"),
        ("{tokenizer: pruned, model: smollm2}", "the model 'smollm2' has a vocabulary of its own"),
    ],
)
def test_what_a_recipe_builds_is_checked_by_name_type_and_range(
    tmp_path: Path, raw: Mapping[str, Path], text: str, message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(IGDError, match=re.escape(message)):
        prepare_recipe(read_recipe(str(path)), tmp_path / "out", files=raw, tokenizer=raw["tokenizer"])
    assert not (tmp_path / "out").exists()


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(InputError, match="recipe 'cats': no such file, and not one of amazon-books-llama-3-8b"):
        read_recipe("cats")


def test_a_raw_file_that_was_not_given_is_asked_for(
    tmp_path: Path, raw: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--recipe", AMAZON[0], "--dry-run", "--out", tmp_path / "o", "--tokenizer", raw["tokenizer"]]
    assert main(list(map(str, words))) == 2
    assert "reviews: recipe" in capsys.readouterr().err
