"""Run a tuning: rows and a model in; out comes a folder with the best model, the record, and what resuming needs.

RUN/run.json        settings, data fingerprints, versions, losses by step, how it ended
RUN/model/          the best checkpoint, or RUN/adapter/: the best adapter; `igd serve` takes either
RUN/checkpoints/    the newest state, until the run is finished
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.artifact import load_artifact
from igd_core.catalogue.tokenization import require_same_tokenizer
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.rows import HistoryRows, newest_rows, rows_of_users
from igd_core.engines.tuned_prompt import TunedCatalogue, TunedPrompt
from igd_core.errors import DataError, InputError, TuningError
from igd_core.tuning.checkpoints import CheckpointFolder
from igd_core.tuning.examples import PackLimits, make_examples
from igd_core.tuning.inputs import RunInputs, TuningData
from igd_core.tuning.record import (
    RECORD,
    begun_before,
    hold_folder,
    new_record,
    require_base_of_adapter,
    require_same,
    rows_record,
)
from igd_core.tuning.team import Team, ToldElsewhere
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.artifact import Artifact
    from igd_core.datasets.interactions_file import InteractionsFile
    from igd_core.datasets.sources import Source
    from igd_core.tuning.settings import TuningSettings
    from igd_core.tuning.trainer import IGDTrainer

_ALONE = Team()
_LEAST_TRAINED = 50
"""Validation rows of trained items that can choose a state alone; where there are fewer, all rows count."""
_MANY_UNTRAINED = 0.2
"""Share of validation rows above which it is told that they count. Books has 51 %, Video Games 4 %."""


def tune(
    inputs: RunInputs,
    settings: TuningSettings,
    *,
    resume: bool = False,
    tell: Callable[[Sequence[str]], None] | None = None,
    team: Team = _ALONE,
) -> dict[str, Any]:
    """Tune, or resume a killed run; returns the run's record.

    Args:
        inputs: files and folders.
        settings: of the tuning.
        resume: go on with the run in ``inputs.out``, with as many processes as there are now.
        tell: gets notes on how the rows were read, before tuning begins.
        team: the processes that share the run; each calls this with the same arguments.

    Raises:
        InputError: settings, rows or titles that cannot be used; or, with ``resume``, that differ from the run's.
        ModelError: the checkpoint.
        TuningError: the folder holds something else, or the loss became NaN or infinite.
    """
    with contextlib.ExitStack() as held:
        begun = team.agreed(lambda: _begin(inputs, settings, held if team.is_first else None, resume=resume))
        if isinstance(begun, dict):
            return begun
        if tell is not None and team.is_first:
            tell(begun.data.notes)
        record = _train(inputs, settings, begun, team)
        if tell is not None and team.is_first:
            tell(_of_what_is_kept(record, settings))
        return record


def _of_what_is_kept(record: Mapping[str, Any], settings: TuningSettings) -> list[str]:
    """What to say of the state that is kept: nothing, unless it is the one that the run began with."""
    from igd_core.tuning.watch import best_step

    if settings.warmup_steps == 0 or record.get("steps") == 1 or best_step(record["history"]) != 1:
        return []
    told = (
        "the model that is kept is that of step 1, before which nothing was learned (a warm-up begins with learning "
        "rate 0), since no later one has a lower validation loss: a smaller --batch makes more steps of an epoch"
    )
    return [told]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Begun:
    """A run of which everything has been read but the model, and nothing written."""

    artifact: Artifact
    data: TuningData
    record: dict[str, Any]


def _begin(
    inputs: RunInputs, settings: TuningSettings, held: contextlib.ExitStack | None, *, resume: bool
) -> _Begun | dict[str, Any]:
    """Read everything but the model, and hold the run's folder; or the record of a run that is finished.

    ``held`` is None in processes that share the run with the one that holds its folder.
    """
    before = begun_before(inputs.out, resume=resume)
    artifact = load_artifact(inputs.artifact)
    record = new_record(inputs, settings, artifact)
    if inputs.adapter is not None:
        require_base_of_adapter(inputs.adapter, record)
    if before is not None:
        require_same(before, record)
        if before["status"] == "finished":
            return before
    data = read_data(inputs, settings, artifact)
    record["rows"] = rows_record(data)
    if held is not None:
        hold_folder(inputs.out, before, held, resume=resume)
    return _Begun(artifact=artifact, data=data, record=record)


def read_data(inputs: RunInputs, settings: TuningSettings, artifact: Artifact) -> TuningData:
    """Read and pack both files of rows.

    Raises:
        DataError: a file that cannot be read, holds no history rows, or has a target outside the catalogue
            (``on_unknown="drop"`` leaves such rows out and counts them).
    """
    limits = PackLimits(
        max_tokens=settings.max_tokens,
        tokens=max(settings.pack_tokens, settings.max_tokens),
        rows=settings.rows_together,
        decisions_only=settings.normalise == "children",
    )
    read = [read_rows(path, inputs, artifact) for path in (inputs.train, inputs.valid)]
    train, valid = (file.data for file in read)
    if not isinstance(train, HistoryRows) or not isinstance(valid, HistoryRows):  # for the type checker
        raise DataError("single interactions")
    if settings.rows_per_user:
        train = newest_rows(train, settings.rows_per_user)
    if settings.train_users:
        train = rows_of_users(train, settings.train_users, settings.seed)
    train = drawn(train, settings.train_rows, settings.seed)
    counted = _valid_rows(artifact, valid, train, settings)
    valid = drawn(counted.rows, settings.valid_rows, settings.seed)
    train_examples, valid_examples = (
        make_examples(artifact, rows, limits, settings.token_weights) for rows in (train, valid)
    )
    return TuningData(
        train=train_examples,
        valid=valid_examples,
        dropped=sum(file.dropped for file in read),
        bad_rows=sum(file.bad_rows for file in read),
        untrained=counted.left_out,
        notes=[*(note for file in read for note in file.notes), *counted.notes],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Counted:
    """The validation rows that count, how many do not, and what to say of that."""

    rows: HistoryRows
    left_out: int = 0
    notes: Sequence[str] = ()


def _valid_rows(artifact: Artifact, valid: HistoryRows, train: HistoryRows, settings: TuningSettings) -> _Counted:
    """Tell validation rows whose title some training row asks for from the others.

    On Books, where the others are half, their loss rose with every epoch while that of the rest fell, and the lowest
    loss over all was that of an early state (docs/research/sets.md).
    """
    trained = np.isin(artifact.leaf_of_item[valid.item], artifact.leaf_of_item[train.item])
    untrained = int(np.count_nonzero(~trained))
    told = f"{untrained:,} of {len(valid):,} validation rows ask for items that no training row asks for"
    if not untrained:
        return _Counted(rows=valid)
    others = len(valid) - untrained
    if not others:
        return _Counted(rows=valid, notes=[f"{told}: they count, since there are no others"])
    if settings.valid_targets == "trained" and others < _LEAST_TRAINED:
        return _Counted(rows=valid, notes=[f"{told}: they count, since the others are only {others}"])
    if settings.valid_targets == "trained":
        note = f"{told}: left out; the other {others:,} count (--valid-targets all: all of them)"
        return _Counted(rows=valid.take(np.flatnonzero(trained)), left_out=untrained, notes=[note])
    if untrained > _MANY_UNTRAINED * len(valid):
        note = f"{told}; by their loss an early state may be kept: --valid-targets trained leaves them out"
        return _Counted(rows=valid, notes=[note])
    return _Counted(rows=valid)


def read_rows(path: Path | Source, inputs: RunInputs, artifact: Artifact) -> InteractionsFile:
    """Read a file of history rows.

    Raises:
        DataError: as `read_data`.
    """
    return read_interactions(
        path,
        artifact.catalogue,
        on_unknown="drop" if inputs.on_unknown == "drop" else "error",
        optional=("user_id",),
        wanted="histories",
        reading=inputs.reading,
    )


def drawn(rows: HistoryRows, wanted: int, seed: int) -> HistoryRows:
    """``wanted`` rows drawn by the seed, or all of them."""
    if not 0 < wanted < len(rows):
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:wanted]))


def _train(inputs: RunInputs, settings: TuningSettings, begun: _Begun, team: Team) -> dict[str, Any]:
    from igd_core.tuning.backbone import ADAPTER, MODEL
    from igd_core.tuning.watch import RunCallback, should_stop

    checkpoints = CheckpointFolder.of(inputs.out)
    trainer, newest = team.agreed(lambda: (_trainer(inputs, settings, begun, team), checkpoints.newest()))
    record = begun.record | _model_record(trainer)

    def write_record(**more: object) -> dict[str, Any]:
        written = record | _progress(trainer) | more
        if team.is_first:
            inputs.out.mkdir(parents=True, exist_ok=True)
            write_json(inputs.out / RECORD, written)
        return written

    best = inputs.out / (ADAPTER if trainer.backbone.is_adapter else MODEL)
    trainer.add_callback(
        RunCallback(
            trainer, best=best, save_every=settings.save_every, patience=settings.patience, on_validation=write_record
        )
    )
    history = _history_of(newest)
    write_record(history=history)
    if newest is not None and should_stop(history, settings.patience):
        finished = record | {"status": "finished", "history": history}
        if team.is_first:
            write_json(inputs.out / RECORD, finished)
    else:
        try:
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        except TuningError as error:
            write_record(status="failed", error=str(error))
            if team.is_first:
                raise
            raise ToldElsewhere(str(error)) from None
        finished = write_record(status="finished")
    if team.is_first:
        shutil.rmtree(checkpoints.path, ignore_errors=True)
    return finished


def _trainer(inputs: RunInputs, settings: TuningSettings, begun: _Begun, team: Team) -> IGDTrainer:
    """The model, and what trains it."""
    from transformers import set_seed
    from transformers.utils import logging

    from igd_core.tuning.backbone import load_backbone
    from igd_core.tuning.trainer import IGDTrainer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(settings.seed)
    artifact = begun.artifact
    if team.shards and settings.four_bit:
        raise InputError("four_bit: weights in 4 bits are not split (--shard)")
    backbone = replace(
        load_backbone(
            inputs.model,
            settings,
            tokenizer_dir=inputs.tokenizer,
            device="cpu" if team.shards else inputs.device,  # split weights go to their device part by part
            adapter=inputs.adapter,
        ),
        prompt=TunedPrompt.of(
            artifact.manifest.template, catalogue=TunedCatalogue.of(artifact), scored=settings.scored
        ),
    )
    require_same_tokenizer(artifact.manifest.tokenizer_sha256, backbone.tokenizer)
    return IGDTrainer(
        backbone=backbone,
        settings=settings,
        data=begun.data,
        checkpoints=CheckpointFolder.of(inputs.out),
        trie=artifact.trie if settings.normalise == "children" else None,
        team=team,
    )


def _history_of(checkpoint: Path | None) -> list[dict[str, Any]]:
    if checkpoint is None:
        return []
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    history: list[dict[str, Any]] = state["log_history"]
    return [_finite(entry) for entry in history]


def _progress(trainer: IGDTrainer) -> dict[str, Any]:
    """Losses by step, and the time spent in this process."""
    return {
        "history": [_finite(entry) for entry in trainer.state.log_history],
        "steps": trainer.state.global_step,
        "examples_per_second": round(trainer.examples_per_second(), 3),
    }


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN, which JSON lacks, by null: the mean over no tokens."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }


def _model_record(trainer: IGDTrainer) -> dict[str, Any]:
    parameters = list(trainer.backbone.model.parameters())
    return {
        "architecture": trainer.backbone.plain.config.model_type,
        "parameters": sum(weight.numel() for weight in parameters),
        "trained_parameters": sum(weight.numel() for weight in parameters if weight.requires_grad),
        "device": str(trainer.args.device),
        "devices": trainer.team.size,
        "sharded": trainer.team.shards,
    }
