"""What an artifact keeps of a SASRec: its sizes, its tensors, and how its scores become a distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import CatalogueError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_ITEMS = 100_000
"""Of a SASRec's catalogue: every item is scored for each request, and for each position of a batch in training."""
_WHOLE = {"width": 1024, "layers": 32, "heads": 64, "length": 4096}
_REAL = {"temperature": (0.01, 100.0), "background": (1e-6, 1.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecord:
    """A causal transformer over item ids, in the manifest.

    Attributes:
        width: of embeddings, 1 to 1,024.
        layers: 1 to 32.
        heads: of attention, 1 to 64; a divisor of width.
        length: items of a history that it reads, 1 to 4,096.
        temperature: its scores are divided by this before the softmax, 0.01 to 100.
        background: share of popularity in the distribution, 1e-6 to 1.
    """

    width: int
    layers: int
    heads: int
    length: int
    temperature: float
    background: float

    def __post_init__(self) -> None:
        for name, largest in _WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise CatalogueError(f"scorer.network.{name} is {value!r}; 1 to {largest} can be")
        if self.width % self.heads:
            raise CatalogueError(f"scorer.network.heads is {self.heads}; no divisor of the width {self.width}")
        for name, (least, most) in _REAL.items():
            value = getattr(self, name)
            if type(value) not in {int, float} or not least <= value <= most:  # NaN fails this too
                raise CatalogueError(f"scorer.network.{name} is {value!r}; {least:g} to {most:g} can be")

    def shapes(self, num_items: int) -> dict[str, tuple[int, ...]]:
        """Of each tensor, by its name in the file; all are float32, and those of layers lie in one tensor.

        Scores are ``normed(hidden) @ item.T``. A weight is ``(from, to)``; qkv holds queries, keys and values, each of
        all heads.
        """
        width, layers = self.width, self.layers
        return {
            "item": (num_items, width),
            "position": (self.length, width),
            "norm1_weight": (layers, width),
            "norm1_bias": (layers, width),
            "qkv_weight": (layers, width, 3 * width),
            "qkv_bias": (layers, 3 * width),
            "attention_weight": (layers, width, width),
            "attention_bias": (layers, width),
            "norm2_weight": (layers, width),
            "norm2_bias": (layers, width),
            "mlp_in_weight": (layers, width, 4 * width),
            "mlp_in_bias": (layers, 4 * width),
            "mlp_out_weight": (layers, 4 * width, width),
            "mlp_out_bias": (layers, width),
            "norm_weight": (width,),
            "norm_bias": (width,),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPart:
    """A trained SASRec.

    Attributes:
        network: its sizes.
        tensors: as `NetworkRecord.shapes` says, float32.
    """

    network: NetworkRecord
    tensors: Mapping[str, NDArray[np.float32]]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every tensor by its name: what is stored, and all that is stored."""
        return dict(self.tensors)

    def fault(self, num_items: int) -> str | None:
        """The tensor that is not a network's of ``num_items`` items; None where all are."""
        for name, shape in self.network.shapes(num_items).items():
            tensor = self.tensors.get(name)
            if tensor is None or tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                return name
        return None
