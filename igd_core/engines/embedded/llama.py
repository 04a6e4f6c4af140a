"""The project's own forward of Llama-type models on the CPU: Llama, Mistral without a window, Qwen2, Qwen3.

In fp32; products of the layers in bf16 where that was chosen (`precision`).

A round feeds 10 to 60 tokens, and transformers' modules then spend much of a pass around the products: a call of a
module for each step, masks and heads copied for each layer, all keys and values of the prompt copied for each layer and
round. Here:

- keys and values are written in place, in room that grows by half;
- attention reads shared heads where they lie (grouped queries);
- oneDNN applies SiLU, the product with the gate and the addition to the residual while it writes a product's result;
- the last layer computes what follows its keys and values only for the tokens whose logits are wanted: one of a prompt;
- the output layer computes the tokens that are wanted, where they are few (`output_layer`);
- tokens of several prompts and trees share a pass: all products and norms run over the rows of all of them, so that
  weights are read once; attention runs for each over its own keys, by the calls that it would make alone;
- one core computes a pass, or few cores its pieces, or all of them each step of it (`lanes`), as is fastest here and
  now (`fastest_way`).

The weights are those of transformers' modules (`packed_linear`), not copies of them. Whether a checkpoint runs rightly
this way is not believed but tried when it is loaded (`self_test`).
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch.nn.functional import scaled_dot_product_attention

from igd_core.engines.embedded.fastest_way import FastestWay
from igd_core.engines.embedded.forward import LayerPairs, additive
from igd_core.engines.embedded.lanes import joined, lanes_here, pieces_of, shares_by_lanes
from igd_core.engines.embedded.llama_family import Norm, linears_of, why_not_llama
from igd_core.engines.embedded.output_layer import OutputLayer
from igd_core.engines.embedded.packed_linear import PackedLinear, filled_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from transformers import PreTrainedModel

    from igd_core.engines.embedded.forward import Feed, Running
    from igd_core.engines.embedded.lanes import Lanes, Meet, Piece
    from igd_core.engines.embedded.prefix_cache import PromptKV

# Beyond so many tokens a pass costs in proportion to them, so more of them would gain nothing and let everybody in it
# wait for all. A product of m rows does m / 2 operations for each byte of weights that it reads; CPUs do 10 to 30 in
# the time of reading one, so that a few times that many rows hide the reading. CPU time a token, behind a prompt of 150
# (one core with AVX2), of the whole pass of SmolLM2-135M's shape and of the demo's model, by tokens of a pass:
#
#     20          40          80          128         160         256         320
#     9.8, .277   7.6, .184   6.2, .126   5.7, .116   5.6, .106   5.7, .097   5.7, .099 ms
#
# With AVX-512 SmolLM2's row is 5.3, 3.9, 3.6, -, 3.2, 3.4: level from 80 on. So no machine is measured at its start.
MOST_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A decoder layer's weights; ``normed_query`` and ``normed_key`` are Qwen3's, each over one head."""

    before_attention: Norm
    query: PackedLinear
    key: PackedLinear
    value: PackedLinear
    normed_query: Norm | None
    normed_key: Norm | None
    output: PackedLinear
    before_mlp: Norm
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear

    @classmethod
    def of(cls, module: nn.Module) -> _Layer:
        layer: Any = module
        attention, mlp = layer.self_attn, layer.mlp
        query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        return cls(
            before_attention=Norm.of(layer.input_layernorm),
            query=attention.q_proj,
            key=attention.k_proj,
            value=attention.v_proj,
            normed_query=None if query_norm is None else Norm.of(query_norm),
            normed_key=None if key_norm is None else Norm.of(key_norm),
            output=attention.o_proj,
            before_mlp=Norm.of(layer.post_attention_layernorm),
            gate=mlp.gate_proj,
            up=mlp.up_proj,
            down=mlp.down_proj,
        )

    def mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(rows, width)`` to the same, the residual included."""
        normed = self.before_mlp(hidden).to(self.gate.dtype)
        return self.down.plus(self.up.times(normed, self.gate.silu(normed)), hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """One piece of a pass, for all layers.

    Attributes:
        tokens: its rows among those of the pass, or of its lane.
        mask: ``(tokens, seen)`` float, added to attention scores; the last it sees is its own last token.
        kept: keys and values of the whole prompt and tree, with room for the new ones.
        first: the place of its first token among what is new in them.
    """

    tokens: slice
    mask: torch.Tensor
    kept: KeyValues
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What all layers of one pass share, or of one lane of it.

    Attributes:
        pieces: what it consists of, row after row.
        meet: waits for the lanes with the other pieces; None where all are here.
        cos, sin: ``(new, 1, head_dim / 2)`` of the angles by which queries and keys are rotated.
        rows: ``(wanted,)`` int64; the tokens whose logits are wanted.

    Both ``new`` and ``wanted`` are filled up to `kernel_rows`. What is behind the pieces reaches no answer.
    """

    pieces: Sequence[_Rows]
    meet: Meet | None
    cos: torch.Tensor
    sin: torch.Tensor
    rows: torch.Tensor


def why_not_own(model: PreTrainedModel) -> str:
    """What keeps a model from being run by the own forward; empty if nothing does."""
    if why := why_not_llama(model):
        return why
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return f"{str(model.dtype).removeprefix('torch.')} on {model.device.type}; it is for float32 on the CPU"
    other = next((pair for pair in linears_of(model) if type(pair[1]) is not PackedLinear), None)
    return "" if other is None else f"{other[0]} is a {type(other[1]).__name__}, not laid out for oneDNN"


class LlamaForward:
    """A model's weights, and the pass over them."""

    name: Literal["own"] = "own"
    why = ""
    most_tokens = MOST_TOKENS

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        lanes: Callable[[], Lanes | None] = lanes_here,
        fastest: Callable[[], FastestWay] = FastestWay,
    ) -> None:
        """Share the weights of ``model``, for which `why_not_own` has nothing to say.

        Args:
            model: has them.
            lanes: asked each pass for what can share it.
            fastest: makes what chooses how many lanes do. There is one for each type of products, so that passes in
                fp32 and in bf16 can be compared (`precision`).
        """
        whole: Any = model
        decoder = whole.model
        heads = decoder.layers[0].self_attn.q_proj.out_features // decoder.layers[0].self_attn.head_dim
        self._lanes = lanes if heads > 1 else _no_lanes  # attention of one head gives other last bits on one core
        self._fastest: defaultdict[torch.dtype, FastestWay] = defaultdict(fastest)
        self._lanes()  # so that threads start now, and not while requests run
        self._embed: nn.Module = decoder.embed_tokens
        self._layers = tuple(_Layer.of(layer) for layer in decoder.layers)
        self._norm = Norm.of(decoder.norm)
        self._head = OutputLayer(whole.lm_head, decoder.embed_tokens, tied=bool(model.config.tie_word_embeddings))
        self._frequencies: torch.Tensor = decoder.rotary_emb.inv_freq.float()
        self._rotation_scale = float(decoder.rotary_emb.attention_scaling)
        self.head_dim = int(decoder.layers[0].self_attn.head_dim)
        self.kv_heads = self._layers[0].key.out_features // self.head_dim

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._layers)

    def begin(self, prefix: PromptKV | None, prompt_tokens: int) -> Running:
        """Start with room for keys and values."""
        return KeyValues(self, prefix, prompt_tokens)

    def feed(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Compute new tokens behind those of each run: for each ``(wanted, vocabulary)`` logits, or of some tokens.

        Every step but attention works row by row, so no result depends on what else is in the pass; on one machine to
        the bit, where oneDNN adds up a row in the same order however many there are.
        """
        kept = [cast("KeyValues", feed.running) for feed in feeds]
        for each, feed in zip(kept, feeds, strict=True):
            each.reserve(len(feed.fed.tokens))
        feds = [feed.fed for feed in feeds]
        pieces = [piece for place, fed in enumerate(feds) for piece in pieces_of(place, fed)]
        lanes, lengths = self._lanes(), [len(piece.fed.tokens) for piece in pieces]
        shares = shares_by_lanes(lengths, lanes)
        fastest = self._fastest[self._layers[0].query.dtype]
        count = fastest.choose(sum(lengths), list(shares))
        started = time.perf_counter()
        try:
            outputs = self._outputs(pieces, kept, shares[count], lanes if count else None)
            logits = self._head(outputs, [fed.next_tokens for fed in feds])
        except Exception:
            fastest.took(sum(lengths), count, math.inf)  # or a way that always fails would be tried for ever
            raise
        fastest.took(sum(lengths), count, time.perf_counter() - started)
        for each, feed in zip(kept, feeds, strict=True):
            each.length += len(feed.fed.tokens)  # last: a pass that fails leaves nothing half written
        return logits

    def release(self) -> None:
        """Its weights are the model's."""

    def _outputs(
        self,
        pieces: Sequence[Piece],
        kept: Sequence[KeyValues],
        shares: Sequence[Sequence[int]],
        lanes: Lanes | None,
    ) -> list[torch.Tensor]:
        """What the output layer multiplies for each run, ``(wanted, width)``.

        That layer itself is always computed by the thread that feeds, on all of torch's: its products of few columns
        give other last bits on one.
        """
        if lanes is None:
            return joined(pieces, self._run(pieces, kept))

        def run(share: Sequence[int], meet: Meet) -> list[torch.Tensor]:
            return self._run([pieces[at] for at in share], kept, meet)

        found = lanes.run([functools.partial(run, share) for share in shares])
        outputs = dict(zip(itertools.chain(*shares), itertools.chain(*found), strict=True))
        return joined(pieces, [outputs[at] for at in range(len(pieces))])

    @torch.inference_mode()
    def _run(self, pieces: Sequence[Piece], kept: Sequence[KeyValues], meet: Meet | None = None) -> list[torch.Tensor]:
        """What the output layer multiplies for each piece, ``(wanted, width)``.

        ``kept`` is of all in the pass. ``meet`` waits for the other pieces' keys and values of a layer.
        """
        feds = [piece.fed for piece in pieces]
        starts = [0, *itertools.accumulate(len(fed.tokens) for fed in feds)]
        tokens = filled_up(torch.tensor([token for fed in feds for token in fed.tokens]))
        positions = filled_up(torch.tensor([position for fed in feds for position in fed.positions]))
        angles = positions.float()[:, None, None] * self._frequencies
        wanted = torch.cat([start + fed.rows for start, fed in zip(starts[:-1], feds, strict=True)])
        shared = _Pass(
            pieces=[
                _Rows(
                    tokens=slice(start, end),
                    mask=additive(piece.fed.visible, torch.float32),
                    kept=kept[piece.place],
                    first=piece.first,
                )
                for piece, (start, end) in zip(pieces, itertools.pairwise(starts), strict=True)
            ],
            meet=meet,
            cos=angles.cos() * self._rotation_scale,
            sin=angles.sin() * self._rotation_scale,
            rows=filled_up(wanted),
        )
        hidden: torch.Tensor = self._embed(tokens)
        for number, layer in enumerate(self._layers):
            attended = self._attend(number, layer.before_attention(hidden), shared)
            if number == len(self._layers) - 1:
                attended, hidden = attended[shared.rows], hidden[shared.rows]
            hidden = layer.mlp(layer.output.plus(attended, hidden))
        return list(self._norm(hidden)[: len(wanted)].split([len(fed.rows) for fed in feds]))

    def _attend(self, number: int, normed: torch.Tensor, shared: _Pass) -> torch.Tensor:
        """Heads of all new tokens in a layer, ``(new, heads * head_dim)``; keeps their keys and values."""
        layer, new = self._layers[number], len(normed)
        normed = normed.to(layer.query.dtype)
        query = layer.query(normed).view(new, -1, self.head_dim)
        key = layer.key(normed).view(new, -1, self.head_dim)
        if layer.normed_query is not None and layer.normed_key is not None:
            query, key = layer.normed_query(query), layer.normed_key(key)
        heads = query.shape[1]
        turned = _rotated(torch.cat([query, key], dim=1), shared).transpose(0, 1)
        value = layer.value(normed).view(new, -1, self.head_dim).transpose(0, 1)
        for rows in shared.pieces:
            rows.kept.write(number, rows.first, turned[heads:, rows.tokens], value[:, rows.tokens])
        if shared.meet is not None:
            shared.meet()
        attended = [
            _attended(turned[:heads, rows.tokens], *rows.kept.read(number, rows.mask.shape[1]), rows.mask)
            for rows in shared.pieces
        ]
        if more := new - shared.pieces[-1].tokens.stop:
            attended.append(attended[0].new_zeros(more, attended[0].shape[1]))
        return attended[0] if len(attended) == 1 else torch.cat(attended)


def _no_lanes() -> None:
    return None


def _attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Heads of one piece's tokens, ``(tokens, heads * head_dim)``.

    ``query`` is ``(heads, tokens, head_dim)``, ``keys`` and ``values`` are ``(kv_heads, seen, head_dim)``.
    """
    found = scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask, enable_gqa=True)
    return found[0].transpose(0, 1).flatten(1)


def _rotated(heads: torch.Tensor, shared: _Pass) -> torch.Tensor:
    """Rotate each pair of a head's halves, ``(new, heads, head_dim)``, by its token's angles."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([first * shared.cos, second * shared.cos], dim=-1)
    half = first.shape[-1]
    turned[..., :half].addcmul_(second, shared.sin, value=-1)
    turned[..., half:].addcmul_(first, shared.sin)
    return turned


class KeyValues:
    """Keys and values of one prompt and the tree below it, all layers in one piece of memory each."""

    def __init__(self, forward: LlamaForward, prefix: PromptKV | None, prompt_tokens: int) -> None:
        self._shape = (forward.num_layers, forward.kv_heads, forward.head_dim)
        self._prefix = LayerPairs.of(prefix)  # read until there is room of our own
        self._both: torch.Tensor | None = None  # (2, layers, kv_heads, room, head_dim)
        self._prompt_tokens = prompt_tokens
        self.length = 0 if prefix is None else len(prefix.ids)

    def reserve(self, new: int) -> None:
        """Make room for ``new`` tokens.

        The first room is for them and the whole prompt, and no more: a cached prompt keeps it alive as long as itself.
        """
        needed = self.length + new
        if self._both is not None and needed <= self._both.shape[3]:
            return
        layers, heads, width = self._shape
        room = max(needed, self._prompt_tokens) if self._both is None else needed + needed // 2
        grown = torch.empty(2, layers, heads, room, width)
        if self._both is not None:
            grown[:, :, :, : self.length] = self._both[:, :, :, : self.length]
        for layer, pair in enumerate(self._prefix.pairs):
            for kind, tensor in enumerate(pair):
                grown[kind, layer, :, : self.length] = tensor[0]
        self._both, self._prefix = grown, LayerPairs()

    def write(self, layer: int, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep ``(kv_heads, tokens, head_dim)`` of new tokens, from the ``first`` new slot on; there is room."""
        slots = slice(self.length + first, self.length + first + keys.shape[1])
        self._room[0, layer, :, slots].copy_(keys)
        self._room[1, layer, :, slots].copy_(values)

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values before slot ``end``, as views: ``(kv_heads, end, head_dim)`` each."""
        return self._room[0, layer, :, :end], self._room[1, layer, :, :end]

    def layers(self, length: int) -> LayerPairs:
        """The first ``length`` tokens, as views."""
        keys, values = self._room[:, :, None, :, :length]
        return LayerPairs(tuple(zip(keys, values, strict=True)))

    @property
    def _room(self) -> torch.Tensor:
        if self._both is None:
            raise RuntimeError("nothing has been fed")
        return self._both
