"""Tune a model further by the lists that it gives: a run of `list_steps`, kept as `run` keeps its own.

RUN/run.json        settings, data fingerprints, versions, an entry for each step and validation, how it ended
RUN/model/          the checkpoint with the best NDCG@10 on validation rows; that which the run began with counts, too
RUN/checkpoints/    the newest state, until the run is finished
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from igd_core.artifact import load_artifact
from igd_core.datasets.rows import HistoryRows
from igd_core.engines.embedded.checkpoint import context_tokens, resolve_checkpoint
from igd_core.engines.fit import require_artifact_fits
from igd_core.engines.tuned_prompt import TunedCatalogue, TunedPrompt, read_tuned_prompt, warn_of_other_prompts
from igd_core.errors import DataError, EngineError, InputError, TuningError
from igd_core.ids import ItemIndex
from igd_core.progress import progress
from igd_core.tuning.backbone import MODEL, Backbone, load_backbone
from igd_core.tuning.checkpoints import CheckpointFolder
from igd_core.tuning.list_steps import ListRows, ListTuner
from igd_core.tuning.record import RECORD, begun_before, hold_folder, new_record, require_same
from igd_core.tuning.run import drawn, read_rows
from igd_core.tuning.settings import ListSettings, TuningSettings
from igd_core.whole_files import replaced_folder, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.search.normalisation import Normalisation
    from igd_core.tuning.inputs import RunInputs

History = list[dict[str, Any]]
_STATE, _PROGRESS = "state.pt", "progress.json"


def tune_lists(
    inputs: RunInputs,
    settings: ListSettings,
    *,
    resume: bool = False,
    tell: Callable[[Sequence[str]], None] | None = None,
) -> dict[str, Any]:
    """Tune, or resume a killed run; returns the run's record.

    Args:
        inputs: files and folders; ``model`` is a checkpoint that was tuned over children.
        settings: of the tuning.
        resume: go on with the run in ``inputs.out``.
        tell: gets notes on how the rows were read, before tuning begins.

    Raises:
        InputError: settings, rows, or a model that cannot be used; or, with ``resume``, that differ from the run's.
        ModelError: the checkpoint.
        TuningError: the folder holds something else, or a figure became NaN or infinite.
    """
    before = begun_before(inputs.out, resume=resume)
    artifact = load_artifact(inputs.artifact)
    scored = _scored(inputs)
    if settings.group > artifact.trie.num_leaves:
        raise InputError(f"group: {settings.group}; the catalogue has {artifact.trie.num_leaves} titles")
    record = new_record(inputs, settings, artifact) | {"scored": str(scored)}
    if before is not None:
        require_same(before, record, ListSettings)
        if before["status"] == "finished":
            return before
    backbone = _backbone(inputs, settings, artifact, scored)
    most = _most_tokens(settings, artifact, positions=context_tokens(backbone.plain.config))
    read = [read_rows(path, inputs, artifact) for path in (inputs.train, inputs.valid)]
    (train, train_shortened), (valid, valid_shortened) = (
        _list_rows(file.data, artifact, wanted=wanted, seed=settings.seed, max_tokens=most)
        for file, wanted in zip(read, (settings.rows, settings.valid_rows), strict=True)
    )
    if tell is not None:
        tell([note for file in read for note in file.notes])
    record["rows"] = {
        "dropped": sum(file.dropped for file in read),
        "bad_rows": sum(file.bad_rows for file in read),
        "train": {"rows": len(train), "shortened": train_shortened},
        "valid": {"rows": len(valid), "shortened": valid_shortened},
    }
    order = _Order(rows=len(train), settings=settings)
    tuner = ListTuner(backbone, artifact, settings, temperature=scored.temperature, steps=order.steps)
    with contextlib.ExitStack() as held:
        hold_folder(inputs.out, before, held, resume=resume)
        run = _Run(out=inputs.out, record=record, settings=settings, backbone=backbone, tuner=tuner)
        return run.to_the_end(train, valid, order)


def _scored(inputs: RunInputs) -> Normalisation:
    """How the model that the run starts from is scored.

    Raises:
        InputError: not over children, or it does not say.
    """
    if inputs.model is None:
        raise InputError("model: a checkpoint tuned over children is needed (igd tune --normalise children)")
    prompt = read_tuned_prompt(resolve_checkpoint(inputs.model))
    found = "does not say what it was tuned over" if prompt is None else f"has normalise {prompt.scored.normalise}"
    if prompt is None or prompt.scored.normalise != "children":
        raise InputError(f"model: {inputs.model} {found}; it must be children (igd tune --normalise children)")
    return prompt.scored


def _backbone(inputs: RunInputs, settings: ListSettings, artifact: Artifact, scored: Normalisation) -> Backbone:
    """The model with all its weights to be trained."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    asked = TuningSettings(normalise="children", max_tokens=settings.max_tokens)
    backbone = load_backbone(inputs.model, asked, tokenizer_dir=None, device=inputs.device)
    vocab_size = int(backbone.plain.config.get_text_config().vocab_size)
    require_artifact_fits(artifact, backbone.tokenizer, vocab_size)  # before anything is written
    before = read_tuned_prompt(resolve_checkpoint(str(inputs.model)))
    if before is not None:
        warn_of_other_prompts({str(inputs.model): before}, artifact, backbone.tokenizer)
    prompt = TunedPrompt.of(artifact.manifest.template, catalogue=TunedCatalogue.of(artifact), scored=scored)
    return replace(backbone, prompt=prompt)


def _most_tokens(settings: ListSettings, artifact: Artifact, *, positions: int) -> int:
    """Of a prompt with a path.

    Raises:
        InputError: fewer than a prompt without a history and the longest path take.
    """
    most = min(settings.max_tokens, positions)
    needed = len(artifact.prompt(())) + artifact.trie.depth
    if needed > most:
        limit = f"max_tokens: {most}" if most == settings.max_tokens else f"model: it has {most} positions"
        raise InputError(f"{limit}; a prompt without a history and the longest path take {needed} tokens")
    return most


def _list_rows(rows: object, artifact: Artifact, *, wanted: int, seed: int, max_tokens: int) -> tuple[ListRows, int]:
    """The rows, and how many of them lost history items to ``max_tokens``."""
    if not isinstance(rows, HistoryRows):  # for the type checker
        raise DataError("single interactions")
    if not len(rows):
        raise DataError("there are no rows to tune on")
    rows = drawn(rows, wanted, seed)
    prompts, shortened = [], 0
    for row in range(len(rows)):
        history = [ItemIndex(item) for item in rows.history(row).tolist()]
        left_out = artifact.num_left_out(history, max_tokens)
        shortened += left_out > 0
        prompts.append(artifact.prompt(history, left_out=left_out))
    return ListRows(prompts=prompts, target=artifact.leaf_of_item[rows.item].astype(np.int64)), shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """Which rows a step takes: each epoch all of them once, in an order that follows from the seed."""

    rows: int
    settings: ListSettings

    @property
    def _of_epoch(self) -> int:
        return -(-self.rows // self.settings.batch)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self._of_epoch * self.settings.epochs

    def of_step(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions of the rows of a step, counted from 1; an epoch's last step may have fewer."""
        epoch, place = divmod(number - 1, self._of_epoch)
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(self.rows)
        return order[place * self.settings.batch :][: self.settings.batch]


def best_step(history: Sequence[Mapping[str, Any]]) -> int:
    """Step of the highest validation NDCG, the earliest of equals; 0 is the model that the run began with."""
    evaluated = [entry for entry in history if "eval_ndcg" in entry]
    return int(max(evaluated, key=lambda entry: (entry["eval_ndcg"], -entry["step"]))["step"])


def _should_stop(history: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Whether none of the last ``patience`` validations was better than an earlier one."""
    steps = [entry["step"] for entry in history if "eval_ndcg" in entry]
    return bool(steps) and len(steps) - 1 - steps.index(best_step(history)) >= patience


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """A run's folder, and what goes into it."""

    out: Path
    record: dict[str, Any]
    settings: ListSettings
    backbone: Backbone
    tuner: ListTuner

    def to_the_end(self, train: ListRows, valid: ListRows, order: _Order) -> dict[str, Any]:
        """Go on from the newest checkpoint, if there is one."""
        checkpoints, settings = CheckpointFolder.of(self.out), self.settings
        history = self._resumed(checkpoints.newest())
        step = max((entry["step"] for entry in history), default=0)
        self._write_record(history)
        try:
            if not history:
                self._validate(valid, history, 0)
            with progress(total=order.steps, initial=step, unit="step", desc="tuning by lists") as bar:
                while step < order.steps and not _should_stop(history, settings.patience):
                    step += 1
                    history.append(self.tuner.step(step, train.take(order.of_step(step))))
                    validates = step % settings.validate_every == 0 or step == order.steps
                    if validates:
                        self._validate(valid, history, step)
                    if validates or step % settings.save_every == 0:
                        self._save(checkpoints, history, step)
                    bar.update(1)
        except (TuningError, EngineError) as error:
            self._write_record(history, status="failed", error=str(error))
            raise TuningError(str(error)) from None
        finished = self._write_record(history, status="finished")
        shutil.rmtree(checkpoints.path, ignore_errors=True)
        return finished

    def _resumed(self, newest: Path | None) -> History:
        if newest is None:
            return []
        self.tuner.load(torch.load(newest / _STATE, map_location="cpu", weights_only=True))
        history: History = json.loads((newest / _PROGRESS).read_text("utf-8"))["history"]
        return history

    def _validate(self, valid: ListRows, history: History, step: int) -> None:
        """Add an entry, and keep the model if it is the best so far."""
        history.append({"step": step, **self.tuner.validate(valid)})
        if best_step(history) == step:
            with replaced_folder(self.out / MODEL) as new:
                self.backbone.write(new)
        self._write_record(history)

    def _save(self, checkpoints: CheckpointFolder, history: History, step: int) -> None:
        with replaced_folder(checkpoints.path / f"checkpoint-{step}") as new:
            torch.save(self.tuner.state(), new / _STATE)
            write_json(new / _PROGRESS, {"history": history})
        checkpoints.keep_newest()

    def _write_record(self, history: History, **more: object) -> dict[str, Any]:
        parameters = sum(weight.numel() for weight in self.backbone.model.parameters())
        steps = max((entry["step"] for entry in history), default=0)
        written = self.record | {"parameters": parameters, "steps": steps, "history": history} | more
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / RECORD, written)
        return written
