"""Packed weights change the speed, and nothing else."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoints import TINY, random_model, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig

from igd_core.engines.embedded import packed_linear
from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.embedded.packed_linear import (
    PackedLinear,
    adds_up_in_one_order,
    filled_up,
    hidden_linears,
    kernel_rows,
    multiply_plainly,
    pack_linears,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.engines.embedded.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("plainly", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (2, 5, 24)])
def test_a_packed_layer_computes_what_the_plain_one_does(shape: tuple[int, ...], bias: bool, plainly: bool) -> None:
    plain = nn.Linear(24, 17, bias=bias).requires_grad_(requires_grad=False)
    packed, inputs, other = PackedLinear(plain), torch.randn(shape), torch.randn(*shape[:-1], 17)
    if plainly:
        packed.lay_out_plainly()
    assert packed.plain == plainly
    assert torch.equal(packed.weight, plain.weight)
    given = inputs.clone(), other.clone()
    with torch.inference_mode():
        expected = plain(inputs)
        for found, wanted in (
            (packed(inputs), expected),
            (packed.silu(inputs), nn.functional.silu(expected)),
            (packed.plus(inputs, other), expected + other),
            (packed.times(inputs, other), expected * other),
        ):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(inputs, given[0])
    assert torch.equal(other, given[1])


def test_a_plain_layer_becomes_one_in_bf16_and_plain_again() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bf16 products")
    packed, inputs = PackedLinear(nn.Linear(24, 17)), torch.randn(3, 24)
    packed.lay_out_plainly()
    with torch.inference_mode():
        before = packed(inputs)
        packed.multiply_in(torch.bfloat16)
        assert (packed.plain, packed.dtype) == (False, torch.bfloat16)
        assert not torch.equal(packed(inputs), before)
        packed.multiply_in(torch.float32)
        packed.keep_one_layout()
        assert packed.plain
        assert torch.equal(packed(inputs), before)


@pytest.mark.parametrize(
    ("most", "alike", "expected"), [(10**6, True, True), (10**6, False, False), (10**3, True, False)]
)
def test_a_small_model_multiplies_plainly_where_rows_are_added_up_in_one_order(
    most: int, alike: bool, expected: bool, checkpoint_of: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "MOST_PLAIN", most)
    monkeypatch.setattr(packed_linear, "adds_up_in_one_order", lambda *_: alike)
    model = copy.deepcopy(checkpoint_of("llama-fp32").model)
    assert not multiply_plainly(model)  # it has no packed layers yet
    pack_linears(model)
    assert multiply_plainly(model) == expected
    assert {each.plain for each in hidden_linears(model)} == {expected}
    head = model.get_output_embeddings()
    assert isinstance(head, PackedLinear)
    assert not head.plain  # a vocabulary's product is no small one, and long to try


def test_a_checkpoint_is_tried_when_it_is_loaded(
    definition: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_checkpoint(tmp_path / "tiny", random_model(LlamaConfig(**TINY)), definition)
    for alike in (True, False):
        monkeypatch.setattr(packed_linear, "adds_up_in_one_order", lambda *_, alike=alike: alike)
        assert {each.plain for each in hidden_linears(load_checkpoint(saved, device="cpu").model)} == {alike}


def test_a_product_that_depends_on_the_number_of_rows_is_found() -> None:
    def depends(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return inputs @ weight + 1e-6 * (len(inputs) == 18)

    def depends_on_the_place(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return inputs @ weight + 1e-6 * (torch.arange(len(inputs)) == 30)[:, None]

    def exact(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (inputs.double() @ weight.double()).bfloat16()

    assert not adds_up_in_one_order(16, 16, depends)
    assert not adds_up_in_one_order(16, 16, depends_on_the_place)
    assert adds_up_in_one_order(16, 16, exact)


def test_what_was_found_on_one_thread_is_tried_again_on_two() -> None:
    def depends(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (inputs.double() @ weight.double()).bfloat16() + 0.1 * (torch.get_num_threads() > 1)

    found = [adds_up_in_one_order(16, 16, depends)]
    try:
        torch.set_num_threads(2)
        found.append(adds_up_in_one_order(16, 16, depends))
    finally:
        torch.set_num_threads(1)
    assert found == [True, False]  # on two threads it is tried on one of them too


@pytest.mark.parametrize("shape", [(128, 128), (128, 384), (384, 128), (160, 448)])
@settings(max_examples=20)
@given(rows=st.integers(1, 200), first=st.integers(0, 56))
def test_where_it_is_found_a_rows_product_does_not_depend_on_the_others(
    shape: tuple[int, int], rows: int, first: int
) -> None:
    if not adds_up_in_one_order(*shape):
        pytest.skip("this processor's plain product adds up rows in other orders")
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(rows)
        layer, inputs = PackedLinear(nn.Linear(*shape, bias=False)), torch.randn(256, shape[0])
        layer.lay_out_plainly()
        some = filled_up(inputs[first : first + rows].clone())
        assert torch.equal(layer(some)[:rows], layer(inputs)[first : first + rows])


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
