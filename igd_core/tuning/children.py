"""Cross-entropy over the children of a trie node: the masked softmax (MSL, arXiv 2504.04178).

A token is told from its siblings, not from the whole vocabulary. A forced token then has loss 0 by itself and is left
out, and of the output layer only the rows of children are read. `Decisions` says which, worked out on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from igd_core.search.scores import log_sum_exp_of_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.tuning.bear import BearSettings

    Int64 = NDArray[np.int64]

_CHUNK_LOGITS = 1 << 18
"""Of a product of matrices, 1 MiB; one place's children may be more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some places of a batch, and the tokens that may follow one of them: one product of matrices.

    Attributes:
        places: ``(p,)`` int64; which hidden states, counted through the batch's tokens.
        columns: ``(u,)`` int64; which of `Decisions.tokens`.
        row: ``(n,)`` int64; the place of each child, among the ``p``; ascending.
        column: ``(n,)`` int64; its token, among the ``u``.
    """

    places: Int64
    columns: Int64
    row: Int64
    column: Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """What the loss of a batch reads of the output layer: for each place, the logits of the children there.

    Attributes:
        tokens: ``(t,)`` int64, ascending; rows of the output layer.
        chunks: the places, those with most children first; chunk after chunk and place after place, the children of
            all are ``n``.
        start: ``(q + 1,)`` int64; where each place's children begin among the ``n``.
        place: ``(m,)`` int64; of each target, among the ``q``.
        target: ``(m,)`` int64; each target, among the ``n``.
    """

    tokens: Int64
    chunks: tuple[Chunk, ...]
    start: Int64
    place: Int64
    target: Int64

    @staticmethod
    def of(trie: TokenTrie, position: Int64, edge: Int64) -> Decisions:
        """From ``(m,)`` targets: after which of the batch's tokens they stand, and the trie's edges that they are.

        Several may share a position, as rows of one history do; it has one node all the same.
        """
        parent = trie.parents(edge + 1)
        places, first, place = np.unique(position, return_index=True, return_inverse=True)
        node = parent[first]
        degree = trie.row_start[node + 1].astype(np.int64) - trie.row_start[node]
        order = np.lexsort((node, -degree))
        rank = np.argsort(order)
        places, node, degree, place = places[order], node[order], degree[order], rank[place]
        start = np.concatenate(([0], np.cumsum(degree)))
        edges = np.arange(start[-1]) + np.repeat(trie.row_start[node] - start[:-1], degree)
        tokens, used = np.unique(trie.edge_token[edges], return_inverse=True)
        return Decisions(
            tokens=tokens.astype(np.int64),
            chunks=tuple(_chunks(places, node, start, used)),
            start=start,
            place=place,
            target=start[place] + edge - trie.row_start[parent],
        )


def _chunks(places: Int64, node: Int64, start: Int64, used: Int64) -> Iterator[Chunk]:
    """Cut where a product would hold more than `_CHUNK_LOGITS`; places of one node stand together and share columns."""
    degree = np.diff(start)
    begin = width = 0
    for end in range(1, len(places) + 1):
        new = degree[end - 1] if end == 1 or node[end - 1] != node[end - 2] else 0
        if end - 1 > begin and (end - begin) * (width + new) > _CHUNK_LOGITS:
            yield _chunk(places, start, used, slice(begin, end - 1))
            begin, new, width = end - 1, degree[end - 1], 0
        width += new
    yield _chunk(places, start, used, slice(begin, len(places)))


def _chunk(places: Int64, start: Int64, used: Int64, part: slice) -> Chunk:
    columns, column = np.unique(used[start[part.start] : start[part.stop]], return_inverse=True)
    degree = np.diff(start[part.start : part.stop + 1])
    return Chunk(places=places[part], columns=columns, row=np.repeat(np.arange(len(degree)), degree), column=column)


def child_logits(hidden: torch.Tensor, head: nn.Module, decisions: Decisions) -> torch.Tensor:
    """Logits of the children of every place, ``(n,)`` float32.

    Args:
        hidden: ``(tokens, width)``, of all tokens of the batch.
        head: the output layer.
        decisions: of the batch.
    """
    device = hidden.device
    some = HeadRows(head, _put(decisions.tokens, device))
    parts = []
    for chunk in decisions.chunks:
        logits = some(hidden[_put(chunk.places, device)], _put(chunk.columns, device))
        parts.append(logits[_put(chunk.row, device), _put(chunk.column, device)].float())
    return torch.cat(parts)


class HeadRows:
    """An output layer cut down to the rows of some tokens; called with hidden states and which of those rows.

    The weights are gathered once, so that their gradient is written once. LoRA on the layer has its part; a layer of
    another kind is computed whole.
    """

    def __init__(self, head: nn.Module, tokens: torch.Tensor) -> None:
        self._head, self._tokens = head, tokens
        self._lora = _lora_of(head)
        base: Any = head if self._lora is None else self._lora.base
        self._weight = self._bias = self._up = None
        if type(base) is nn.Linear:
            self._weight = base.weight[tokens]
            self._bias = None if base.bias is None else base.bias[tokens]
            self._up = None if self._lora is None else self._lora.up.weight[tokens]

    def __call__(self, hidden: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """``(p, len(columns))`` logits of ``(p, width)`` hidden states."""
        if self._weight is None:
            whole: torch.Tensor = self._head(hidden)
            return whole[:, self._tokens[columns]]
        bias = None if self._bias is None else self._bias[columns]
        logits = functional.linear(hidden, self._weight[columns], bias)
        if self._lora is not None and self._up is not None:
            low = self._lora.down(self._lora.dropout(hidden))
            logits = logits + self._lora.scaling * functional.linear(low, self._up[columns])
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lora:
    """A LoRA layer's parts: ``base(x) + scaling * up(down(dropout(x)))``."""

    base: nn.Module
    down: nn.Module
    up: Any
    dropout: nn.Module
    scaling: float


def _lora_of(head: nn.Module) -> _Lora | None:
    """Of a plain layer under one LoRA adapter; None for anything else."""
    layer: Any = head
    if not hasattr(layer, "lora_A") or len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        return None
    (name,) = layer.active_adapters
    if layer.use_dora.get(name) or layer.lora_bias.get(name):
        return None
    return _Lora(
        base=layer.base_layer,
        down=layer.lora_A[name],
        up=layer.lora_B[name],
        dropout=layer.lora_dropout[name],
        scaling=layer.scaling[name],
    )


def child_cross_entropy(logits: torch.Tensor, decisions: Decisions, *, temperature: float = 1.0) -> torch.Tensor:
    """``-log softmax(logits / temperature)`` of each target among its siblings, ``(m,)`` float32, nats.

    Args:
        logits: ``(n,)`` float32, of `child_logits`.
        decisions: of the batch.
        temperature: > 0.
    """
    values = logits / temperature
    total = _log_sum(values, decisions)
    return total[_put(decisions.place, logits.device)] - values[_put(decisions.target, logits.device)]


def child_divergence(
    logits: torch.Tensor, start: torch.Tensor, decisions: Decisions, *, temperature: float = 1.0
) -> torch.Tensor:
    """``KL(p || p_start)`` over the children of each target's node, all of them, ``(m,)`` float32, nats, >= 0.

    Args:
        logits: ``(n,)`` float32, of `child_logits`.
        start: the same of the model to stay close to; without gradient.
        decisions: of the batch.
        temperature: > 0; of both.
    """
    of_place = _place_of_child(decisions, logits.device)
    ours, theirs = (
        values - _log_sum(values, decisions)[of_place] for values in (logits / temperature, start / temperature)
    )
    each = logits.new_zeros(len(decisions.start) - 1).index_add(0, of_place, ours.exp() * (ours - theirs))
    return each[_put(decisions.place, logits.device)]


@torch.no_grad()
def bear_weights(
    logits: torch.Tensor, decisions: Decisions, bear: BearSettings, *, temperature: float = 1.0
) -> torch.Tensor:
    """What BEAR multiplies each target's weight with, before it is scaled: ``(m,)`` float32, 1 to ``1 + weight``."""
    device, values = logits.device, logits / temperature
    start = _put(decisions.start, device)
    of_place = _place_of_child(decisions, device)
    by_value = torch.argsort(values, descending=True, stable=True)
    ranked = by_value[torch.argsort(of_place[by_value], stable=True)]  # place after place, the best child first
    kth = torch.minimum(start[:-1] + bear.beams, start[1:]) - 1
    edge_of_beam = values[ranked[kth]]
    margin = values[_put(decisions.target, device)] - edge_of_beam[_put(decisions.place, device)]
    return 1.0 + bear.weight * torch.sigmoid(margin / bear.xi)


def _log_sum(values: torch.Tensor, decisions: Decisions) -> torch.Tensor:
    """``ln sum exp`` over the children of each place, ``(q,)``."""
    of_place = _place_of_child(decisions, values.device)
    highest, rest = log_sum_exp_of_groups(values, of_place, len(decisions.start) - 1)
    return rest + highest


def _place_of_child(decisions: Decisions, device: torch.device) -> torch.Tensor:
    return _put(np.repeat(np.arange(len(decisions.start) - 1), np.diff(decisions.start)), device)


def _put(values: Int64, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)
