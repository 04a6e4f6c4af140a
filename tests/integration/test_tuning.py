"""`igd tune` on a tiny model: runs end, stop, fail and go on as they should, and what they write is served."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from adapters import save_adapter
from devices import needs_cuda
from factories import EOS, make_catalogue
from safetensors.torch import load_file, save_file

from igd_core.artifact import load_artifact
from igd_core.cli.main import main
from igd_core.errors import DataError, InputError, ModelError, TuningError
from igd_core.locked_folders import locked_folder
from igd_core.tuning import loss
from igd_core.tuning import record as record_module
from igd_core.tuning.inputs import RunInputs
from igd_core.tuning.merge import merge_run
from igd_core.tuning.run import read_data, tune
from igd_core.tuning.settings import LoraSettings, TuningSettings
from igd_core.tuning.trainer import IGDTrainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from igd_core.engines.embedded.checkpoint import Checkpoint

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_dropout": 0.1,
}
OVER_CHILDREN = "alpha=0 lp=0 beams=10 normalise=children temperature=0.8"
QUICK = TuningSettings(
    epochs=2, batch=16, micro_batches=2, warmup_steps=2, lr=1e-3, save_every=2, from_config=SHAPE, train_rows=64
)


@pytest.fixture(scope="module")
def model_dir(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory: Path = tmp_path_factory.mktemp("model")
    checkpoint_of("llama-fp32").model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def data_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """items.csv, rows in which the next item is the one with the next number, and an artifact."""
    directory: Path = tmp_path_factory.mktemp("data")
    catalogue = make_catalogue(60)
    ids = catalogue.item_ids
    _write(directory / "items.csv", ["item_id", "title"], list(zip(ids, catalogue.titles, strict=True)))
    rows = [(" ".join(ids[max(0, i - 3) : i]), ids[i]) for i in range(1, 60)]
    _write(directory / "train.csv", ["history_item_ids", "item_id"], rows * 2)
    _write(directory / "valid.csv", ["history_item_ids", "item_id"], rows[::4])
    built = ["build", "--items", directory / "items.csv", "--interactions", directory / "train.csv"]
    built += ["--tokenizer", model_dir, "--out", directory / "artifact", "--no-usual-scorer"]
    assert main(list(map(str, built))) == 0
    return directory


def _write(path: Path, header: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def inputs(data_dir: Path, model_dir: Path, tmp_path: Path) -> RunInputs:
    return RunInputs(
        artifact=data_dir / "artifact", train=data_dir / "train.csv", valid=data_dir / "valid.csv",
        out=tmp_path / "run", tokenizer=model_dir, device="cpu",
    )  # fmt: skip


def changed(inputs: RunInputs, **values: Any) -> RunInputs:
    return RunInputs(**{name: getattr(inputs, name) for name in RunInputs.__slots__} | values)


def quick(**values: Any) -> TuningSettings:
    return TuningSettings.read(QUICK.to_json() | values)


def command(inputs: RunInputs, *more: str) -> list[str]:
    """The same run from the command line, with the settings of ``QUICK``."""
    shape = inputs.out.parent / "shape.json"
    shape.write_text(json.dumps(SHAPE))
    words = ["tune", "--artifact", inputs.artifact, "--train", inputs.train, "--valid", inputs.valid]
    words += ["--out", inputs.out, "--tokenizer", inputs.tokenizer, "--from-config", shape, "--device", "cpu"]
    flags = "--epochs 2 --batch 16 --micro-batches 2 --warmup-steps 2 --lr 1e-3 --save-every 2 --train-rows 64"
    return [*map(str, words), *flags.split(), *more]


def test_a_run_killed_between_checkpoints_and_resumed_ends_with_the_same_weights(inputs: RunInputs) -> None:
    unbroken = tune(changed(inputs, out=inputs.out.parent / "unbroken"), QUICK)
    process = subprocess.Popen(
        [sys.executable, "-m", "igd_core", *command(inputs)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (inputs.out / "checkpoints" / "checkpoint-2").is_dir():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = json.loads((inputs.out / "run.json").read_text())
    assert killed["status"] == "running"
    resumed = tune(inputs, QUICK, resume=True)
    assert resumed["status"] == "finished"
    assert resumed["steps"] == unbroken["steps"] == 8
    ours = load_file(inputs.out / "model" / "model.safetensors")
    theirs = load_file(inputs.out.parent / "unbroken" / "model" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [
        [entry.get("loss", entry.get("eval_loss")) for entry in run["history"]][:10] for run in (resumed, unbroken)
    ]
    assert losses[0] == losses[1]
    assert not (inputs.out / "checkpoints").exists()


def tune_interrupted(
    inputs: RunInputs, settings: TuningSettings, stop_after: int, patching: pytest.MonkeyPatch
) -> None:
    """Begin a run that Ctrl-C ends after so many steps."""
    original = IGDTrainer.get_batch_samples

    def interrupted(self: IGDTrainer, *args: Any) -> Any:
        if self.state.global_step == stop_after:
            raise KeyboardInterrupt
        return original(self, *args)

    with patching.context() as patch:
        patch.setattr(IGDTrainer, "get_batch_samples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(inputs, settings)


@pytest.mark.parametrize(
    ("stop_after", "normalise"), [(2, "vocabulary"), (3, "children"), (4, "vocabulary"), (5, "vocabulary")]
)
def test_a_run_interrupted_at_any_step_goes_on_exactly(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch, stop_after: int, normalise: str
) -> None:
    settings = quick(from_config=None, lora={"rank": 2, "dropout": 0.2}, normalise=normalise)
    inputs = changed(inputs, model=str(inputs.tokenizer), tokenizer=None)
    tune(changed(inputs, out=inputs.out.parent / "unbroken"), settings)
    tune_interrupted(inputs, settings, stop_after, monkeypatch)
    tune(inputs, settings, resume=True)
    ours = load_file(inputs.out / "adapter" / "adapter_model.safetensors")
    theirs = load_file(inputs.out.parent / "unbroken" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("normalise", ["vocabulary", "children"])
def test_micro_batches_change_nothing_but_the_memory(inputs: RunInputs, normalise: str) -> None:
    asked: dict[str, Any] = {"from_config": SHAPE | {"attention_dropout": 0.0}, "pack_rows": 2, "normalise": normalise}
    runs = [tune(changed(inputs, out=inputs.out / str(parts)), quick(**asked, micro_batches=parts)) for parts in (1, 8)]
    losses = [[entry["loss"] for entry in run["history"] if "loss" in entry] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_sharing_prompts_changes_nothing_but_the_speed_of_an_epoch(inputs: RunInputs) -> None:
    shape = SHAPE | {"attention_dropout": 0.0}
    whole = {"from_config": shape, "batch": 64, "micro_batches": 1, "pack_rows": 8}
    runs = [
        tune(changed(inputs, out=inputs.out / str(share)), quick(**whole, share_prompts=share))
        for share in (False, True)
    ]
    losses = [[entry["loss"] for entry in run["history"] if "loss" in entry] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    tokens = [run["rows"]["train"]["tokens_computed"] for run in runs]
    assert tokens[1] < tokens[0]


def test_tuning_lowers_the_loss_and_the_result_is_served(
    inputs: RunInputs, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    capsys.readouterr()
    assert main([*command(inputs, "--epochs", "12", "--lr", "1e-2"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    evaluated = [entry for entry in record["history"] if "eval_loss" in entry]
    assert evaluated[-1]["eval_plain_loss"] < evaluated[0]["eval_plain_loss"] - 0.5
    assert record["artifact"]["version"]
    template = json.loads((data_dir / "artifact" / "manifest.json").read_text())["template"]
    told = json.loads((inputs.out / "model" / "igd_prompt.json").read_text())
    catalogue = told.pop("catalogue")
    assert catalogue["name"] == record["artifact"]["name"]
    assert (told.pop("normalise"), told.pop("temperature")) == ("vocabulary", 1.0)
    assert told == {"format": "igd-prompt", **{part: template[part] for part in told if part != "format"}}
    assert {*told} == {"format", "prefix_ids", "bullet_ids", "suffix_ids"}
    release = torch.__version__.partition("+")[0]  # a wheel of PyPI leaves its build (+cu130) out of its metadata
    assert record["packages"]["torch"].partition("+")[0] == release
    words = [
        "recommend",
        "--artifact",
        data_dir / "artifact",
        "--model",
        inputs.out / "model",
        "--history",
        "item-3",
        "--json",
    ]
    assert main(list(map(str, words))) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (len(answer["items"]), answer["untuned"]) == (10, None)


def test_a_model_that_was_tuned_over_children_is_scored_over_children_unless_somebody_says_otherwise(
    inputs: RunInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    flags = ["--normalise", "children", "--temperature", "0.8", "--bear", "0.25"]
    longer = ["--epochs", "12", "--patience", "12", "--lr", "1e-2", "--train-rows", "16"]
    assert main([*command(inputs, *flags, *longer), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    untrained, *losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert min(losses) < untrained - 0.3
    asked = ["--artifact", str(inputs.artifact), "--model", str(inputs.out / "model")]
    recommend = ["recommend", *asked, "--history", "item-3", "--no-exclude-seen", "--k", "60", "--beams", "60"]

    def answer(*more: str) -> tuple[dict[str, Any], str]:
        assert main([*recommend, "--alpha", "0", "--json", *more]) == 0
        told = capsys.readouterr()
        return json.loads(told.out), told.err

    followed, said = answer()
    assert (followed["normalise"], followed["temperature"], said) == ("children", 0.8, "")
    assert sum(item["probability"] for item in followed["items"]) == pytest.approx(1.0, abs=1e-6)
    for item in followed["items"]:
        assert all(token["logprob"] == 0 for token in item["tokens"] if token["forced"])
    overruled, said = answer("--normalise", "vocabulary")
    assert (overruled["normalise"], overruled["temperature"]) == ("vocabulary", 1.0)
    assert "note: scores are normalised over vocabulary at temperature 1; the model was tuned for children at" in said
    assert main(recommend) == 0
    assert "%" in capsys.readouterr().out.splitlines()[0]
    evaluate = ["evaluate", *asked, "--rows", str(inputs.valid), "--limit", "3", "--alphas", "0", "--resamples", "100"]
    out = ["--length-penalties", "0", "--out", str(inputs.out.parent / "evaluated"), "--json"]
    assert main([*evaluate, *out]) == 0
    assert {method["name"] for method in json.loads(capsys.readouterr().out)["methods"]} == {OVER_CHILDREN}


def test_an_adapter_merged_into_its_checkpoint_computes_what_it_computed(
    inputs: RunInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    from igd_core.engines.embedded.checkpoint import load_checkpoint

    base = str(inputs.tokenizer)
    adapted_by: dict[str, Any] = {"lora": {"rank": 4, "dropout": 0.0, "layers": 1}, "normalise": "children"}
    settings = quick(from_config=None, **adapted_by, lr=1e-2, temperature=0.5)
    record = tune(changed(inputs, model=base, tokenizer=None), settings)
    assert 0 < record["trained_parameters"] < 0.5 * record["parameters"]
    names = load_file(inputs.out / "adapter" / "adapter_model.safetensors")
    assert names
    assert all(".layers.1." in name for name in names)
    words = ["recommend", "--artifact", inputs.artifact, "--model", base, "--history", "item-3"]
    assert main([*map(str, words), "--adapter", str(inputs.out / "adapter"), "--device", "cpu"]) == 0
    merged_dir = inputs.out.parent / "merged"
    assert main(["tune", "merge", "--run", str(inputs.out), "--out", str(merged_dir)]) == 0
    assert "merged checkpoint" in capsys.readouterr().out
    told = [(each / "igd_prompt.json").read_text() for each in (inputs.out / "adapter", merged_dir)]
    assert told[0] == told[1]
    assert json.loads(told[1])["normalise"] == "children"
    assert json.loads(told[1])["temperature"] == 0.5
    assert not (Path(base) / "igd_prompt.json").exists()
    merged = load_checkpoint(merged_dir, device="cpu", dtype="float32").model
    plain = load_checkpoint(base, device="cpu", dtype="float32", packed=False).model
    tokens = torch.tensor([[5, 9, 30, 41]])
    before = plain(input_ids=tokens).logits
    adapted = PeftModel.from_pretrained(plain, str(inputs.out / "adapter"))(input_ids=tokens).logits
    torch.testing.assert_close(merged(input_ids=tokens).logits, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-2)


def test_a_run_goes_on_from_an_earlier_adapter(inputs: RunInputs) -> None:
    base = changed(inputs, model=str(inputs.tokenizer), tokenizer=None)
    settings = quick(from_config=None, lora={"rank": 4, "dropout": 0.0}, lr=1e-2)
    first = tune(base, settings)
    adapter = inputs.out / "adapter"
    standing = quick(from_config=None, lora={"rank": 4, "dropout": 0.0}, lr=1e-9)
    second_out = inputs.out.parent / "second"
    second = tune(changed(base, adapter=adapter, out=second_out), standing)
    assert second["adapter"] == hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert first["adapter"] is None
    before, after = (load_file(each / "adapter_model.safetensors") for each in (adapter, second_out / "adapter"))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    with pytest.raises(InputError, match=r"adapter: was '.*' in the run to resume, now None"):
        tune(changed(base, out=second_out), standing, resume=True)


def test_a_base_that_changed_is_refused_wherever_a_run_needs_its_own(inputs: RunInputs, tmp_path: Path) -> None:
    base, moved = tmp_path / "base", tmp_path / "moved"
    for folder in (base, moved):
        shutil.copytree(inputs.tokenizer or "", folder)
    settings = quick(from_config=None, lora={"rank": 4, "dropout": 0.0}, epochs=1, train_rows=8, valid_rows=4)
    ours = changed(inputs, model=str(base), tokenizer=None)
    first = tune(ours, settings)
    assert len(first["model_sha256"]) == 64
    at_another_place = changed(ours, model=str(moved))
    assert tune(at_another_place, settings, resume=True) == first

    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * values for name, values in weights.items()}, base / "model.safetensors", {"format": "pt"})
    told = rf"was tuned on {base} with the content {first['model_sha256'][:16]}; {base} holds [0-9a-f]{{16}}$"
    with pytest.raises(InputError, match=f"^model: the run to resume {told}"):
        tune(ours, settings, resume=True)
    with pytest.raises(InputError, match=f"^model: the adapter of {inputs.out} {told}"):
        merge_run(inputs.out, tmp_path / "merged")
    adapter = inputs.out / "adapter"
    with pytest.raises(InputError, match=f"^model: adapter {adapter} {told}"):
        tune(changed(ours, out=tmp_path / "second", adapter=adapter), settings)
    assert not (tmp_path / "merged").exists()
    merge_run(inputs.out, tmp_path / "merged", model=str(moved))

    del first["model_sha256"]  # as earlier releases wrote it
    (inputs.out / "run.json").write_text(json.dumps(first))
    assert tune(ours, settings, resume=True) == first
    with pytest.raises(InputError, match=r"model: was '.*base' in the run to resume, now '.*moved'"):
        tune(at_another_place, settings, resume=True)
    merge_run(inputs.out, tmp_path / "merged by path")


def test_rows_as_a_shop_exports_them_are_tuned_on_with_the_flags_of_reading(
    inputs: RunInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = inputs.out.parent / "rows.csv"
    rows.write_bytes("verlauf;artikel;\xfc\nitem-1 item-2;item-3;a\nitem-1;;b\nitem-4;item-5;c\n".encode("cp1252"))
    asked = command(changed(inputs, train=rows, valid=rows), "--epochs", "1", "--json")
    capsys.readouterr()
    assert main(asked) == 2
    assert "--columns" in capsys.readouterr().err
    asked += ["--columns", "history_item_ids=verlauf,item_id=artikel", "--delimiter", "semicolon"]
    assert main(asked) == 2
    assert "row 3: item_id '' is empty (--on-bad-row skip leaves such rows out)" in capsys.readouterr().err
    assert main([*asked, "--on-bad-row", "skip"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert (record["rows"]["train"]["rows"], record["rows"]["bad_rows"]) == (2, 2)
    assert f"note: {rows}: read as Windows-1252" in captured.err


def test_validation_rows_that_ask_for_what_no_training_row_asks_for_are_left_out_and_told(
    inputs: RunInputs, data_dir: Path, tmp_path: Path
) -> None:
    """Their loss grows while the others' falls: by all of them an early state would be kept."""
    artifact = load_artifact(data_dir / "artifact")
    with (data_dir / "valid.csv").open(encoding="utf-8") as file:
        rows = [(row["history_item_ids"], row["item_id"]) for row in csv.DictReader(file)]
    old, new = rows[:-6], rows[-6:]
    train, valid, warm = (tmp_path / name for name in ("train.csv", "valid.csv", "warm.csv"))
    header = ["history_item_ids", "item_id"]
    many = old * 6  # enough to choose by themselves
    _write(train, header, old * 2)
    _write(valid, header, [*new[:3], *many, *new[3:]])
    _write(warm, header, many)

    def read(valid: Path, **values: Any) -> Any:
        return read_data(changed(inputs, train=train, valid=valid), quick(train_rows=0, **values), artifact)

    told = f"6 of {len(many) + 6} validation rows ask for items that no training row asks for"
    trained, everything = read(valid), read(valid, valid_targets="all")
    assert trained.notes == [f"{told}: left out; the other {len(many)} count (--valid-targets all: all of them)"]
    assert (trained.untrained, everything.untrained) == (6, 0)
    assert everything.notes == [], "one in ten that counts is not worth a word"
    assert (everything.valid.rows, trained.valid.rows) == (len(many) + 6, len(many))
    assert read(warm).notes == read(warm, valid_targets="all").notes == []
    assert trained.valid.targets == read(warm).valid.targets
    assert read(valid, valid_rows=4).valid.rows == 4, "drawn among those that are left"
    few = tmp_path / "few.csv"
    _write(few, header, [*new, *old])
    mixed = f"6 of {len(rows)} validation rows ask for items that no training row asks for"
    of_few, all_of_few = read(few), read(few, valid_targets="all")
    assert of_few.notes == [f"{mixed}: they count, since the others are only {len(old)}"]
    assert all_of_few.notes == [
        f"{mixed}; by their loss an early state may be kept: --valid-targets trained leaves them out"
    ]
    assert of_few.valid.rows == all_of_few.valid.rows == len(rows)
    _write(few, header, new)
    for none in (read(few), read(few, valid_targets="all")):
        assert none.notes == [told.replace(str(len(many) + 6), "6") + ": they count, since there are no others"]
        assert (none.valid.rows, none.untrained) == (6, 0)


def test_an_item_of_a_trained_title_is_trained(inputs: RunInputs, model_dir: Path, tmp_path: Path) -> None:
    """Another item of the same title is the same path, and the model answers for both."""
    catalogue = make_catalogue(6)
    ids, titles = [*catalogue.item_ids, "again"], [*catalogue.titles, catalogue.titles[0]]
    items, train, valid = (tmp_path / name for name in ("items.csv", "train.csv", "valid.csv"))
    _write(items, ["item_id", "title"], list(zip(ids, titles, strict=True)))
    _write(train, ["history_item_ids", "item_id"], [(ids[1], ids[0]), (ids[1], ids[2])])
    _write(valid, ["history_item_ids", "item_id"], [(ids[2], "again")] * 50 + [(ids[2], ids[3])])
    built = ["build", "--items", items, "--interactions", train, "--tokenizer", model_dir, "--out", tmp_path / "art"]
    assert main([*map(str, built), "--no-usual-scorer"]) == 0
    data = read_data(changed(inputs, train=train, valid=valid), quick(train_rows=0), load_artifact(tmp_path / "art"))
    assert (data.untrained, data.valid.rows) == (1, 50)


def test_a_run_that_began_when_all_validation_rows_counted_goes_on_so(inputs: RunInputs) -> None:
    """Records of then do not have the setting; losses of other rows could not be compared with its own."""
    tune(inputs, quick(epochs=1, valid_targets="all"))
    record = json.loads((inputs.out / "run.json").read_text("utf-8"))
    del record["settings"]["valid_targets"]
    (inputs.out / "run.json").write_text(json.dumps({**record, "status": "running"}))
    with pytest.raises(
        InputError, match=r"was 'all' in the run to resume, now 'trained' \(--valid-targets all goes on"
    ):
        tune(inputs, quick(epochs=1), resume=True)
    assert tune(inputs, quick(epochs=1, valid_targets="all"), resume=True)["status"] == "finished"


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        (None, "nothing says that an adapter is tuned"),
        ({"rank": 8}, "has rank 4, the settings have 8 .--lora-rank"),
        ({"rank": 4, "alpha": 3}, "has alpha 8, the settings have 3 .--lora-alpha"),
        ({"rank": 4, "alpha": 8, "layers": 1}, r"changes other modules than the settings name.*layers\.0"),
        ({"rank": 4, "alpha": 8, "targets": ("q_proj", "v_proj")}, "changes other modules than the settings name"),
    ],
)
def test_an_adapter_that_the_settings_do_not_fit_is_refused(
    inputs: RunInputs, lora: dict[str, Any] | None, problem: str
) -> None:
    adapter = save_adapter(inputs.out.parent / "given", inputs.tokenizer, seed=1)  # type: ignore[arg-type]
    asked = changed(inputs, model=str(inputs.tokenizer), tokenizer=None, adapter=adapter)
    with pytest.raises(InputError, match=problem):
        tune(asked, quick(from_config=None, lora=lora))


def test_a_folder_without_an_adapter_cannot_be_gone_on_from(inputs: RunInputs, tmp_path: Path) -> None:
    asked = changed(inputs, model=str(inputs.tokenizer), tokenizer=None, adapter=tmp_path / "none")
    with pytest.raises(DataError, match=r"none/adapter_model.safetensors: cannot be read"):
        tune(asked, quick(from_config=None, lora={"rank": 4}))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loss.response_losses
    calls = 0

    def poisoned(*args: Any, **kwargs: Any) -> loss.ResponseLosses:
        nonlocal calls
        calls += 1
        found = original(*args, **kwargs)
        return loss.ResponseLosses(cross_entropy=found.cross_entropy * (float("nan") if calls > 5 else 1.0))

    monkeypatch.setattr("igd_core.tuning.loss.response_losses", poisoned)
    with pytest.raises(TuningError, match=r"step 3: the loss is nan; .*checkpoint-2 is kept"):
        tune(inputs, QUICK)
    assert (inputs.out / "checkpoints" / "checkpoint-2" / "model.safetensors").is_file()
    record = json.loads((inputs.out / "run.json").read_text())
    assert record["status"] == "failed"
    monkeypatch.undo()
    assert tune(inputs, QUICK, resume=True)["status"] == "finished"


def test_a_run_ends_when_validation_no_longer_improves_and_keeps_the_best(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 1.0])
    original = IGDTrainer.evaluate

    def scripted(self: IGDTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        monkeypatch.setattr("igd_core.tuning.loss.LossParts.means", lambda *_: {"loss": next(losses)})
        try:
            return original(self, *args, **kwargs)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(IGDTrainer, "evaluate", scripted)

    monkeypatch.setattr(IGDTrainer, "evaluate", scripted)
    record = tune(inputs, quick(epochs=6))
    assert [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry] == [3.0, 2.0, 2.5]
    assert record["status"] == "finished"
    assert record["steps"] == 12


def test_a_run_of_one_step_learns_and_one_of_more_is_warmed_up_as_before(inputs: RunInputs) -> None:
    def weights(steps: int, lr: float) -> torch.Tensor:
        out = inputs.out.parent / f"{steps}-{lr}"
        settings = quick(epochs=1, batch=16, train_rows=16 * steps, warmup_steps=2, lr=lr)
        record = tune(changed(inputs, out=out), settings)
        assert record["steps"] == steps
        return torch.cat([each.flatten() for each in load_file(out / "model" / "model.safetensors").values()])

    started, one, two = weights(1, 1e-30), weights(1, 1e-3), weights(2, 1e-3)
    assert (one - started).abs().max() == pytest.approx(1e-3, rel=0.1), "Adam's first step is the learning rate"
    assert (two - started).abs().max() == pytest.approx(0.5e-3, rel=0.1), "a rate of 0, then half of it"


def test_it_is_said_when_the_model_that_is_kept_is_the_one_that_the_run_began_with(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0])
    monkeypatch.setattr("igd_core.tuning.watch.RunCallback.on_pre_optimizer_step", lambda *_, **__: None)
    monkeypatch.setattr("igd_core.tuning.loss.LossParts.means", lambda *_: {"loss": next(losses)})
    told: list[str] = []
    record = tune(inputs, quick(epochs=2, batch=64), tell=told.extend)
    assert (record["status"], record["steps"]) == ("finished", 2)
    assert "kept is that of step 1, before which nothing was learned" in told[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("history_item_ids,item_id\n", "no rows below the header"),
        ("", "the file is empty"),
        (
            "history_item_ids,item_id\nitem-1,item-2\nitem-1,nowhere\n",
            r"row 3: item_id 'nowhere' is not in the catalogue",
        ),
        ("user_id,item_id,timestamp\nu,item-1,5\n", "history rows are needed"),
    ],
)
@pytest.mark.parametrize("part", ["train", "valid"])
def test_rows_that_cannot_be_used_are_named_before_a_model_is_loaded(
    inputs: RunInputs, text: str, message: str, part: str
) -> None:
    bad = inputs.out.parent / "bad.csv"
    bad.write_text(text)
    with pytest.raises(DataError, match=message):
        tune(changed(inputs, **{part: bad}), QUICK)
    assert not inputs.out.exists()


def test_targets_outside_the_catalogue_can_be_dropped_and_are_counted(inputs: RunInputs) -> None:
    rows = inputs.out.parent / "rows.csv"
    rows.write_text("history_item_ids,item_id\nitem-1,item-2\nitem-1,nowhere\n")
    record = tune(changed(inputs, train=rows, on_unknown="drop"), quick(epochs=1))
    assert record["rows"]["dropped"] == 1
    assert record["rows"]["train"]["rows"] == 1


def test_a_run_is_not_overwritten_and_not_resumed_as_another(inputs: RunInputs) -> None:
    with pytest.raises(TuningError, match="no run to resume"):
        tune(inputs, QUICK, resume=True)
    first = tune(inputs, quick(epochs=1))
    with pytest.raises(TuningError, match="holds a run already"):
        tune(inputs, quick(epochs=1))
    with pytest.raises(InputError, match=r"settings: beta was 0\.2 in the run to resume, now 0\.5"):
        tune(inputs, quick(epochs=1, beta=0.5), resume=True)
    assert tune(inputs, quick(epochs=1), resume=True) == first


def test_a_folder_that_another_process_tunes_into_is_refused_and_a_lock_left_behind_is_not(inputs: RunInputs) -> None:
    with locked_folder(inputs.out), pytest.raises(DataError, match="another process is writing it"):
        tune(inputs, quick(epochs=1))
    assert tune(inputs, quick(epochs=1))["status"] == "finished"


def test_a_run_that_another_process_has_gone_on_with_meanwhile_is_not_written(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def slow_lock(path: Path) -> Iterator[None]:
        monkeypatch.undo()
        assert tune(inputs, quick(epochs=1))["status"] == "finished"
        with locked_folder(path):
            yield

    monkeypatch.setattr(record_module, "locked_folder", slow_lock)
    with pytest.raises(TuningError, match="holds a run already"):
        tune(inputs, quick(epochs=1))


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(inputs: RunInputs) -> None:
    first = tune(inputs, quick(epochs=1))
    del first["settings"]["rows_per_user"]
    (inputs.out / "run.json").write_text(json.dumps(first))
    assert tune(inputs, quick(epochs=1), resume=True) == first
    with pytest.raises(InputError, match="settings: rows_per_user was 0 in the run to resume, now 3"):
        tune(inputs, quick(epochs=1, rows_per_user=3), resume=True)


def test_the_newest_rows_of_each_user_can_be_asked_for(inputs: RunInputs) -> None:
    rows = inputs.out.parent / "rows.csv"
    rows.write_text(
        "user_id,history_item_ids,item_id\nann,item-1,item-2\nbob,item-3,item-4\nann,item-1 item-2,item-3\n"
    )
    record = tune(changed(inputs, train=rows), quick(epochs=1, rows_per_user=1))
    assert record["rows"]["train"]["rows"] == 2


@needs_cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_a_run_on_a_gpu_has_the_losses_of_one_on_the_cpu(inputs: RunInputs, precision: str, tolerance: float) -> None:
    shape = SHAPE | {"attention_dropout": 0.0}
    on_cpu = tune(changed(inputs, out=inputs.out / "cpu"), quick(from_config=shape))
    on_gpu = tune(changed(inputs, out=inputs.out / "gpu", device="cuda"), quick(from_config=shape, precision=precision))
    assert on_gpu["device"].startswith("cuda")
    losses = [[entry.get("loss", entry.get("eval_loss")) for entry in run["history"]] for run in (on_cpu, on_gpu)]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


@needs_cuda
def test_a_run_interrupted_on_a_gpu_goes_on(inputs: RunInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the bit: CUDA adds gradients of shared rows in any order."""
    inputs = changed(inputs, device="cuda")
    unbroken = tune(changed(inputs, out=inputs.out.parent / "unbroken"), QUICK)
    tune_interrupted(inputs, QUICK, 3, monkeypatch)
    resumed = tune(inputs, QUICK, resume=True)
    losses = [[entry.get("loss", entry.get("eval_loss")) for entry in run["history"]] for run in (resumed, unbroken)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_four_bits_need_cuda(inputs: RunInputs) -> None:
    settings = TuningSettings(four_bit=True, lora=LoraSettings(), train_rows=8)
    with pytest.raises(ModelError, match="need CUDA, the device is cpu"):
        tune(changed(inputs, model=str(inputs.tokenizer), tokenizer=None), settings)


def test_a_bad_flag_is_one_line_and_exit_code_two(inputs: RunInputs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(inputs, "--beta", "0")) == 2
    assert capsys.readouterr().err == "igd: beta: 0 is not in 0..1, 0 itself left out\n"
