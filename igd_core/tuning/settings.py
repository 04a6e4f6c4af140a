"""What a run is told; every value is checked when it is set, before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from igd_core.errors import InputError
from igd_core.tuning.weights import TokenWeights, Weighting

Precision = Literal["fp32", "bf16"]
Schedule = Literal["linear", "cosine", "constant"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "constant")

MOST_SEED = 2**32 - 1
"""Every library that draws takes a seed up to here."""

SHAPE_KEYS = frozenset(
    {
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_dropout",
        "initializer_range",
    }
)
"""What a from-scratch config may say; vocabulary and control tokens come from the tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """A low-rank adapter.

    Attributes:
        rank: of the two factors, >= 1.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: on the adapter's input, 0 <= dropout < 1.
        targets: names of linear layers, or ``all-linear``: all but the output layer.
        layers: adapt this many of the topmost layers; 0 is all. Nothing below needs a gradient, so few are fast.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ("all-linear",)
    layers: int = 0

    def __post_init__(self) -> None:
        _at_least("lora rank", self.rank, 1)
        _at_least("lora layers", self.layers, 0)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"lora alpha: {self.alpha:g}; a finite number above 0 is needed")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora dropout: {self.dropout:g} is not in 0..1")
        if not self.targets or ("all-linear" in self.targets and len(self.targets) > 1):
            raise InputError(f"lora targets: {', '.join(self.targets) or 'none'}; names, or all-linear alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSettings:
    """How to tune. The defaults are the authors' where they state one.

    Attributes:
        beta: weight of a zero-IG token's loss, 0 < beta <= 1; 1 is plain supervised tuning.
        weighting: which tokens count how much (`weights.TokenWeights`).
        epochs: passes over the rows, at most.
        lr: highest learning rate.
        batch: rows of an optimiser step.
        micro_batches: forward passes that make up one step; more take less memory, and the result is the same.
        warmup_steps: steps until the learning rate is reached.
        schedule: what follows; ``linear`` and ``cosine`` end at 0.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        patience: epochs without a better validation loss before the run ends.
        max_tokens: longest prompt with its response; older history items leave until it fits.
        share_prompts: compute rows that begin alike once (`examples`).
        pack_tokens: most tokens of rows computed together.
        pack_rows: most rows computed together; also bounded by ``batch / micro_batches``.
        precision: of the arithmetic. Weights that are trained stay fp32.
        gradient_checkpointing: recompute instead of keeping activations.
        four_bit: the frozen weights in 4 bits (CUDA only, with an adapter only).
        lora: tune an adapter; None tunes every weight.
        from_config: shape of a small Llama to train from scratch; None starts from a checkpoint.
        rows_per_user: of each user the newest this many rows alone, which share their prompts; 0 is all.
        train_rows: use this many rows, drawn by the seed; 0 is all.
        valid_rows: likewise.
        save_every: optimiser steps between checkpoints; one more is written after each epoch.
        seed: of initial weights, dropout, row order and drawn rows.
    """

    beta: float = 0.2
    weighting: Weighting = "igd"
    epochs: int = 3
    lr: float = 1e-4
    batch: int = 128
    micro_batches: int = 8
    warmup_steps: int = 20
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    patience: int = 1
    max_tokens: int = 512
    share_prompts: bool = True
    pack_tokens: int = 512
    pack_rows: int = 16
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    four_bit: bool = False
    lora: LoraSettings | None = None
    from_config: Mapping[str, Any] | None = field(default=None)
    rows_per_user: int = 0
    train_rows: int = 0
    valid_rows: int = 0
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "micro_batches", "patience", "pack_rows", "save_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "rows_per_user", "train_rows", "valid_rows", "seed"):
            _at_least(name, getattr(self, name), 0)
        for name in ("max_tokens", "pack_tokens"):
            _at_least(name, getattr(self, name), 8)
        if self.seed > MOST_SEED:
            raise InputError(f"seed: {self.seed}; at most {MOST_SEED} is possible")
        self._check_numbers()
        if self.micro_batches > self.batch:
            raise InputError(f"micro_batches: {self.micro_batches} do not fit a batch of {self.batch} rows")
        if self.four_bit and self.lora is None:
            raise InputError("four_bit: weights in 4 bits cannot be trained; it needs lora")
        if self.from_config is not None:
            self._check_shape(self.from_config)

    def _check_numbers(self) -> None:
        _ = self.token_weights
        for name in ("weight_decay", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name}: {getattr(self, name):g}; 0 or above is needed")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr: {self.lr:g}; above 0 is needed")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision: {self.precision!r}; one of {', '.join(PRECISIONS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule: {self.schedule!r}; one of {', '.join(SCHEDULES)}")

    def _check_shape(self, shape: Mapping[str, Any]) -> None:
        unknown = sorted(set(shape) - SHAPE_KEYS)
        if unknown:
            raise InputError(f"from_config: {unknown[0]!r} is not one of {', '.join(sorted(SHAPE_KEYS))}")
        if self.lora is not None:
            raise InputError("from_config: a model trained from scratch has nothing to adapt; leave lora out")

    @property
    def token_weights(self) -> TokenWeights:
        """What each response token counts.

        Raises:
            InputError: ``beta`` or ``weighting`` is none that there is.
        """
        return TokenWeights(beta=self.beta, weighting=self.weighting)

    @property
    def rows_together(self) -> int:
        """Most rows of a pack, so that a batch always fills its micro-batches."""
        return max(1, min(self.pack_rows, self.batch // self.micro_batches)) if self.share_prompts else 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the run record."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TuningSettings:
        """Inverse of `to_json`; also reads the `tuning` part of a recipe.

        Raises:
            InputError: an unknown name, or a value out of range or of another type.
        """
        values = dict(data)
        _check_names("tuning", values, TuningSettings)
        lora = values.pop("lora", None)
        if lora is not None:
            values["lora"] = _lora_from_json(lora)
        _check_types(values)
        return TuningSettings(**values)


def _lora_from_json(data: object) -> LoraSettings:
    if not isinstance(data, Mapping):
        raise InputError(f"lora: {data!r} is not a mapping")
    _check_names("lora", data, LoraSettings)
    values = dict(data)
    if isinstance(values.get("targets"), str):
        values["targets"] = (values["targets"],)
    if "targets" in values:
        values["targets"] = tuple(map(str, values["targets"]))
    _check_types(values)
    return LoraSettings(**values)


_INTEGERS = frozenset(
    [
        "epochs",
        "batch",
        "micro_batches",
        "warmup_steps",
        "patience",
        "max_tokens",
        "pack_tokens",
        "pack_rows",
        "rows_per_user",
        "train_rows",
        "valid_rows",
        "save_every",
        "seed",
        "rank",
        "layers",
    ]
)
_NUMBERS = frozenset(["beta", "lr", "weight_decay", "max_grad_norm", "alpha", "dropout"])
_SWITCHES = frozenset(["share_prompts", "gradient_checkpointing", "four_bit"])


def _check_types(values: Mapping[str, Any]) -> None:
    """A yaml file writes ``1e-4`` as text and ``yes`` as true: refuse what is not meant."""
    for name, value in values.items():
        if name in _SWITCHES:
            fits = isinstance(value, bool)
        elif name in _INTEGERS:
            fits = isinstance(value, int) and not isinstance(value, bool)
        elif name in _NUMBERS:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        elif name == "from_config":
            fits = value is None or isinstance(value, Mapping)
        else:
            fits = True
        if not fits:
            raise InputError(
                f"{name}: {value!r} is a {type(value).__name__}; another type is needed (1.0e-4, not 1e-4)"
            )


def _check_names(where: str, values: Mapping[str, Any], kind: type[Any]) -> None:
    unknown = sorted(set(values) - {known.name for known in fields(kind)})
    if unknown:
        raise InputError(f"{where}: there is no setting {unknown[0]!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name}: {value}; at least {least} is needed")
