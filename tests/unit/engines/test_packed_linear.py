"""Packed weights change the speed, and nothing else."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from igd_core.engines.embedded.packed_linear import PackedLinear, pack_linears

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.engines.embedded.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (2, 5, 24)])
def test_a_packed_layer_computes_what_the_plain_one_does(shape: tuple[int, ...], bias: bool) -> None:
    plain = nn.Linear(24, 17, bias=bias).requires_grad_(requires_grad=False)
    inputs = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(plain)(inputs), plain(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama-fp32", "qwen2-fp32", "qwen3-fp32"])
def test_a_packed_model_has_no_plain_linear_left_and_the_same_logits(
    kind: str, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    plain = checkpoint_of(kind).model
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    assert not any(type(module) is nn.Linear for module in packed.modules())
    ids = torch.arange(1, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_model_in_half_precision_is_left_as_it_is(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    model = copy.deepcopy(checkpoint_of("llama-bf16").model)
    pack_linears(model)
    assert any(type(module) is nn.Linear for module in model.modules())
