"""What a run is told: each setting once. Flags, their page, recipes, the run record and resuming are made of this."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from igd_core.checked_settings import Amount, CheckedSettings, Count, CountOrNone, Flag, PositiveAmount, Seed, Words
from igd_core.errors import InputError
from igd_core.limits import Temperature
from igd_core.search.normalisation import Normalisation, Normalise
from igd_core.tuning.bear import BearSettings
from igd_core.tuning.mapping_files import read_mapping
from igd_core.tuning.weights import TokenWeights, Weighting

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


def _shape(value: object) -> object:
    """The name of a file stands for what it holds."""
    try:
        return read_mapping(Path(value)) if isinstance(value, str) else value
    except InputError as error:
        raise ValueError(str(error)) from None


Tokens = Annotated[int, Field(ge=8, le=1 << 20)]
Schedule = Literal["linear", "cosine", "constant"]
Shape = Annotated[Mapping[str, Any], BeforeValidator(_shape), Flag(metavar="FILE")]


class LoraSettings(CheckedSettings):
    """A low-rank adapter."""

    rank: Annotated[CountOrNone, Flag(shows_default=False)] = Field(
        default=8, description="tune an adapter of this rank; 0: every weight"
    )
    alpha: PositiveAmount = Field(default=16.0, description="the update is scaled by this over the rank")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="on the adapter's input")
    targets: Words[str] = Field(
        default=("all-linear",), description="names of linear layers, or all-linear: all but the output layer"
    )
    layers: CountOrNone = Field(default=0, description="the topmost N layers alone; 0 is all. Few are fast")

    @field_validator("targets")
    @classmethod
    def _names_or_all(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or ("all-linear" in targets and len(targets) > 1):
            raise ValueError(f"{', '.join(targets) or 'none'}; names, or all-linear alone")
        return targets


class TuningSettings(CheckedSettings):
    """How to tune. The defaults are the authors' where they state one."""

    beta: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="weight of a zero-IG token, above 0 and at most 1 (1: plain supervised tuning)",
    )
    weighting: Weighting = Field(default="igd", description="which tokens count less")
    normalise: Normalise = Field(
        default="vocabulary",
        description="what a token is told from in the loss: the vocabulary, or its siblings in the catalogue's tree "
        "(children); the model is then scored likewise",
    )
    temperature: Temperature = Field(
        default=1.0, description="divides the logits in the loss; the model is then scored likewise"
    )
    bear: Amount = Field(
        default=0.0,
        description="lambda of BEAR: more weight for tokens that a beam would drop or only just keep, 0.25 in its "
        "paper; with --normalise children",
    )
    bear_beams: Count = Field(default=10, description="width of that beam")
    bear_xi: PositiveAmount = Field(default=2.75, description="nats within which a token is near that beam's edge")
    epochs: Count = Field(default=3, description="passes over the rows, at most")
    lr: PositiveAmount = Field(default=1e-4, description="highest learning rate")
    batch: Count = Field(
        default=128,
        description="rows of an optimiser step, or some more where the rows do not divide evenly: 200 rows at 16 are "
        "12 steps of 16 or 17",
    )
    micro_batches: Count = Field(
        default=8, description="forward passes a step is split into; more take less memory, and the result is the same"
    )
    warmup_steps: CountOrNone = Field(
        default=20,
        description="steps until the learning rate is reached, from 0 in the first; none in a run of one step",
    )
    schedule: Schedule = Field(
        default="linear", description="what the learning rate does then; linear and cosine end at 0"
    )
    weight_decay: Amount = Field(default=0.0, description="of AdamW")
    max_grad_norm: Amount = Field(default=1.0, description="gradients are scaled down to this norm; 0 leaves them")
    patience: Count = Field(default=1, description="epochs without a better validation loss before the run ends")
    max_tokens: Tokens = Field(
        default=512, description="longest prompt with its response; older history items leave until it fits"
    )
    share_prompts: bool = Field(default=True, description="compute what rows share once")
    pack_tokens: Tokens = Field(default=512, description="most tokens of rows computed together")
    pack_rows: Count = Field(
        default=16, description="most rows computed together; also bounded by a batch over its micro-batches"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the arithmetic; weights that are trained stay fp32"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute instead of keeping activations")
    four_bit: bool = Field(default=False, description="frozen weights in 4 bits (CUDA, with an adapter)")
    lora: LoraSettings | None = Field(default=None, description="tune an adapter; without it, every weight")
    from_config: Shape | None = Field(default=None, description="shape of a small Llama from scratch (json, yaml)")
    rows_per_user: CountOrNone = Field(
        default=0, description="of each user, the newest N rows alone, which share their prompts (0: all)"
    )
    train_users: CountOrNone = Field(
        default=0, description="use the rows of this many users, drawn by the seed, which share their prompts (0: all)"
    )
    train_rows: CountOrNone = Field(default=0, description="use this many, drawn by the seed (0: all)")
    valid_rows: CountOrNone = Field(default=0, description="use this many, drawn by the seed (0: all)")
    valid_targets: Literal["trained", "all"] = Field(
        default="trained",
        description="which validation rows count: those whose item some training row asks for (all, where these are "
        "fewer than 50), or all; where many ask for others, the loss of all keeps an early state",
    )
    save_every: Count = Field(
        default=200, description="steps between checkpoints; one more is written after each epoch"
    )
    seed: Seed = Field(default=0, description="of initial weights, dropout, order and drawn rows")

    @field_validator("lora")
    @classmethod
    def _without_a_rank(cls, lora: LoraSettings | None) -> LoraSettings | None:
        return lora if lora is not None and lora.rank else None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.micro_batches > self.batch:
            raise ValueError(f"micro_batches: {self.micro_batches} do not fit a batch of {self.batch} rows")
        if self.bear and self.normalise != "children":
            raise ValueError(f"bear: {self.bear:g} with normalise {self.normalise}; it needs children")
        if self.four_bit and self.lora is None:
            raise ValueError("four_bit: weights in 4 bits cannot be trained; it needs lora")
        if self.from_config is not None and self.lora is not None:
            raise ValueError("from_config: a model trained from scratch has nothing to adapt; leave lora out")
        return self

    @field_validator("from_config")
    @classmethod
    def _known_keys(cls, shape: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if unknown := sorted(set(shape or ()) - SHAPE_KEYS):
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(sorted(SHAPE_KEYS))}")
        return shape

    @property
    def token_weights(self) -> TokenWeights:
        """What each response token counts."""
        return TokenWeights(beta=self.beta, weighting=self.weighting)

    @property
    def scored(self) -> Normalisation:
        """What the loss is normalised over, and so what scores of the model are to be."""
        return Normalisation(normalise=self.normalise, temperature=self.temperature)

    @property
    def bear_settings(self) -> BearSettings:
        """BEAR's part of the loss."""
        return BearSettings(weight=self.bear, beams=self.bear_beams, xi=self.bear_xi)

    @property
    def rows_together(self) -> int:
        """Most rows of a pack, so that a batch always fills its micro-batches."""
        return max(1, min(self.pack_rows, self.batch // self.micro_batches)) if self.share_prompts else 1


class ListSettings(CheckedSettings):
    """How to tune a model further by the lists that it gives: `lists`."""

    group: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=16, description="items of a row's list, by a beam search as wide"
    )
    kl: Amount = Field(
        default=1e-3, description="weight of the divergence from the model that the run starts with; 0 leaves it out"
    )
    rows: CountOrNone = Field(default=0, description="use this many rows, drawn by the seed (0: all)")
    epochs: Count = Field(default=1, description="passes over the rows, at most")
    lr: PositiveAmount = Field(default=1e-4, description="highest learning rate")
    batch: Count = Field(default=64, description="rows of an optimiser step")
    warmup_steps: CountOrNone = Field(default=5, description="steps until the learning rate is reached")
    schedule: Schedule = Field(
        default="constant", description="what the learning rate does then; linear and cosine end at 0"
    )
    weight_decay: Amount = Field(default=0.0, description="of AdamW")
    max_grad_norm: Amount = Field(default=1.0, description="gradients are scaled down to this norm; 0 leaves them")
    valid_rows: CountOrNone = Field(default=500, description="use this many, drawn by the seed (0: all)")
    validate_every: Count = Field(default=20, description="steps between validations")
    patience: Count = Field(default=3, description="validations without a better NDCG@10 before the run ends")
    save_every: Count = Field(
        default=20, description="steps between checkpoints; one more is written after each validation"
    )
    max_tokens: Tokens = Field(
        default=512, description="longest prompt with a path; older history items leave until it fits"
    )
    pack_tokens: Tokens = Field(default=4096, description="most tokens of rows computed together")
    seed: Seed = Field(default=0, description="of order and drawn rows")
