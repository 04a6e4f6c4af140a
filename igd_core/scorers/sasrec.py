"""SASRec as an item scorer (Kang and McAuley, arXiv 1808.09781): a forward of one history, in NumPy.

The blocks are GPT-2's: layer norm before attention and before the feed-forward part, which has GELU's tanh form. One
history of 20 items through two layers of width 64 is a millisecond, without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import ModelFault
from igd_core.scorers.mass import BACKGROUND_ALONE, ItemMass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.ids import ItemIndex
    from igd_core.scorers.network import NetworkPart

_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SASRecScorer:
    """``p(j) = (1 - background) * softmax(scores / temperature)(j) + background * popularity(j)``.

    Attributes:
        part: the network.
        fingerprint: of its tensors and settings.
    """

    part: NetworkPart
    fingerprint: str

    def mass(self, history: Sequence[ItemIndex]) -> ItemMass:
        """After ``history``, item rows, oldest first; popularity where it is empty.

        Raises:
            ModelFault: the network's scores are not finite.
        """
        if not history:
            return BACKGROUND_ALONE
        network = self.part.network
        share = np.exp(log_softmax(item_scores(self.part, history, only_last=True)[0] / network.temperature))
        if not np.isfinite(share).all():
            raise ModelFault("item scorer: the scores of its network are not finite")
        return ItemMass(background=network.background, items=None, mass=(1.0 - network.background) * share)


def item_scores(
    part: NetworkPart, history: Sequence[ItemIndex] | Sequence[int], *, only_last: bool = False
) -> NDArray[np.float64]:
    """The network's scores of all items after each of the last ``length`` items: ``(items read, num_items)``.

    With ``only_last`` it is one row, after the last item: what a request needs, and a twentieth of the products.
    """
    tensors, network = part.tensors, part.network
    read = np.asarray(history[-network.length :], np.int64)
    hidden = tensors["item"][read] + tensors["position"][: len(read)]
    later = np.triu(np.full((len(read), len(read)), -np.inf, np.float32), 1)
    for layer in range(network.layers):
        of = {name: tensor[layer] for name, tensor in tensors.items() if name in _OF_LAYERS}
        normed = _normed(hidden, of["norm1_weight"], of["norm1_bias"])
        mixed = _attended(normed @ of["qkv_weight"] + of["qkv_bias"], later, network.heads)
        hidden = hidden + mixed @ of["attention_weight"] + of["attention_bias"]
        normed = _normed(hidden, of["norm2_weight"], of["norm2_bias"])
        inner = _gelu(normed @ of["mlp_in_weight"] + of["mlp_in_bias"])
        hidden = hidden + inner @ of["mlp_out_weight"] + of["mlp_out_bias"]
    hidden = _normed(hidden[-1:] if only_last else hidden, tensors["norm_weight"], tensors["norm_bias"])
    return np.asarray(hidden @ tensors["item"].T, np.float64)


_OF_LAYERS = frozenset(
    f"{block}_{kind}"
    for block in ("norm1", "qkv", "attention", "norm2", "mlp_in", "mlp_out")
    for kind in ("weight", "bias")
)


def log_softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Over the last axis, nats."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _attended(qkv: NDArray[np.float32], later: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Values by attention, ``(items, width)``; no item looks at a later one."""
    items, width = len(qkv), qkv.shape[1] // 3
    query, key, value = qkv.reshape(items, 3, heads, width // heads).transpose(1, 2, 0, 3)
    logits = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(width // heads)) + later
    attention = np.exp(log_softmax(logits))
    return np.asarray((attention @ value).transpose(1, 0, 2).reshape(items, width))


def _normed(hidden: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + _EPSILON) * weight + bias)


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.float32(math.sqrt(2.0 / math.pi)) * (x + 0.044715 * x * x * x))))
