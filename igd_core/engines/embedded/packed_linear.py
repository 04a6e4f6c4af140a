"""Linear layers with weights laid out once for oneDNN, for the CPU.

A round feeds 10 to 60 tokens. At that width a plain fp32 product spends much of its time laying out the weights again:
all 211 products of SmolLM2-135M took 104, 154 and 252 ms at 10, 40 and 80 tokens plain, 68, 114 and 216 ms laid out
once (2 cores, interleaved medians). At 270 tokens there is no difference.

In bf16 there is half as much to read, and processors with AVX-512 BF16 or AMX multiply pairs: half the time again.
oneDNN adds up in fp32 and rounds the result to bf16.

A call of oneDNN takes some 30 us besides what it computes: most of the time of a small model's product. There the
weights of all layers but the output layer lie as ``(in_features, out_features)`` and torch multiplies plainly, where
this adds up each row in one order (`multiply_plainly`). A larger model's time is in the products themselves.

oneDNN makes a kernel for each number of rows, in about a millisecond and half a MiB (tests/bench/kernels.py), and keeps
the 1,024 used last. Passes of several people have any number of rows, so there would be more: `kernel_rows` says to
which numbers they are filled up.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn

from igd_core.engines.embedded.lanes import lanes_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


MOST_PLAIN = 5_000_000
"""Weights of a small model, at most, without its output layer. Larger ones were not faster, or not tried."""
_TRIED_ROWS = 256


class PackedLinear(nn.Module):
    """Replaces an ``nn.Linear`` for inference; in float32 the same result up to the order of additions."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self._layouts = {torch.float32: _laid_out(linear.weight.detach())}
        self._use(torch.float32)

    @property
    def plain(self) -> bool:
        """Whether the weight in use lies as ``(in_features, out_features)``, and not as oneDNN has it."""
        return self._packed.layout == torch.strided

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight: float32, or bfloat16 (`multiply_in`)."""
        return self._packed.dtype

    @property
    def weight(self) -> torch.Tensor:
        """The weight in a linear layer's layout, float32, as a copy: some architectures read it themselves."""
        weight: torch.Tensor = self._packed.t().clone() if self.plain else self._packed.to_dense()
        return weight.float()

    def lay_out_plainly(self) -> None:
        """In float32, let the weight lie as ``(in_features, out_features)`` from now on; it is in use then."""
        self._layouts[torch.float32] = self.weight.t().contiguous()
        self._use(torch.float32)

    def multiply_in(self, dtype: torch.dtype) -> None:
        """Use the weight in this type from now on; the layouts made so far stay, until `keep_one_layout`."""
        if dtype not in self._layouts:
            self._layouts[dtype] = _laid_out(self.weight.to(dtype))
        self._use(dtype)

    def keep_one_layout(self) -> None:
        """Drop all layouts but the one in use."""
        self._layouts = {self.dtype: self._packed}

    def release(self) -> None:
        """Drop the weight; the layer cannot be used any more."""
        self._packed, self._layouts = torch.empty(0), {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)`` float32."""
        return self._product(inputs, "none").float()

    def silu(self, inputs: torch.Tensor) -> torch.Tensor:
        """SiLU of the output, in the weight's type."""
        return self._product(inputs, "swish")

    def plus(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The output and ``other``, ``(..., out_features)`` float32, added in float32."""
        if self.plain:
            return self._product(inputs, "none").add_(other)
        if self.dtype != torch.float32:
            return other + self._product(inputs, "none")
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            inputs, other, self._packed, self._cast_bias, "add"
        )
        return output

    def times(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The output and ``other``, ``(..., out_features)``, multiplied; all in the weight's type."""
        if self._is_alone(inputs):
            return self.times(_doubled(inputs), _doubled(other))[:1].view(other.shape)
        if self.plain:
            return self._product(inputs, "none").mul_(other)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            inputs.to(self.dtype), other, self._packed, self._cast_bias, "mul"
        )
        return output

    def _use(self, dtype: torch.dtype) -> None:
        self._packed = self._layouts[dtype]
        self._cast_bias = None if self.bias is None else self.bias.detach().to(dtype)

    def _product(self, inputs: torch.Tensor, after: str) -> torch.Tensor:
        if self._is_alone(inputs):
            return self._product(_doubled(inputs), after)[:1].view(*inputs.shape[:-1], self.out_features)
        if self.plain:
            return self._plain_product(inputs, after)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs.to(self.dtype), self._packed, self._cast_bias, after, [], ""
        )
        return output

    def _plain_product(self, inputs: torch.Tensor, after: str) -> torch.Tensor:
        found = torch.mm(inputs.reshape(-1, self.in_features), self._packed)
        if self._cast_bias is not None:
            found.add_(self._cast_bias)
        if after == "swish":
            # not torch's silu, which computes the last few numbers of a tensor another way than the others
            found.div_(found.neg().exp_().add_(1))
        return found.view(*inputs.shape[:-1], self.out_features)

    def _is_alone(self, inputs: torch.Tensor) -> bool:
        """Whether it is one row, in bf16 or plainly: a row alone is added up in another order than two or more.

        What a person gets would depend on who else is in the pass: by the last bit, and in bf16, where it decides which
        way some results are rounded, by 0.4 %. (oneDNN does so in fp32 too, in few products and by the last bit.)
        """
        return (self.plain or self.dtype != torch.float32) and inputs.numel() == self.in_features


def kernel_rows(rows: int) -> int:
    """How many rows to multiply in place of ``rows``.

    Each number up to 32, then 16 numbers from each power of two to the next: less than a sixteenth more.
    """
    step = 1 << max(0, (rows - 1).bit_length() - 5)
    return -(-rows // step) * step


def filled_up(rows: torch.Tensor) -> torch.Tensor:
    """``(rows, ...)`` with zeros behind them, up to `kernel_rows`."""
    more = kernel_rows(len(rows)) - len(rows)
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


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


def hidden_linears(model: PreTrainedModel) -> list[PackedLinear]:
    """All packed layers but the output layer."""
    head = model.get_output_embeddings()
    return [each for each in model.modules() if isinstance(each, PackedLinear) and each is not head]


def multiply_plainly(model: PreTrainedModel) -> bool:
    """Let a small model's hidden layers multiply plainly, if no row's product depends on the others then; tells."""
    layers = hidden_linears(model)
    shapes = {(each.in_features, each.out_features) for each in layers}
    weights = sum(each.in_features * each.out_features for each in layers)
    if not layers or weights > MOST_PLAIN or not all(adds_up_in_one_order(*shape) for shape in shapes):
        return False
    for each in layers:
        each.lay_out_plainly()
    return True


def adds_up_in_one_order(
    in_features: int, out_features: int, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.mm
) -> bool:
    """Whether a row's plain product is the same to the bit among any number of rows from 2 on, first or last of them.

    Tried for the numbers up to 256 to which rows are filled up, on as many threads as torch has now, and on one.
    """
    return _adds_up_in_one_order(in_features, out_features, product, torch.get_num_threads())


@functools.cache
def _adds_up_in_one_order(
    in_features: int,
    out_features: int,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    threads: int,  # noqa: ARG001 - what is remembered is of this number
) -> bool:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_TRIED_ROWS, in_features, generator=generator)
    weight = torch.randn(in_features, out_features, generator=generator)
    numbers = sorted({kernel_rows(rows) for rows in range(2, _TRIED_ROWS)})
    whole = product(inputs, weight)

    def alike(_: object) -> bool:
        return torch.equal(product(inputs, weight), whole) and all(
            torch.equal(product(inputs[some].clone(), weight), whole[some])
            for rows in numbers
            for some in (slice(rows), slice(_TRIED_ROWS - rows, _TRIED_ROWS))
        )

    lanes = lanes_here()
    return alike(None) and (lanes is None or all(lanes.run([alike])))


def _laid_out(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _doubled(row: torch.Tensor) -> torch.Tensor:
    return row.reshape(1, -1).repeat(2, 1)
