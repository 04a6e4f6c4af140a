"""`igd tune` shared by two processes, on a tiny model: the same weights as one process's, whoever goes on with it."""

from __future__ import annotations

import csv
import json
import signal
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from factories import EOS, make_catalogue
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes
from tuning_teams import fail, interrupted_before, launched, tune_each

from igd_core.cli.main import main
from igd_core.errors import DataError, IGDError, InputError, TuningError
from igd_core.tuning.inputs import RunInputs
from igd_core.tuning.launch import run_together, tune_on_devices
from igd_core.tuning.run import tune
from igd_core.tuning.settings import TuningSettings
from igd_core.tuning.team import Team

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tuning_teams import SharedRun

    from igd_core.engines.embedded.checkpoint import Checkpoint

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_dropout": 0.1,
}
TWENTY_STEPS: dict[str, Any] = {
    "epochs": 5, "patience": 5, "batch": 16, "micro_batches": 2, "warmup_steps": 2, "lr": 1e-3, "save_every": 3,
    "train_rows": 64, "valid_rows": 5, "pack_rows": 3, "normalise": "children",
}  # fmt: skip
FLAGS = (
    "--epochs 5 --patience 5 --batch 16 --micro-batches 2 --warmup-steps 2 --lr 1e-3 --save-every 3 --train-rows 64 "
    "--valid-rows 5 --pack-rows 3 --normalise children --bear 0.25"
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


def _write(path: Path, header: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def settings(**more: Any) -> TuningSettings:
    return TuningSettings.read(TWENTY_STEPS | more)


WHOLE = settings(from_config=SHAPE, bear=0.25)


@pytest.fixture(scope="module")
def alone(inputs: RunInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by one process."""
    folder: Path = tmp_path_factory.mktemp("alone")
    tune(replace(inputs, out=folder), WHOLE)
    return folder


def losses(record: dict[str, Any]) -> list[float]:
    """Of steps, with the norms of their gradients, and of validations."""
    names = ("loss", "grad_norm", "eval_loss")
    return [entry[name] for entry in record["history"] for name in names if name in entry]


def differ(one: Path, other: Path) -> float:
    """The largest difference between weights of two folders."""
    (ours, theirs) = (load_file(next(folder.glob("*.safetensors"))) for folder in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def kill_one_process_at(checkpoint: Path) -> None:
    """SIGKILL to one of the processes that share a run, when a checkpoint is there."""
    deadline = time.monotonic() + 240
    while not checkpoint.is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    working = [grandchild for child in psutil.Process().children() for grandchild in child.children()]
    working[-1].send_signal(signal.SIGKILL)


def test_a_killed_process_ends_the_run_with_one_line_and_one_process_goes_on_to_the_same_weights(
    inputs: RunInputs, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shape = replace(inputs, out=tmp_path / "run"), tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE))
    words = ["tune", "--artifact", run.artifact, "--train", run.train, "--valid", run.valid, "--out", run.out]
    words += ["--tokenizer", run.tokenizer, "--from-config", shape, "--device", "cpu", "--devices", "2"]
    killer = threading.Thread(target=kill_one_process_at, args=(run.out / "checkpoints" / "checkpoint-6",))
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

    resumed = tune(run, WHOLE, resume=True)
    expected = json.loads((alone / "run.json").read_text())
    assert (resumed["status"], resumed["steps"], resumed["devices"]) == ("finished", 20, 1)
    assert [path.name for path in sorted(run.out.iterdir())] == [".lock", "model", "run.json"]
    assert differ(run.out / "model", alone / "model") < 1e-5
    assert losses(resumed) == pytest.approx(losses(expected), rel=1e-4)


def test_two_processes_end_with_the_weights_of_one(inputs: RunInputs, alone: Path, tmp_path: Path) -> None:
    """Each holding the weights, or half of them; of a model, or of an adapter; from the start, or going on."""
    adapter = settings(lora={"rank": 2, "dropout": 0.2, "layers": 1}, normalise="vocabulary", epochs=2)
    on_checkpoint = replace(inputs, model=str(inputs.tokenizer), tokenizer=None)
    model, both, split, adapter_alone = (tmp_path / name for name in ("model", "both", "split", "alone"))
    with interrupted_before(8):
        tune(replace(inputs, out=model), WHOLE)
    runs: list[SharedRun] = [
        (replace(inputs, out=model), WHOLE.to_json(), True, 0),
        (replace(on_checkpoint, out=both), adapter.to_json(), False, 0),
        (replace(on_checkpoint, out=split), adapter.to_json(), True, 4),
    ]
    run_together(tune_each, (runs,), team=TWO, device="cpu", out=tmp_path)
    stopped = json.loads((split / "run.json").read_text())
    assert (stopped["status"], stopped["devices"], stopped["sharded"]) == ("running", 2, True)
    tune(replace(on_checkpoint, out=adapter_alone), adapter)
    tune(replace(on_checkpoint, out=split), adapter, resume=True)
    pairs = [(model, alone, "model", 20), (both, adapter_alone, "adapter", 8), (split, adapter_alone, "adapter", 8)]
    for run, expected, kind, steps in pairs:
        record, reference = (json.loads((folder / "run.json").read_text()) for folder in (run, expected))
        assert (record["status"], record["steps"]) == ("finished", steps), run
        assert record["trained_parameters"] == reference["trained_parameters"]
        assert losses(record) == pytest.approx(losses(reference), rel=1e-4), run
        assert differ(run / kind, expected / kind) < 1e-5, run


def test_rows_that_cannot_be_used_are_named_once(
    inputs: RunInputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("history_item_ids,item_id\nitem-1,item-2\nitem-1,nowhere\n")
    with pytest.raises(DataError, match=r"row 3: item_id 'nowhere' is not in the catalogue"):
        tune_on_devices(replace(inputs, train=rows, out=tmp_path / "run"), WHOLE, team=TWO)
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("how", "kind", "told"),
    [
        ("alone", TuningError, "process 1 of 2: model: not on this machine"),
        ("unforeseen", TuningError, "process 1 of 2: ZeroDivisionError: here; nothing was written"),
        ("ended", TuningError, "a process of 2 was ended from outside; nothing was written"),
        ("elsewhere", InputError, "model: said by the first"),
    ],
)
def test_what_ends_one_process_ends_all_and_is_told_once(
    how: str, kind: type[IGDError], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as error:
        run_together(fail, (how,), team=TWO, device="cpu", out=tmp_path)
    assert str(error.value) == told


def test_processes_of_a_launcher_are_one_run_with_one_voice(inputs: RunInputs, tmp_path: Path) -> None:
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE))
    words = ["tune", "--artifact", inputs.artifact, "--train", inputs.train, "--valid", inputs.valid]
    words += ["--tokenizer", inputs.tokenizer, "--from-config", shape, "--device", "cpu", "--out", tmp_path / "run"]

    def launch(*more: str) -> list[tuple[str, str]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        args = (port, str(tmp_path), [*map(str, words), *FLAGS.split(), "--epochs", "1", *more])
        start_processes(launched, args, nprocs=2, start_method="forkserver")
        return [((tmp_path / f"code-{rank}").read_text(), (tmp_path / f"said-{rank}").read_text()) for rank in range(2)]

    (code, said), other = launch("--json", "--shard")
    assert (code, other) == ("0", ("0", ""))
    record = json.loads(said.splitlines()[-1])
    assert (record["status"], record["steps"], record["devices"], record["sharded"]) == ("finished", 4, 2, True)
    first, second = launch("--devices", "3")
    assert first == ("2", "igd: devices: 3, and the launcher started 2 processes\n")
    assert second == ("2", "")


def test_more_devices_than_there_are_are_refused(inputs: RunInputs) -> None:
    with pytest.raises(InputError, match=r"devices: 4096, and this machine has \d+ cores"):
        tune_on_devices(inputs, settings(), team=Team(size=4096))
