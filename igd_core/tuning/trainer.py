"""transformers' Trainer with the IGD loss, steps of whole packs, and checkpoints written atomically."""

from __future__ import annotations

import functools
import math
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from igd_core.errors import TuningError
from igd_core.tuning.batches import StepSampler, by_length, collate
from igd_core.tuning.loss import LossParts, LossSettings, igd_loss, response_losses
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.tuning.backbone import Backbone
    from igd_core.tuning.examples import Examples
    from igd_core.tuning.settings import TuningSettings

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_EVALUATION_TOKENS = 8192  # in a batch; bounds the logits kept at once
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """The folder of a run's checkpoints: ``checkpoint-STEP`` folders, each complete."""

    path: Path

    def newest(self) -> Path | None:
        """The checkpoint with the highest step, or None."""
        return max(self._all(), key=_step_of, default=None)

    def keep_newest(self) -> None:
        """Delete all other checkpoints, and what an interrupted write left."""
        newest = self.newest()
        for path in self._all():
            if path != newest:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.path.glob(".checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> list[Path]:
        return [path for path in self.path.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def training_arguments(settings: TuningSettings, checkpoints: CheckpointFolder, *, device: str) -> TrainingArguments:
    """Settings in transformers' terms; a callback (`watch`) saves, evaluates and shows progress."""
    return TrainingArguments(
        output_dir=str(checkpoints.path),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_accumulation_steps=settings.micro_batches,
        per_device_train_batch_size=1,  # packs; the sampler decides
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        optim="adamw_torch",
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=settings.seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


class IGDTrainer(Trainer):
    """Trains one adapter or model on one device.

    Attributes:
        sampler: the order of packs; its ``micro_batches`` make an optimiser step.
        seconds: spent on batches and training steps in this process, without validation and checkpoints.
        rows_seen: rows trained on in this process.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        settings: TuningSettings,
        train: Examples,
        valid: Examples,
        checkpoints: CheckpointFolder,
        trie: TokenTrie | None = None,
    ) -> None:
        """``trie`` is that of the examples, where the loss is normalised over children."""
        self.sampler = StepSampler(
            train.packs, batch=settings.batch, micro_batches=settings.micro_batches, seed=settings.seed
        )
        device = backbone.plain.device.type
        arguments = training_arguments(settings, checkpoints, device=device)
        arguments.gradient_accumulation_steps = self.sampler.micro_batches
        if arguments.world_size > 1 or arguments.n_gpu > 1:
            found = max(arguments.world_size, arguments.n_gpu)
            raise TuningError(f"tuning runs on one device, found {found}: set CUDA_VISIBLE_DEVICES")
        super().__init__(
            model=cast("nn.Module", backbone.model),
            args=arguments,
            train_dataset=cast("Any", train.packs),
            eval_dataset=cast("Any", valid.packs),
            data_collator=cast("Any", functools.partial(collate, trie=trie)),
        )
        for unwanted in (ProgressCallback, PrinterCallback, DefaultFlowCallback):
            self.remove_callback(unwanted)
        self.loss_is_scaled_for_ga = True
        self.seconds = 0.0
        self.rows_seen = 0
        self._backbone = backbone
        self._settings = settings
        self._valid = valid
        self._trie = trie
        self._loss = LossSettings(
            temperature=settings.temperature, bear=settings.bear_settings, autocast=_AUTOCAST[settings.precision]
        )
        self._checkpoints = checkpoints
        self._decoder, self._head = backbone.parts()
        self._parts: LossParts | None = None
        self._scratch: Path | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches as the sampler makes them."""
        return DataLoader(
            cast("Any", self.train_dataset), batch_sampler=self.sampler, collate_fn=cast("Any", self.data_collator)
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of a step, and the sum of their weights, by which each of their losses is divided."""
        started = time.perf_counter()
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.seconds += time.perf_counter() - started
        self.rows_seen += sum(int(batch.pop("rows")) for batch in samples)
        total = sum(batch["weight"].sum() for batch in samples)
        return samples, torch.as_tensor(total).to(device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: ARG002 - transformers' signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The micro-batch's share of the step's loss.

        Raises:
            TuningError: it is not finite; nothing was written since the last checkpoint.
        """
        losses = response_losses(self._decoder, self._head, inputs, self._loss)
        loss = igd_loss(losses.cross_entropy, losses.weighted(inputs["weight"]), num_items_in_batch)
        if not torch.isfinite(loss):
            kept = self._checkpoints.newest()
            raise TuningError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}; "
                + (f"{kept} is kept" if kept else "there is no checkpoint yet")
                + "; a lower lr or more warmup_steps may help"
            )
        if model.training:
            parts = LossParts.of(losses.cross_entropy, inputs["zero_ig"], inputs["weight"])
            self._parts = parts if self._parts is None else self._parts + parts
        return loss

    def examples_per_second(self) -> float:
        """Rows a second of training in this process, without evaluation and checkpoints."""
        return self.rows_seen / self.seconds if self.seconds else 0.0

    def write_model(self, directory: Path) -> None:
        """Save the model or adapter in its present state."""
        self._backbone.write(directory)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss; add that of zero-IG and of positive-IG tokens."""
        if "loss" in logs and self._parts is not None:
            logs |= self._parts.means()
            self._parts = None
        super().log(logs, start_time)

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Losses over all validation rows as one batch; without BEAR's emphasis, which is no part of a likelihood."""
        self._backbone.model.eval()
        total: LossParts | None = None
        with torch.no_grad():
            for members in by_length(self._valid.packs, _EVALUATION_TOKENS):
                batch = collate([self._valid.packs[index] for index in members], self._trie)
                inputs = {
                    name: value.to(self.args.device) if isinstance(value, torch.Tensor) else value
                    for name, value in batch.items()
                }
                losses = response_losses(self._decoder, self._head, inputs, self._loss)
                parts = LossParts.of(losses.cross_entropy, inputs["zero_ig"], inputs["weight"])
                total = parts if total is None else total + parts
        if total is None:
            raise TuningError("there are no validation rows")
        metrics = {f"eval_{name}": value for name, value in total.means().items()}
        if not math.isfinite(metrics["eval_loss"]):
            raise TuningError(
                f"step {self.state.global_step}: the loss on the validation rows is {metrics['eval_loss']}; this model "
                "is not kept"
            )
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """As transformers does, but written to another name and renamed."""
        target = self._checkpoints.path / f"checkpoint-{self.state.global_step}"
        with replaced_folder(target) as new:
            self._scratch = new
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._scratch = None
            written = new / target.name
            for path in list(written.iterdir()):
                path.rename(new / path.name)
            written.rmdir()
        self._checkpoints.keep_newest()

    def _get_output_dir(self, trial: object) -> str:
        return str(self._scratch) if self._scratch is not None else str(super()._get_output_dir(trial))

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:  # noqa: ARG002
        """Save weights alone: transformers would add its arguments as a pickle."""
        directory = Path(output_dir or self._checkpoints.path)
        directory.mkdir(parents=True, exist_ok=True)
        self._backbone.write(directory)
