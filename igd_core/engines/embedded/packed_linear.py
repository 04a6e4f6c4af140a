"""Linear layers with weights laid out once for oneDNN, for the CPU.

A round feeds 10 to 60 tokens. At that width a plain fp32 product spends much of its time laying out the weights again:
all 211 products of SmolLM2-135M took 104, 154 and 252 ms at 10, 40 and 80 tokens plain, 68, 114 and 216 ms laid out
once (2 cores, interleaved medians). At 270 tokens there is no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedLinear(nn.Module):
    """Replaces an ``nn.Linear`` for inference; the same result up to the order of additions."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in a linear layer's layout, as a copy: some architectures read it themselves."""
        weight: torch.Tensor = self._packed.to_dense()
        return weight

    def release(self) -> None:
        """Drop the weight; the layer cannot be used any more."""
        self._packed = torch.empty(0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` float32 to ``(..., out_features)`` float32."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        return output

    def silu(self, inputs: torch.Tensor) -> torch.Tensor:
        """SiLU of the output."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "swish", [], "")
        return output

    def plus(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The output and ``other``, ``(..., out_features)``, added."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(inputs, other, self._packed, self.bias, "add")
        return output

    def times(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The output and ``other``, ``(..., out_features)``, multiplied."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(inputs, other, self._packed, self.bias, "mul")
        return output


def pack_linears(model: PreTrainedModel) -> None:
    """Replace every linear layer of an fp32 CPU model; does nothing for other models, or if torch lacks oneDNN."""
    operators = torch.ops.mkldnn
    if model.device.type != "cpu" or model.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return
    if not (hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise")):
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
