"""A run: rows and model in, a folder out that holds the best model, the record, and what resuming needs.

RUN/run.json        settings, data fingerprints, versions, losses by step, how it ended
RUN/model/          the best checkpoint, or RUN/adapter/: the best adapter; `igd serve` takes either
RUN/checkpoints/    the newest state, until the run is finished
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.artifact import load_artifact
from igd_core.data.interactions import Interactions
from igd_core.data.readers import read_interactions
from igd_core.data.rows import newest_rows
from igd_core.engines.adapters import WEIGHTS_FILE
from igd_core.errors import DataError, InputError, TuningError
from igd_core.tokenization import require_same_tokenizer
from igd_core.tuned_prompt import TunedCatalogue, TunedPrompt
from igd_core.tuning.examples import Examples, PackLimits, make_examples
from igd_core.tuning.settings import TuningSettings
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from igd_core.artifact import Artifact
    from igd_core.data.rows import HistoryRows
    from igd_core.tuning.backbone import Backbone
    from igd_core.tuning.trainer import IGDTrainer

RECORD = "run.json"
RECORD_FORMAT = "igd-run"
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """Where everything comes from and goes to.

    Attributes:
        artifact: directory of the artefact.
        train: history rows to tune on.
        valid: history rows to stop by.
        out: the run's folder.
        model: checkpoint to start from; None with ``from_config``.
        adapter: directory of an adapter of that checkpoint to go on from.
        tokenizer: directory of the tokenizer of a model from scratch, or of ``model``'s own with tokens added.
        device: ``auto``, ``cpu``, ``cuda``.
        on_unknown: what happens to a row whose target is not in the catalogue, ``error`` or ``drop``.
    """

    artifact: Path
    train: Path
    valid: Path
    out: Path
    model: str | None = None
    adapter: Path | None = None
    tokenizer: Path | None = None
    device: str = "auto"
    on_unknown: str = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningData:
    """The rows of a run, and the count of those left out because their target is not in the catalogue."""

    train: Examples
    valid: Examples
    dropped: int


def tune(inputs: RunInputs, settings: TuningSettings, *, resume: bool = False) -> dict[str, Any]:
    """Tune, or go on where a killed run stopped; returns the run record.

    Raises:
        InputError: settings, rows or titles that cannot be used; with ``resume``, ones that differ from the run's.
        ModelError: the checkpoint.
        TuningError: the folder holds something else, or the loss is no longer a number.
    """
    record_path = inputs.out / RECORD
    before = _read_record(record_path)
    if before is None and resume:
        raise TuningError(f"{record_path}: not found, so there is no run to resume")
    if before is not None and not resume:
        raise TuningError(f"{inputs.out}: holds a run already; resume it, or choose another folder")
    if before is None and inputs.out.exists() and (not inputs.out.is_dir() or any(inputs.out.iterdir())):
        raise TuningError(f"{inputs.out}: exists and holds no run")
    artifact = load_artifact(inputs.artifact)
    record = _new_record(inputs, settings, artifact)
    if before is not None:
        _require_same(before, record)
        if before["status"] == "finished":
            return before
    data = read_data(inputs, settings, artifact)
    record["rows"] = _rows_record(data)
    return _train(inputs, settings, artifact, data, record)


def read_data(inputs: RunInputs, settings: TuningSettings, artifact: Artifact) -> TuningData:
    """Both files as packs.

    Raises:
        DataError: a file that cannot be read, holds no history rows, or has a target outside the catalogue
            (``on_unknown="drop"`` leaves such rows out and counts them).
    """
    limits = PackLimits(
        max_tokens=settings.max_tokens,
        tokens=max(settings.pack_tokens, settings.max_tokens),
        rows=settings.rows_together,
    )
    train, dropped_of_train = _read_rows(inputs.train, artifact, inputs.on_unknown)
    if settings.rows_per_user:
        train = newest_rows(train, settings.rows_per_user)
    valid, dropped_of_valid = _read_rows(inputs.valid, artifact, inputs.on_unknown)
    train_examples, valid_examples = (
        make_examples(artifact, _drawn(rows, wanted, settings.seed), limits, settings.token_weights)
        for rows, wanted in ((train, settings.train_rows), (valid, settings.valid_rows))
    )
    return TuningData(train=train_examples, valid=valid_examples, dropped=dropped_of_train + dropped_of_valid)


def _read_rows(path: Path, artifact: Artifact, on_unknown: str) -> tuple[HistoryRows, int]:
    """A file's rows, and how many had a target that is not in the catalogue."""
    read = read_interactions(
        path,
        artifact.catalogue,
        on_unknown="drop" if on_unknown == "drop" else "error",
        optional=("user_id",),
        wanted="histories",
    )
    if isinstance(read.data, Interactions):  # for the type checker: refused before it was read
        raise DataError(f"{path}: single interactions")
    return read.data, read.dropped


def _drawn(rows: HistoryRows, wanted: int, seed: int) -> HistoryRows:
    """``wanted`` rows drawn by the seed, or all of them."""
    if not 0 < wanted < len(rows):
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:wanted]))


def _train(
    inputs: RunInputs, settings: TuningSettings, artifact: Artifact, data: TuningData, record: dict[str, Any]
) -> dict[str, Any]:
    from transformers import set_seed
    from transformers.utils import logging

    from igd_core.tuning.backbone import ADAPTER, MODEL, load_backbone
    from igd_core.tuning.trainer import CheckpointFolder, IGDTrainer
    from igd_core.tuning.watch import RunCallback, should_stop

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(settings.seed)
    backbone = replace(
        load_backbone(
            inputs.model, settings, tokenizer_dir=inputs.tokenizer, device=inputs.device, adapter=inputs.adapter
        ),
        prompt=TunedPrompt.of(artifact.manifest.template, catalogue=TunedCatalogue.of(artifact)),
    )
    require_same_tokenizer(artifact.manifest.tokenizer_sha256, backbone.tokenizer)
    record |= _model_record(backbone)
    inputs.out.mkdir(parents=True, exist_ok=True)
    checkpoints = CheckpointFolder(path=inputs.out / "checkpoints")
    trainer = IGDTrainer(
        backbone=backbone, settings=settings, train=data.train, valid=data.valid, checkpoints=checkpoints
    )

    def write_record(**more: object) -> None:
        write_json(inputs.out / RECORD, record | _progress(trainer) | more)

    best = inputs.out / (ADAPTER if backbone.is_adapter else MODEL)
    trainer.add_callback(
        RunCallback(
            trainer, best=best, save_every=settings.save_every, patience=settings.patience, on_validation=write_record
        )
    )
    newest = checkpoints.newest()
    history = _history_of(newest)
    write_record(history=history)
    if newest is not None and should_stop(history, settings.patience):
        finished = record | {"status": "finished", "history": history}
        write_json(inputs.out / RECORD, finished)
    else:
        try:
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        except TuningError as error:
            write_record(status="failed", error=str(error))
            raise
        finished = record | _progress(trainer) | {"status": "finished"}
        write_json(inputs.out / RECORD, finished)
    shutil.rmtree(checkpoints.path, ignore_errors=True)
    return finished


def _history_of(checkpoint: Path | None) -> list[dict[str, Any]]:
    if checkpoint is None:
        return []
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    history: list[dict[str, Any]] = state["log_history"]
    return [_finite(entry) for entry in history]


def _progress(trainer: IGDTrainer) -> dict[str, Any]:
    """Losses by step, and what the arithmetic took in this process."""
    return {
        "history": [_finite(entry) for entry in trainer.state.log_history],
        "steps": trainer.state.global_step,
        "examples_per_second": round(trainer.examples_per_second(), 3),
    }


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """NaN is no JSON; the mean over no tokens becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }


def _new_record(inputs: RunInputs, settings: TuningSettings, artifact: Artifact) -> dict[str, Any]:
    record = {
        "format": RECORD_FORMAT,
        "status": "running",
        "settings": settings.to_json(),
        "artifact": {
            "version": artifact.version,
            "name": artifact.manifest.name,
            "template": artifact.manifest.template.to_json(),
        },
        "data": {
            part: {"file": path.name, "sha256": _sha256(path)}
            for part, path in (("train", inputs.train), ("valid", inputs.valid))
        },
        "on_unknown": inputs.on_unknown,
        "model": inputs.model,
        "adapter": None if inputs.adapter is None else _sha256(inputs.adapter / WEIGHTS_FILE),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
    }
    made: dict[str, Any] = json.loads(json.dumps(record))  # lists for tuples: as it will be read again
    return made


def _rows_record(data: TuningData) -> dict[str, Any]:
    return {
        "dropped": data.dropped,
        **{
            part: {
                "rows": examples.rows,
                "packs": len(examples.packs),
                "tokens_alone": examples.row_tokens,
                "tokens_computed": examples.tokens,
                "response_tokens": examples.targets,
                "zero_ig_share": round(examples.zero_ig_share, 4),
                "shortened": examples.shortened,
            }
            for part, examples in (("train", data.train), ("valid", data.valid))
        },
    }


def _model_record(backbone: Backbone) -> dict[str, Any]:
    parameters = list(backbone.model.parameters())
    return {
        "architecture": backbone.plain.config.model_type,
        "parameters": sum(weight.numel() for weight in parameters),
        "trained_parameters": sum(weight.numel() for weight in parameters if weight.requires_grad),
        "device": str(backbone.plain.device),
    }


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TuningError(f"{path}: cannot be read ({error})") from None
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise TuningError(f"{path}: is no run record")
    return record


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A resumed run must be the same run: otherwise its record would be about something that never was."""
    with_defaults = TuningSettings().to_json() | before.get("settings", {})  # of settings that are younger than the run
    before = {**before, "settings": with_defaults}
    for part in ("settings", "data", "artifact", "model", "adapter", "on_unknown"):
        if before.get(part) == now[part]:
            continue
        old, new = before.get(part), now[part]
        if isinstance(old, dict):
            name = next(key for key in new if old.get(key) != new[key])
            raise InputError(f"{part}: {name} was {old.get(name)!r} in the run to resume, now {new[name]!r}")
        raise InputError(f"{part}: was {old!r} in the run to resume, now {new!r}")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
