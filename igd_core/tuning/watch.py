"""The trainer's callback: order of rows, checkpoints, validation, stopping, and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from igd_core.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from igd_core.tuning.trainer import IGDTrainer

History = Sequence[Mapping[str, Any]]


def best_step(history: History) -> int | None:
    """Step of the lowest validation loss, the earliest of equals; None before the first validation."""
    evaluated = [entry for entry in history if "eval_loss" in entry]
    return min(evaluated, key=lambda entry: (entry["eval_loss"], entry["step"]))["step"] if evaluated else None


def should_stop(history: History, patience: int) -> bool:
    """Whether none of the last ``patience`` validations was better than an earlier one."""
    steps = [entry["step"] for entry in history if "eval_loss" in entry]
    best = best_step(history)
    return best is not None and len(steps) - 1 - steps.index(best) >= patience


class RunCallback(TrainerCallback):
    """Its decisions follow from the trainer's state alone, so a resumed run decides the same.

    The checkpoint of an epoch's last step is written after the validation: a run resumed from an earlier one would take
    the epoch for finished and skip the validation.
    """

    def __init__(
        self, trainer: IGDTrainer, *, best: Path, save_every: int, patience: int, on_validation: Callable[[], object]
    ) -> None:
        self._trainer = trainer
        self._best = best
        self._save_every = save_every
        self._patience = patience
        self._on_validation = on_validation
        self._bar: Any = None
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Show the progress bar, in one process."""
        del args, control
        if self._trainer.team.is_first:
            self._bar = progress(total=state.max_steps, initial=state.global_step, unit="step", desc="tuning")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Set the epoch's order of rows."""
        del args, control
        self._trainer.sampler.set_epoch(state.global_step // self._trainer.sampler.steps_per_epoch)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Start the clock."""
        del args, state, control
        self._started = time.perf_counter()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Add up the step's losses, and end the run if they are no number."""
        del args, state, control
        self._trainer.finish_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Log each step, and save at intervals."""
        del args
        self._trainer.seconds += time.perf_counter() - self._started
        ends_epoch = state.global_step % self._trainer.sampler.steps_per_epoch == 0
        control.should_log = True
        control.should_save = state.global_step % self._save_every == 0 and not ends_epoch
        if self._bar is not None:
            self._bar.update(1)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Validate, then save."""
        del args, state
        control.should_evaluate = True
        control.should_save = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """Show loss and speed."""
        del args, state, control
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix_str(f"loss {logs['loss']:.3f}, {self._trainer.examples_per_second():.1f} rows/s")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Keep the model if it is the best so far; stop if it no longer improves."""
        del args
        if best_step(state.log_history) == state.global_step:
            self._trainer.write_model(self._best)
        control.should_training_stop = should_stop(state.log_history, self._patience)
        self._on_validation()
        return control

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Close the progress bar."""
        del args, state, control
        if self._bar is not None:
            self._bar.close()
