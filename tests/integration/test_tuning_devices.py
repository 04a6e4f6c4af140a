"""`igd tune` shared by two processes, on a tiny model: the same weights as one process's, whoever goes on with it."""

from __future__ import annotations

import csv
import json
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from factories import EOS, make_catalogue
from safetensors.torch import load_file
from tuning_teams import interrupted_before, tune_each

from igd_core.cli.main import main
from igd_core.errors import InputError
from igd_core.tuning.inputs import RunInputs
from igd_core.tuning.launch import run_together, tune_on_devices
from igd_core.tuning.run import tune
from igd_core.tuning.settings import TuningSettings
from igd_core.tuning.team import Team

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tuning_teams import SharedRun

    from igd_core.engines.embedded.checkpoint import Checkpoint

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_dropout": 0.1,
}
TWENTY_STEPS: dict[str, Any] = {
    "epochs": 5, "patience": 5, "batch": 16, "micro_batches": 4, "warmup_steps": 2, "lr": 1e-3, "save_every": 3,
    "train_rows": 64, "valid_rows": 9, "pack_rows": 3,
}  # fmt: skip
FLAGS = (
    "--epochs 5 --patience 5 --batch 16 --micro-batches 4 --warmup-steps 2 --lr 1e-3 --save-every 3 --train-rows 64 "
    "--valid-rows 9 --pack-rows 3 --normalise children --bear 0.25"
)
TWO = Team(size=2)


@pytest.fixture(scope="module")
def inputs(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> RunInputs:
    """A checkpoint and an artifact; rows of none to eleven items."""
    folder = tmp_path_factory.mktemp("shared")
    model = folder / "checkpoint"
    checkpoint_of("llama-fp32").model.save_pretrained(model)
    (model / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    catalogue = make_catalogue(60)
    ids = catalogue.item_ids
    rows = [(" ".join(ids[max(0, i - i % 12) : i]), ids[i]) for i in range(1, 60)]
    _write(folder / "items.csv", ["item_id", "title"], list(zip(ids, catalogue.titles, strict=True)))
    _write(folder / "train.csv", ["history_item_ids", "item_id"], rows * 2)
    _write(folder / "valid.csv", ["history_item_ids", "item_id"], rows[::4])
    built = ["build", "--items", folder / "items.csv", "--interactions", folder / "train.csv", "--tokenizer", model]
    assert main([*map(str, built), "--out", str(folder / "artifact")]) == 0
    return RunInputs(
        artifact=folder / "artifact", train=folder / "train.csv", valid=folder / "valid.csv",
        out=folder / "run", tokenizer=model, device="cpu",
    )  # fmt: skip


def _write(path: Path, header: list[str], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def settings(**more: Any) -> TuningSettings:
    return TuningSettings.read(TWENTY_STEPS | more)


def differ(one: Path, other: Path) -> float:
    """The largest difference between weights of two folders."""
    (ours, theirs) = (load_file(next(folder.glob("*.safetensors"))) for folder in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def kill_one_process_at(checkpoint: Path) -> None:
    """SIGKILL to one of the processes that share a run, when a checkpoint is there."""
    deadline = time.monotonic() + 120
    while not checkpoint.is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    working = [grandchild for child in psutil.Process().children() for grandchild in child.children()]
    working[-1].send_signal(signal.SIGKILL)


def test_a_killed_process_ends_the_run_with_one_line_and_one_process_goes_on_to_the_same_weights(
    inputs: RunInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shape = replace(inputs, out=tmp_path / "run"), tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE))
    words = ["tune", "--artifact", run.artifact, "--train", run.train, "--valid", run.valid, "--out", run.out]
    words += ["--tokenizer", run.tokenizer, "--from-config", shape, "--device", "cpu", "--devices", "2"]
    killer = threading.Thread(target=kill_one_process_at, args=(run.out / "checkpoints" / "checkpoint-9",))
    killer.start()
    capsys.readouterr()
    assert main([*map(str, words), *FLAGS.split()]) == 2
    killer.join()
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert "of 2 was killed (SIGKILL); " in told
    assert "is kept: --resume goes on from it" in told
    record = json.loads((run.out / "run.json").read_text())
    assert (record["status"], record["devices"]) == ("running", 2)

    of_one = settings(from_config=SHAPE, normalise="children", bear=0.25)
    resumed = tune(run, of_one, resume=True)
    alone = tune(replace(run, out=tmp_path / "alone"), of_one)
    assert (resumed["status"], resumed["steps"], resumed["devices"]) == ("finished", 20, 1)
    assert [path.name for path in sorted(run.out.iterdir())] == ["model", "run.json"]
    assert differ(run.out / "model", tmp_path / "alone" / "model") < 1e-5
    losses = [
        [entry.get("loss", entry.get("eval_loss")) for entry in each["history"][:-1]] for each in (resumed, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_processes_end_with_the_weights_of_one(inputs: RunInputs, tmp_path: Path) -> None:
    """Each holding the weights, or half of them; of a model, or of an adapter; from the start, or going on."""
    whole = settings(from_config=SHAPE)
    adapter = settings(lora={"rank": 2, "dropout": 0.2}, normalise="children")
    on_checkpoint = replace(inputs, model=str(inputs.tokenizer), tokenizer=None)

    def at(run: RunInputs, name: str) -> RunInputs:
        return replace(run, out=tmp_path / name)

    alone = {
        "model": tune(at(inputs, "model"), whole),
        "adapter": tune(at(on_checkpoint, "adapter"), adapter),
    }
    with interrupted_before(8):
        tune(at(inputs, "model, one then two"), whole)
    runs: list[SharedRun] = [
        (at(inputs, "model, two"), whole, False, 0),
        (at(inputs, "model, one then two"), whole, True, 0),
        (at(on_checkpoint, "adapter, two"), adapter, False, 0),
        (at(on_checkpoint, "adapter, split then one"), adapter, True, 8),
    ]
    run_together(tune_each, (runs,), team=TWO, device="cpu", out=tmp_path)
    split = json.loads((tmp_path / "adapter, split then one" / "run.json").read_text())
    assert (split["status"], split["devices"], split["sharded"]) == ("running", 2, True)
    assert split["trained_parameters"] == alone["adapter"]["trained_parameters"]
    tune(at(on_checkpoint, "adapter, split then one"), adapter, resume=True)
    for run, *_ in runs:
        kind = run.out.name.partition(",")[0]
        record = json.loads((run.out / "run.json").read_text())
        assert (record["status"], record["steps"]) == ("finished", 20), run.out.name
        assert differ(run.out / kind, tmp_path / kind / kind) < 1e-5, run.out.name
        found, expected = (
            [(entry["step"], entry.get("loss", entry.get("eval_loss"))) for entry in each["history"][:-1]]
            for each in (record, alone[kind])
        )
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)


def test_more_devices_than_there_are_are_refused(inputs: RunInputs) -> None:
    with pytest.raises(InputError, match=r"devices: 4096, and this machine has \d+ cores"):
        tune_on_devices(inputs, settings(), team=Team(size=4096))
