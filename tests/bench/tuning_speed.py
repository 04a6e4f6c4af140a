"""Rows a second of `igd tune`, over the vocabulary and over children, beside a plain transformers Trainer, in turns.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/tuning_speed.py --artifact DIR --model DIR --train FILE

The plain run is what a script would do: every row on its own, padded to the longest of its batch, labels at the
response, logits at every position, one batch after another in random order. Both do full forward and backward passes
and AdamW steps of LoRA adapters of the same rank (``--lora-rank 0``: of every weight). Weights start the same, the rows
are the same, and beta is 1, so that the loss means the same; rows meet in another order. The loss over children is
another. A run's first step, which meets fresh memory, is left out. ``--without-plain`` saves the plain run's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from igd_core.artifact import Artifact, load_artifact
from igd_core.tuning.backbone import Backbone, load_backbone
from igd_core.tuning.checkpoints import CheckpointFolder
from igd_core.tuning.inputs import RunInputs, TuningData
from igd_core.tuning.run import read_data
from igd_core.tuning.settings import LoraSettings, TuningSettings
from igd_core.tuning.trainer import IGDTrainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.tuning.examples import Pack


class PlainRows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """``input_ids`` and ``labels`` of rows, as a causal language model takes them."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self._rows = []
        for pack in packs:
            ids = [*pack.tokens.tolist(), int(pack.target[-1])]
            labels = [-100] * (len(ids) - len(pack.target)) + pack.target.tolist()
            self._rows.append({"input_ids": ids, "labels": labels})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._rows[index]


def pad(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right, masked."""
    width = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": filled("input_ids", 0), "labels": filled("labels", -100), "attention_mask": mask}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run but for its first step, which meets fresh memory and lays weights out.

    Attributes:
        rows: trained on in that time.
        wall_s: by the clock.
        cpu_s: of this process's CPU; steadier on a busy machine.
        first_loss: of the first step.
    """

    rows: int
    wall_s: float
    cpu_s: float
    first_loss: float


class Clock(TrainerCallback):
    """When the first step ended and when the last one did, and how many rows lay between."""

    def __init__(self, rows_seen: Callable[[int], int]) -> None:
        self._rows_seen = rows_seen
        self._ends: list[tuple[int, float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time."""
        del args, control
        self._ends.append((self._rows_seen(state.global_step), time.perf_counter(), time.process_time()))

    def measured(self, trainer: Trainer) -> Measured:
        """Of a run that has ended."""
        if len(self._ends) < 2:
            raise SystemExit("the rows make a single step, which is not measured: more rows or a smaller --batch")
        (rows, wall, cpu), (all_rows, wall_end, cpu_end) = self._ends[0], self._ends[-1]
        loss = trainer.state.log_history[0]["loss"]
        return Measured(rows=all_rows - rows, wall_s=wall_end - wall, cpu_s=cpu_end - cpu, first_loss=loss)


def plain_run(backbone: Backbone, data: TuningData, settings: TuningSettings, _: TokenTrie) -> Measured:
    """Train one epoch."""
    clock = Clock(lambda step: min(step * settings.batch, data.train.rows))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=backbone.model,
            args=TrainingArguments(
                output_dir=scratch, num_train_epochs=1, learning_rate=settings.lr, warmup_steps=settings.warmup_steps,
                per_device_train_batch_size=settings.batch // settings.micro_batches,
                gradient_accumulation_steps=settings.micro_batches, logging_steps=1, save_strategy="no", report_to=[],
                disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, remove_unused_columns=False,
                bf16=settings.precision == "bf16",
            ),
            train_dataset=PlainRows(data.train.packs),
            data_collator=pad,
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    return clock.measured(trainer)


def our_run(backbone: Backbone, data: TuningData, settings: TuningSettings, trie: TokenTrie) -> Measured:
    """Train one epoch."""
    from igd_core.tuning.watch import RunCallback

    class StepsAlone(RunCallback):
        """No validation and no checkpoint: the plain run has neither."""

        def on_epoch_end(self, *_: Any, **__: Any) -> Any:
            return None

    clock = Clock(lambda _: trainer.rows_seen)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = IGDTrainer(
            backbone=backbone, settings=settings, data=data,
            checkpoints=CheckpointFolder(path=Path(scratch)),
            trie=trie if settings.normalise == "children" else None,
        )  # fmt: skip
        trainer.add_callback(
            StepsAlone(trainer, best=Path(scratch) / "best", save_every=10**9, patience=1, on_validation=lambda: None)
        )
        trainer.add_callback(clock)
        trainer.train()
    return clock.measured(trainer)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All, in turns, ``args.repeats`` times."""
    artifact: Artifact = load_artifact(args.artifact)
    lora = LoraSettings(rank=args.lora_rank) if args.lora_rank else None
    common: dict[str, Any] = {
        "beta": 1.0, "batch": args.batch, "micro_batches": args.micro_batches, "lora": lora,
        "precision": args.precision, "epochs": 1,
    }  # fmt: skip
    ours, alone = TuningSettings(**common), TuningSettings(**common, share_prompts=False)
    over_children = TuningSettings(**common, normalise="children")
    inputs = RunInputs(artifact=args.artifact, train=args.train, valid=args.train, out=Path("unused"), model=args.model)
    # Neighbouring rows, as a whole file has them: rows drawn here and there would share no prompts.
    packed, plain = read_data(inputs, ours, artifact), read_data(inputs, alone, artifact)
    cut = read_data(inputs, over_children, artifact)
    ways: list[tuple[str, Any, TuningData, TuningSettings]] = [
        ("plain", plain_run, plain, alone), ("ours", our_run, packed, ours), ("children", our_run, cut, over_children)
    ][args.without_plain :]  # fmt: skip
    measured: dict[str, list[Measured]] = {name: [] for name, *_ in ways}
    for _ in range(args.repeats):
        for name, run, data, settings in ways:
            set_seed(0)
            backbone = load_backbone(args.model, settings, tokenizer_dir=None, device="cpu")
            measured[name].append(run(backbone, data, settings, artifact.trie))
    result: dict[str, Any] = {
        "rows": packed.train.rows,
        "tokens_alone": packed.train.row_tokens,
        "tokens_computed": packed.train.tokens,
        "tokens_computed_children": cut.train.tokens,
        "threads": torch.get_num_threads(),
    }
    for clock in ("wall_s", "cpu_s"):
        rate = {
            name: statistics.median(one.rows / getattr(one, clock) for one in runs) for name, runs in measured.items()
        }
        result |= {f"{name}_rows_per_{clock}": round(value, 3) for name, value in rate.items()}
        result |= {f"{name}_over_ours_{clock}": round(rate[name] / rate["ours"], 2) for name in rate if name != "ours"}
    return result | {f"{name}_first_loss": runs[0].first_loss for name, runs in measured.items()}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", type=Path, required=True, help="the rows to train on: all of the file")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--without-plain", action="store_true")
    print(json.dumps(measure(parser.parse_args())))  # noqa: T201


if __name__ == "__main__":
    main()
