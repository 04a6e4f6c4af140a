"""transformers' Trainer with the IGD loss, steps of whole packs, and checkpoints written atomically."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from igd_core.errors import TuningError
from igd_core.tuning.batches import Batches, StepSampler, by_length, collate
from igd_core.tuning.loss import LossParts, LossSettings, ResponseLosses, ResponseModel, igd_loss
from igd_core.tuning.sharding import shard, share_optimizer, whole_weights
from igd_core.tuning.team import Team
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.tuning.backbone import Backbone
    from igd_core.tuning.checkpoints import CheckpointFolder
    from igd_core.tuning.inputs import TuningData
    from igd_core.tuning.settings import TuningSettings

_EVALUATION_TOKENS = 8192  # in a batch; bounds the logits kept at once
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}
_ALONE = Team()


def training_arguments(
    settings: TuningSettings, checkpoints: CheckpointFolder, *, passes: int, device: str
) -> TrainingArguments:
    """Settings in transformers' terms; a callback (`watch`) saves, evaluates and shows progress."""
    return TrainingArguments(
        output_dir=str(checkpoints.path),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_accumulation_steps=passes,
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
    """Trains one adapter or model on this process's device, together with the other processes of a team.

    What is random follows from the seed, the step and the rows, so it is the same whoever computes it.

    Attributes:
        sampler: the order of packs; its ``passes`` make this process's part of an optimiser step.
        team: the processes of the run.
        seconds: spent on batches and training steps in this process, without validation and checkpoints.
        rows_seen: rows trained on, in all processes, since this one began.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        settings: TuningSettings,
        data: TuningData,
        checkpoints: CheckpointFolder,
        trie: TokenTrie | None = None,
        team: Team = _ALONE,
    ) -> None:
        """``trie`` is that of the examples, where the loss is normalised over children."""
        self.sampler = StepSampler(
            data.train.packs,
            batch=settings.batch,
            micro_batches=settings.micro_batches,
            seed=settings.seed,
            team=team,
        )
        self.team = team
        device = team.device or backbone.plain.device.type
        arguments = training_arguments(settings, checkpoints, passes=self.sampler.passes, device=device)
        if arguments.n_gpu > 1:  # transformers would split every batch among all that it sees
            arguments._n_gpu = 1
        super().__init__(
            model=cast("nn.Module", backbone.model),
            args=arguments,
            train_dataset=Batches(data.train.packs, trie),
            eval_dataset=cast("Any", data.valid.packs),
        )
        for unwanted in (ProgressCallback, PrinterCallback, DefaultFlowCallback):
            self.remove_callback(unwanted)
        self.loss_is_scaled_for_ga = True
        self.seconds = 0.0
        self.rows_seen = 0
        self.backbone = backbone
        self._settings = settings
        self._valid = data.valid
        self._trie = trie
        self._losses = ResponseModel(
            backbone.model,
            backbone.parts(),
            LossSettings(
                temperature=settings.temperature, bear=settings.bear_settings, autocast=_AUTOCAST[settings.precision]
            ),
        )
        self._checkpoints = checkpoints
        self._parts: LossParts | None = None
        self._step = _Sums.none(self.args.device)
        self._scratch: Path | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches as the sampler makes them."""
        return DataLoader(cast("Any", self.train_dataset), batch_sampler=self.sampler, collate_fn=lambda batch: batch)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """After weights are split, which replaces them."""
        if self.team.shards:
            shard(self._losses, self.backbone.blocks, self.args.device)
        optimizer = super().create_optimizer(model)
        if self.team.shards:
            share_optimizer(optimizer)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Without a warm-up where the run is a single step: the rate of a warm-up's first step is 0."""
        if num_training_steps == 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Weights that are to be split go there part by part."""
        if not self.team.shards:
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: object = None) -> nn.Module:  # noqa: ARG002
        """What a step calls, instead of the model itself."""
        if not self.team.has_met or self.team.shards:
            return self._losses
        # Gradients lie in the buckets that are summed, not beside them.
        return DistributedDataParallel(self._losses, gradient_as_bucket_view=True)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """This process's micro-batches of a step, and the sum of the weights of all, which divides each one's loss."""
        started = time.perf_counter()
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.seconds += time.perf_counter() - started
        self._step.rows += sum(int(batch.pop("rows")) for batch in samples)
        total = self.sampler.weight_of_step(self.state.global_step % self.sampler.steps_per_epoch)
        return samples, torch.tensor(total, dtype=torch.float32, device=device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: ARG002 - transformers' signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The micro-batch's share of the step's loss, times the size of the team, whose mean gradients are taken."""
        seed = (self._settings.seed, self.state.global_step, inputs.pop("first_pack"))
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        losses = ResponseLosses.of(model(inputs))
        loss = igd_loss(losses.cross_entropy, losses.weighted(inputs["weight"]), num_items_in_batch)
        self._step.parts += LossParts.of(losses.cross_entropy, inputs["zero_ig"], inputs["weight"])
        self._step.loss += loss.detach().double()
        return loss * self.team.size

    def finish_step(self) -> None:
        """Add up the losses of all processes, before the optimiser takes its step.

        Raises:
            TuningError: their sum is not finite; nothing was written since the last checkpoint.
        """
        self._step.flos, self.current_flos = float(self.current_flos), 0
        step, self._step = self._step.over(self.team), _Sums.none(self.args.device)
        if not math.isfinite(step.loss):
            kept = self._checkpoints.newest()
            raise TuningError(
                f"step {self.state.global_step + 1}: the loss is {float(step.loss)}; "
                + (f"{kept} is kept" if kept else "there is no checkpoint yet")
                + "; a lower lr or more warmup_steps may help"
            )
        self._parts = step.parts
        self.rows_seen += step.rows
        self.state.total_flos += step.flos

    def store_flos(self) -> None:
        """Nothing: `finish_step` has added them up. transformers gathers them, also where one process saves alone."""

    def examples_per_second(self) -> float:
        """Rows a second of training in this process, without evaluation and checkpoints."""
        return self.rows_seen / self.seconds if self.seconds else 0.0

    def write_model(self, directory: Path) -> None:
        """Replace a folder by the model or adapter as it is now; all processes call it, and the first writes."""
        weights = self._whole_weights()
        if self.team.is_first:
            with replaced_folder(directory) as new:
                self.backbone.write(new, weights)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss; add that of zero-IG and of positive-IG tokens."""
        if "loss" in logs and self._parts is not None:
            logs |= self._parts.means()
            self._parts = None
        super().log(logs, start_time)

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Losses over all validation rows as one batch; without BEAR's emphasis, which is no part of a likelihood."""
        self.backbone.model.eval()
        batches = by_length(self._valid.packs, _EVALUATION_TOKENS)
        found = LossParts.none(self.args.device)
        with torch.no_grad():
            # Processes that share weights call the model as often; what one computes again counts once.
            for begin in range(0, len(batches), self.team.size):
                mine = begin + self.team.rank
                found += self._losses_of(batches[min(mine, len(batches) - 1)], counted=mine < len(batches))
        total = LossParts.of_sums(self.team.sum(found.sums()))
        metrics = {f"eval_{name}": value for name, value in total.means().items()}
        if not math.isfinite(metrics["eval_loss"]):
            raise TuningError(
                f"step {self.state.global_step}: the loss on the validation rows is {metrics['eval_loss']}; this model "
                "is not kept"
            )
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _losses_of(self, members: list[int], *, counted: bool) -> LossParts:
        """Of validation packs."""
        batch = collate([self._valid.packs[index] for index in members], self._trie)
        inputs = {
            name: value.to(self.args.device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        losses = ResponseLosses.of(self._losses(inputs))
        if not counted:
            return LossParts.none(self.args.device)
        return LossParts.of(losses.cross_entropy, inputs["zero_ig"], inputs["weight"])

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """As transformers does, but by the first process alone, to another name, and renamed."""
        if not self.team.is_first:
            self._whole_weights()
            if self.team.shards and self.optimizer is not None:
                self.optimizer.state_dict()  # its part in putting it together
            return
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

    def _whole_weights(self) -> dict[str, torch.Tensor] | None:
        """Weights that are split, put together; None if they are not. All processes call it, the first gets them."""
        return whole_weights(self.backbone.model, wanted=self.team.is_first) if self.team.shards else None

    def _get_output_dir(self, trial: object) -> str:
        return str(self._scratch) if self._scratch is not None else str(super()._get_output_dir(trial))

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:  # noqa: ARG002
        """Save weights alone: transformers would add its arguments as a pickle."""
        directory = Path(output_dir or self._checkpoints.path)
        directory.mkdir(parents=True, exist_ok=True)
        self.backbone.write(directory, self._whole_weights())

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: what is random follows from the step."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing; see `_save_rng_state`."""


@dataclass(slots=True, kw_only=True)
class _Sums:
    """Over the micro-batches of a step.

    Attributes:
        loss: their shares of the step's loss; 0-dimensional float64.
        parts: what it is made of.
        rows: their rows.
        flos: floating-point operations, as transformers estimates them.
    """

    loss: torch.Tensor
    parts: LossParts
    rows: int = 0
    flos: float = 0.0

    @staticmethod
    def none(device: torch.device) -> _Sums:
        return _Sums(loss=torch.zeros((), dtype=torch.float64, device=device), parts=LossParts.none(device))

    def over(self, team: Team) -> _Sums:
        """The sums of all processes, the same in each."""
        counts = self.loss.new_tensor([self.rows, self.flos])
        sums = team.sum(torch.cat([self.parts.sums(), self.loss.reshape(1), counts]))
        parts, (loss, rows, flos) = sums[:-3], sums[-3:]
        return _Sums(loss=loss, parts=LossParts.of_sums(parts), rows=int(rows), flos=float(flos))
