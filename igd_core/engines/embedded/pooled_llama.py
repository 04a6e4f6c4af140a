"""The project's own forward of Llama-type models on a GPU: passes of fixed sizes, so that CUDA graphs can repeat them.

By transformers' modules a pass took 35 ms on an H200 whatever it held: most likely it waited for the launches of a
thousand small kernels (docs/research/speed.md). A CUDA graph launches all at once, but does exactly what it did when it
was recorded. So:

- keys and values lie in a pool (`key_value_pool`); which slots a text reads and writes are numbers, copied before;
- each size of a batch has its own buffers (`fixed_batches`). Its first pass runs kernel by kernel, all others as a
  graph. Where no graph can be recorded, passes go on kernel by kernel, and the forward says why.

Attention gathers a text's keys and values from the pool. Query heads that share keys are laid under each other as more
rows, so that every kernel of torch can do it. The residual stream, norms and rotations are in float32, products in the
model's type, and logits come out of the output layer in float32.

Nothing here needs CUDA but the recording: tests run the same passes on a CPU, kernel by kernel. Whether a checkpoint
runs rightly this way is not believed but tried when it is loaded (`self_test`).
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from igd_core.engines.embedded.fixed_batches import Batch, Numbers, Recorder, Shape, alike
from igd_core.engines.embedded.key_value_pool import KeyValuePool, PooledText
from igd_core.engines.embedded.llama_family import Norm, linears_of, why_not_llama

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from igd_core.engines.embedded.forward import Feed, Running
    from igd_core.engines.embedded.prefix_cache import PromptKV

MOST_TOKENS = 2048
"""Of a pass: by its peak rate an H200 computes 135 million weights over so many in 0.6 ms. Not measured."""
_MOST_SHAPES = 96  # that are kept, with their graphs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """Of a linear layer, or of several that multiply the same, one under the other."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, *modules: nn.Linear) -> _Weights:
        """In one piece of memory, of which the modules' own weights become parts: there is no second copy."""
        if len(modules) == 1:
            bias = modules[0].bias
            return cls(weight=modules[0].weight.detach(), bias=None if bias is None else bias.detach())
        weight = torch.cat([module.weight.detach() for module in modules])
        for module, part in zip(modules, weight.split([module.out_features for module in modules]), strict=True):
            module.weight.data = part
        biases = [
            module.weight.new_zeros(module.out_features) if module.bias is None else module.bias.detach()
            for module in modules
        ]
        return cls(weight=weight, bias=None if all(module.bias is None for module in modules) else torch.cat(biases))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A decoder layer; ``normed_query`` and ``normed_key`` are Qwen3's, each over one head."""

    before_attention: Norm
    query_key_value: _Weights
    normed_query: Norm | None
    normed_key: Norm | None
    output: _Weights
    before_mlp: Norm
    gate_up: _Weights
    down: _Weights

    @classmethod
    def of(cls, module: nn.Module) -> _Layer:
        layer: Any = module
        attention, mlp = layer.self_attn, layer.mlp
        query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        return cls(
            before_attention=Norm.of(layer.input_layernorm),
            query_key_value=_Weights.of(attention.q_proj, attention.k_proj, attention.v_proj),
            normed_query=None if query_norm is None else Norm.of(query_norm),
            normed_key=None if key_norm is None else Norm.of(key_norm),
            output=_Weights.of(attention.o_proj),
            before_mlp=Norm.of(layer.post_attention_layernorm),
            gate_up=_Weights.of(mlp.gate_proj, mlp.up_proj),
            down=_Weights.of(mlp.down_proj),
        )

    def mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(rows, width)`` float32 to the same, the residual included."""
        gate, up = self.gate_up(self.before_mlp(hidden)).chunk(2, dim=-1)
        return hidden + self.down(silu(gate) * up)


def why_not_pooled(model: PreTrainedModel) -> str:
    """What keeps a model from being run this way; empty if nothing does."""
    if why := why_not_llama(model):
        return why
    other = next((pair for pair in linears_of(model) if type(pair[1]) is not nn.Linear), None)
    return "" if other is None else f"{other[0]} is a {type(other[1]).__name__}"


class PooledLlama:
    """A model's weights, the pool of its keys and values, and the passes recorded so far."""

    name: Literal["own"] = "own"
    most_tokens = MOST_TOKENS

    def __init__(self, model: PreTrainedModel, *, first_slots: int | None = None) -> None:
        """Share the weights of ``model``, for which `why_not_pooled` has nothing to say."""
        whole: Any = model
        decoder = whole.model
        self._embedding: torch.Tensor = decoder.embed_tokens.weight.detach()
        self._layers = tuple(_Layer.of(layer) for layer in decoder.layers)
        self._norm = Norm.of(decoder.norm)
        self._head = _Weights.of(whole.lm_head)
        self._frequencies: torch.Tensor = decoder.rotary_emb.inv_freq.detach().float()
        self._rotation_scale = float(decoder.rotary_emb.attention_scaling)
        attention = decoder.layers[0].self_attn
        self._head_dim = int(attention.head_dim)
        self._kv_heads = attention.k_proj.out_features // self._head_dim
        self._sharing = attention.q_proj.out_features // attention.k_proj.out_features  # query heads that share keys
        sizes = {} if first_slots is None else {"first_slots": first_slots}
        self.pool = KeyValuePool(
            layers=len(self._layers), heads=self._kv_heads, width=self._head_dim, like=self._embedding, **sizes
        )
        self.why = ""
        """Why its passes are no CUDA graphs on a GPU."""
        self._records = self._embedding.is_cuda
        self._batches: dict[Shape, Batch] = {}
        self._recorded_over: torch.Tensor | None = None  # the pool's memory that graphs read and write
        self._recorder: Recorder | None = None
        self.counts: Counter[str] = Counter()
        """Of batches run so far: ``kernels`` one by one, as a ``graph``; ``tokens``, and ``room`` for them."""

    def begin(self, prefix: PromptKV | None, prompt_tokens: int) -> Running:  # noqa: ARG002 - slots are taken as it grows
        """Start a text."""
        return PooledText(self.pool, prefix)

    @torch.inference_mode()
    def feed(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Compute new tokens behind those of each text, float32 logits.

        Raises:
            RuntimeError: the device refused; texts stay as they were.
        """
        texts = [cast("PooledText", feed.running) for feed in feeds]
        ends = accumulate((len(feed.fed.tokens) for feed in feeds), initial=0)
        taken = self.pool.take(sum(len(feed.fed.tokens) for feed in feeds))
        slots = [text.slots + taken[start:end] for text, (start, end) in zip(texts, pairwise(ends), strict=True)]
        found: dict[int, torch.Tensor] = {}
        try:
            for group in alike(feeds):
                logits = self._logits([feeds[at] for at in group], [slots[at] for at in group])
                found.update(zip(group, logits, strict=True))
        except BaseException:
            self.pool.give_back(taken)
            raise
        for text, all_of_it in zip(texts, slots, strict=True):
            text.slots += all_of_it[len(text.slots) :]
        return [found[at] for at in range(len(feeds))]

    def release(self) -> None:
        """Let go of weights, pool and graphs; nothing can be computed any more."""
        self._forget()
        self._recorded_over = None
        self._layers, self._head = (), _Weights(weight=torch.empty(0), bias=None)
        self._embedding = self.pool.slots = torch.empty(0)

    def _forget(self) -> None:
        """Drop all graphs."""
        self._batches.clear()
        if self._recorder is not None:
            self._recorder.begin_anew()

    def _logits(self, feeds: Sequence[Feed], slots: Sequence[list[int]]) -> list[torch.Tensor]:
        batch = self._batch(Shape.around(feeds))
        batch.put(feeds, slots)
        self.counts["graph" if batch.is_graph else "kernels"] += 1
        self.counts["tokens"] += sum(len(feed.fed.tokens) for feed in feeds)
        self.counts["room"] += batch.shape.texts * batch.shape.new
        hidden = batch.run(self._hidden)
        rows = [len(feed.fed.rows) for feed in feeds]
        logits = _float_product(self._norm(hidden[: sum(rows)]), self._head).split(rows)
        return [
            found if feed.fed.next_tokens is None else found.index_select(1, feed.fed.next_tokens.to(found.device))
            for found, feed in zip(logits, feeds, strict=True)
        ]

    def _batch(self, shape: Shape) -> Batch:
        """The shape's buffers, recorded if it was met before."""
        slots = self.pool.slots
        batch = self._batches.get(shape) if self._recorded_over is slots else None
        if batch is None:
            if self._recorded_over is not slots or len(self._batches) >= _MOST_SHAPES:  # the pool grew, or is new
                self._forget()
            self._recorded_over = slots
            batch = self._batches[shape] = Batch(shape, slots.device)
        elif self._records and not batch.is_graph and not self.why:
            self._record(batch)
        return batch

    def _record(self, batch: Batch) -> None:
        try:
            self._recorder = self._recorder or Recorder(self.pool.slots.device)
            batch.record(self._hidden, self._recorder)
        except RuntimeError as error:
            said = (str(error).splitlines() or [""])[0]
            self.why = f"kernel by kernel, since no CUDA graph can be recorded ({type(error).__name__}: {said})"
            _log.warning("The model runs %s.", self.why)

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """The last layer's output of the wanted tokens, ``(wanted, width)`` float32, not normed."""
        numbers = batch.numbers
        angles = numbers.positions.reshape(-1, 1, 1).float() * self._frequencies
        turns = _Turns.of(angles.cos() * self._rotation_scale, angles.sin() * self._rotation_scale)
        mask = torch.zeros_like(batch.visible, dtype=self._embedding.dtype)
        mask.masked_fill_(~batch.visible, float("-inf"))
        mask = mask.repeat(1, self._sharing, 1)[:, None]
        hidden = self._embedding[numbers.tokens.flatten()].float()
        with _attention_of(hidden.device):
            for number, layer in enumerate(self._layers):
                attended = self._attended(number, hidden, turns, mask, numbers)
                if number == len(self._layers) - 1:
                    attended, hidden = attended[numbers.wanted], hidden[numbers.wanted]
                hidden = layer.mlp(hidden + layer.output(attended))
        return hidden

    def _attended(
        self, number: int, hidden: torch.Tensor, turns: _Turns, mask: torch.Tensor, numbers: Numbers
    ) -> torch.Tensor:
        """Heads of all new tokens in a layer, ``(texts * new, heads * head_dim)``; keeps their keys and values."""
        layer, kept, width = self._layers[number], self.pool.slots[number], self._head_dim
        (texts, new), shared = numbers.tokens.shape, self._kv_heads
        together = layer.query_key_value(layer.before_attention(hidden)).view(texts * new, -1, width)
        heads = together.shape[1] - 2 * shared
        query_key = together[:, : heads + shared].float()
        if layer.normed_query is not None and layer.normed_key is not None:
            query_key = torch.cat(
                [layer.normed_query(query_key[:, :heads]), layer.normed_key(query_key[:, heads:])], dim=1
            )
        turned = turns(query_key).to(kept.dtype)
        kept.index_copy_(
            0, numbers.written.flatten(), torch.stack([turned[:, heads:], together[:, heads + shared :]], dim=1)
        )
        seen = kept.index_select(0, numbers.seen.flatten()).view(texts, -1, 2, shared, width)
        # (texts, new, shared, sharing, width) to (texts, shared, sharing * new, width)
        query = turned[:, :heads].view(texts, new, shared, -1, width).permute(0, 2, 3, 1, 4)
        found = scaled_dot_product_attention(
            query.reshape(texts, shared, -1, width),
            seen[:, :, 0].transpose(1, 2),
            seen[:, :, 1].transpose(1, 2),
            attn_mask=mask,
        )
        return found.view(texts, shared, -1, new, width).permute(0, 3, 1, 2, 4).reshape(texts * new, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turns:
    """Rotates the two halves of heads against each other.

    Attributes:
        cos, sin: ``(tokens, 1, head_dim)``; the first half of the sines is negative.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, cos: torch.Tensor, sin: torch.Tensor) -> _Turns:
        return cls(cos=torch.cat([cos, cos], dim=-1), sin=torch.cat([-sin, sin], dim=-1))

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(heads * self.cos, heads.roll(heads.shape[-1] // 2, dims=-1), self.sin)


def _float_product(inputs: torch.Tensor, weights: _Weights) -> torch.Tensor:
    """Products in the weight's type, added up and given in float32: rounded logits decide close races by chance."""
    weight, bias = weights.weight, weights.bias
    if weight.dtype == torch.float32:
        return linear(inputs, weight, bias)
    if weight.is_cuda:
        found: torch.Tensor = torch.mm(inputs.to(weight.dtype), weight.T, out_dtype=torch.float32)
    else:
        found = linear(inputs.to(weight.dtype).float(), weight.float())
    return found if bias is None else found + bias.float()


def _attention_of(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels that take any mask; on a CPU torch chooses."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
