"""Packed weights change the speed, and nothing else."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from igd_core.engines.embedded.packed_linear import PackedLinear, filled_up, kernel_rows, pack_linears

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


@given(st.integers(0, 5_000))
def test_rows_are_filled_up_to_few_numbers_and_by_little(rows: int) -> None:
    filled = kernel_rows(rows)
    assert rows <= filled <= rows * 17 / 16
    assert kernel_rows(filled) == filled


def test_up_to_so_many_rows_there_are_so_many_numbers() -> None:
    assert {most: len({kernel_rows(rows) for rows in range(1, most + 1)}) for most in (32, 64, 256, 1024)} == {
        32: 32,
        64: 48,
        256: 80,
        1024: 112,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (7, 3), (8,), (65, 2, 2)])
def test_what_is_filled_up_with_is_zero(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rows = torch.ones(shape, dtype=dtype)
    filled = filled_up(rows)
    assert (filled.shape, filled.dtype) == ((kernel_rows(len(rows)), *shape[1:]), dtype)
    assert torch.equal(filled[: len(rows)], rows)
    assert not filled[len(rows) :].any()
