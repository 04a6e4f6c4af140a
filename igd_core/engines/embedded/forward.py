"""How a model is run over tokens: `Forward`, the port; and transformers' own modules behind it.

The other way is the project's own forward (`llama`), for the architectures it knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from igd_core.engines.embedded.prefix_cache import PromptKV


class Layers(Protocol):
    """Keys and values of a text's first tokens, all layers, as the forward that made them holds them."""

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        ...

    def prefix(self, length: int) -> Layers:
        """Those of the first ``length`` tokens, as views."""
        ...


@dataclass(frozen=True, slots=True)
class LayerPairs:
    """As tensors of their own; a `Layers`.

    Attributes:
        pairs: per layer, keys and values of shape ``(1, kv_heads, length, head_dim)``, keys rotated by their positions.
    """

    pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for pair in self.pairs for tensor in pair)

    def prefix(self, length: int) -> LayerPairs:
        """Those of the first ``length`` tokens, as views."""
        return LayerPairs(tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in self.pairs))

    @classmethod
    def of(cls, prefix: PromptKV | None) -> LayerPairs:
        """Those of a cached prompt that a forward with such layers made."""
        return cls() if prefix is None else cast("LayerPairs", prefix.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """Tokens that are fed in one pass, behind those that were fed before.

    Attributes:
        tokens: in the model's vocabulary.
        positions: of each, from 0; not the slots: branches of a tree share positions.
        visible: ``(new, before + new)`` bool; the slots that each token sees, itself among them.
        rows: ``(wanted,)`` int64, ascending; the tokens after which logits are wanted, by place among ``tokens``.
        next_tokens: ``(n,)`` int64, ascending; the tokens of which logits are wanted. None: the whole vocabulary's.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    visible: torch.Tensor
    rows: torch.Tensor
    next_tokens: torch.Tensor | None = None


class Running(Protocol):
    """A prompt and what is fed below it, with their keys and values."""

    def layers(self, length: int) -> Layers:
        """Keys and values of the first ``length`` tokens; never written to again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What is fed to one run in a pass."""

    running: Running
    fed: Fed


class Forward(Protocol):
    """A way to run a checkpoint; no two passes at a time."""

    @property
    def name(self) -> Literal["own", "transformers"]:
        """The way."""
        ...

    @property
    def why(self) -> str:
        """Why it is not the project's own forward, or has no CUDA graphs on a GPU; else, or if so asked for, empty."""
        ...

    @property
    def most_tokens(self) -> int:
        """Of several runs that `feed` computes in one pass, at most so many; 0: it computes one run a pass."""
        ...

    def begin(self, prefix: PromptKV | None, prompt_tokens: int) -> Running:
        """Start a prompt of so many tokens with the keys and values of an earlier one, or with nothing."""
        ...

    def feed(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Compute new tokens of each run, and keep their keys and values.

        Args:
            feeds: of different runs, all begun by this forward.

        Returns:
            For each ``(wanted, vocabulary)`` logits, or ``(wanted, n)`` of its ``next_tokens``.
        """
        ...

    def release(self) -> None:
        """Let go of what it holds beside the model; nothing can be computed with it any more."""
        ...


class TransformersForward:
    """Transformers' own modules, for every architecture."""

    name: Literal["transformers"] = "transformers"
    most_tokens = 0

    def __init__(self, model: PreTrainedModel, *, why: str = "") -> None:
        self._model = model
        self.why = why

    def begin(self, prefix: PromptKV | None, prompt_tokens: int) -> Running:  # noqa: ARG002 - it grows by itself
        """Start a cache of transformers' kind."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(LayerPairs.of(prefix).pairs):
            cache.update(keys, values, layer)
        return _TransformersRun(cache)

    def feed(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Compute each by itself."""
        return [self._fed(feed.fed, cast("_TransformersRun", feed.running).cache) for feed in feeds]

    def release(self) -> None:
        """It holds nothing but the model."""

    def _fed(self, fed: Fed, cache: DynamicCache) -> torch.Tensor:
        device = self._model.device
        output = self._model(
            input_ids=torch.tensor([fed.tokens], device=device),
            attention_mask=additive(fed.visible, self._model.dtype)[None, None].to(device),
            position_ids=torch.tensor([fed.positions], device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=fed.rows.to(device),
        )
        logits: torch.Tensor = output.logits[0]
        return logits if fed.next_tokens is None else logits[:, fed.next_tokens.to(device)]


@dataclass(frozen=True, slots=True)
class _TransformersRun:
    cache: DynamicCache

    def layers(self, length: int) -> Layers:
        return LayerPairs(tuple((keys, values) for keys, values, *_ in self.cache)).prefix(length)


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is added to attention scores, ``visible``'s shape: 0 where visible."""
    mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype)
    return mask.masked_fill_(visible, 0.0)
