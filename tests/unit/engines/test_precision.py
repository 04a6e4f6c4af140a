"""bf16 products: how near fp32 they are, when they are taken, and that nothing of the one passes for the other."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoints import TINY, random_model, write_checkpoint
from torch import nn
from transformers import GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from igd_core.engines.embedded import packed_linear, precision
from igd_core.engines.embedded.checkpoint import in_precision, load_checkpoint
from igd_core.engines.embedded.packed_linear import PackedLinear
from igd_core.engines.embedded.token_tree import NewTokens, TokenTree
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.errors import InputError, ModelError
from igd_core.ids import ROOT, NodeId

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

    from igd_core.engines.embedded.checkpoint import Checkpoint

has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bf16 = pytest.mark.skipif(not has_bf16, reason="oneDNN has no bf16 product for this processor")
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**TINY),
    "qwen3": Qwen3Config(**TINY, head_dim=16, tie_word_embeddings=True),
}
IDS = [(7 * at + at * at) % 60 for at in range(30)]


@pytest.fixture
def saved(definition: dict[str, Any], tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", random_model(copy.deepcopy(CONFIGS["llama"])), definition)


def own_logprobs(checkpoint: Checkpoint) -> torch.Tensor:
    """``(len(IDS), vocabulary)`` log-probabilities of a chain."""
    nodes = [NodeId(number) for number in range(1, len(IDS))]
    new = NewTokens(nodes=nodes, parents=[ROOT, *nodes[:-1]], tokens=IDS[1:])
    with torch.inference_mode():
        tree = TokenTree(checkpoint.forward_of(None), IDS[:1])
        return torch.log_softmax(tree.compute(new, [True] * len(IDS)), dim=-1)


def plain_logprobs(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0], dim=-1)


def hidden_dtypes(checkpoint: Checkpoint) -> set[torch.dtype]:
    return {each.dtype for each in checkpoint.model.get_decoder().modules() if isinstance(each, PackedLinear)}


def spoiled(model: PreTrainedModel) -> PreTrainedModel:
    """The last layer adds one large number everywhere, which cancels in the logits; bf16 holds little beside it."""
    whole: Any = model
    with torch.no_grad():
        whole.model.layers[-1].mlp.down_proj.weight.add_(50.0)
        whole.lm_head.weight.sub_(whole.lm_head.weight.mean(dim=1, keepdim=True))
    return model


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
def test_a_bf16_product_is_that_of_rounded_numbers_added_up_in_fp32(*, bias: bool) -> None:
    plain = nn.Linear(24, 17, bias=bias).requires_grad_(requires_grad=False)
    packed, inputs, other = PackedLinear(plain), torch.randn(5, 24), torch.randn(5, 17)
    packed.multiply_in(torch.bfloat16)
    rounded = inputs.bfloat16().double() @ plain.weight.bfloat16().double().T
    exact = rounded if plain.bias is None else rounded + plain.bias.bfloat16().double()
    with torch.inference_mode():
        product, total = packed(inputs), packed.plus(inputs, other)
        gate, gated = packed.silu(inputs), packed.times(inputs, other.bfloat16())
    assert (product.dtype, total.dtype, gate.dtype, gated.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )
    torch.testing.assert_close(product.double(), exact, rtol=2**-7, atol=1e-3)
    torch.testing.assert_close((total - other).double(), exact, rtol=2**-7, atol=1e-2)
    torch.testing.assert_close(gate.double(), nn.functional.silu(exact), rtol=2**-6, atol=1e-2)
    torch.testing.assert_close(gated.double(), exact * other.bfloat16().double(), rtol=2**-6, atol=1e-2)


@pytest.mark.skipif(not precision._capabilities().get("avx512_bf16") or not has_bf16, reason="tried with AVX-512 BF16")
def test_a_row_alone_gives_to_the_bit_what_it_gives_among_others() -> None:
    layer = PackedLinear(nn.Linear(1536, 64))
    layer.multiply_in(torch.bfloat16)
    inputs, other = torch.randn(60, 1536), torch.randn(60, 64)
    with torch.inference_mode():
        for product in (layer.plus, lambda rows, beside: layer.times(rows, beside.bfloat16())):
            together = product(inputs, other)
            for rows in (1, 2, 20):
                apart = [product(*part) for part in zip(inputs.split(rows), other.split(rows), strict=True)]
                assert torch.equal(torch.cat(apart), together)


@needs_bf16
@pytest.mark.parametrize("kind", CONFIGS)
def test_log_probabilities_in_bf16_are_near_those_of_transformers_in_fp32(
    kind: str, definition: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(copy.deepcopy(CONFIGS[kind]))
    expected = plain_logprobs(model)
    saved = write_checkpoint(tmp_path / kind, model, definition)
    checkpoint = in_precision(load_checkpoint(saved, device="cpu", forward="own"), "bf16")
    found = own_logprobs(checkpoint)
    assert found.dtype == torch.float32
    assert 1e-4 < float((found - expected).abs().max()) < 0.3  # logits spread over 10 nats and more
    assert checkpoint.precision.name == "bf16"
    assert hidden_dtypes(checkpoint) == {torch.bfloat16}
    assert checkpoint.model.get_output_embeddings().dtype == torch.float32
    kept = [each for each in checkpoint.model.modules() if isinstance(each, PackedLinear)]
    assert all(len(each._layouts) == 1 for each in kept)


@needs_bf16
def test_the_result_of_the_test_is_told(saved: Path) -> None:
    test = in_precision(load_checkpoint(saved, device="cpu"), "bf16").precision.test
    assert test is not None
    assert test.rows > 2 * 30
    assert 0.9 <= test.overlap <= 1.0
    assert 0 < test.nats < 0.3
    assert test.speedup > 0


@needs_bf16
def test_weights_that_bf16_cannot_hold_stop_the_start_or_stay_in_fp32(
    definition: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_checkpoint(tmp_path / "spoiled", spoiled(random_model(LlamaConfig(**TINY))), definition)
    with pytest.raises(
        ModelError, match=r"^precision 'bf16': (finds .* of fp32's|is .* nats off fp32).*'fp32' can be used$"
    ):
        in_precision(load_checkpoint(saved, device="cpu"), "bf16")
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx512_bf16": True})
    untouched, asked = load_checkpoint(saved, device="cpu"), load_checkpoint(saved, device="cpu")
    fallen = in_precision(asked, "auto")
    assert fallen.precision.name == "fp32"
    assert "fp32" in fallen.precision.told
    assert hidden_dtypes(fallen) == {torch.float32}
    assert torch.equal(own_logprobs(fallen), own_logprobs(untouched))


def test_auto_stays_in_fp32_where_the_processor_has_no_instructions(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx2": True})
    found = in_precision(load_checkpoint(saved, device="cpu"), "auto").precision
    assert (found.name, found.told) == ("fp32", "bf16: this processor has no instructions for it")


@needs_bf16
def test_auto_takes_bf16_only_where_it_is_faster(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_capabilities", lambda: {"amx_bf16": True})
    warm, timed = [1.0, 9.0] * precision._WARM, precision._REPEATS
    times = iter(warm + [2.0, 1.0] * timed + warm + [1.05, 1.0] * timed)
    monkeypatch.setattr(precision, "_pass_s", lambda *_: next(times))
    faster = in_precision(load_checkpoint(saved, device="cpu"), "auto").precision
    assert (faster.name, faster.why) == ("bf16", "")
    slower = in_precision(load_checkpoint(saved, device="cpu"), "auto").precision
    assert (slower.name, slower.why) == ("fp32", "bf16: a pass is 1.1 times as fast, 1.1 are needed") or (
        slower.why == "bf16: a pass is 1 times as fast, 1.1 are needed"
    )


def test_a_processor_without_the_product_is_told_or_left_in_fp32(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = packed_linear._laid_out

    def only_fp32(weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype != torch.float32:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")
        return laid_out(weight)

    monkeypatch.setattr(packed_linear, "_laid_out", only_fp32)
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx512_bf16": True})
    checkpoint = load_checkpoint(saved, device="cpu")
    with pytest.raises(ModelError, match=r"^precision 'bf16': this processor cannot \(bf16 path needs .*'fp32' can be"):
        in_precision(checkpoint, "bf16")
    expected = own_logprobs(load_checkpoint(saved, device="cpu"))
    fallen = in_precision(checkpoint, "auto")
    assert fallen.precision.name == "fp32"
    assert torch.equal(own_logprobs(fallen), expected)


def test_what_it_is_not_for_is_named(saved: Path, definition: dict[str, Any], tmp_path: Path) -> None:
    half = load_checkpoint(saved, device="cpu", dtype="bfloat16")
    with pytest.raises(
        ModelError, match=r"^precision 'bf16': it is for float32 weights on the CPU, and these are bfloat16"
    ):
        in_precision(half, "bf16")
    assert in_precision(half, "fp32").precision.name == ""
    gpt2 = GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    convolutions = write_checkpoint(tmp_path / "gpt2", random_model(gpt2), definition)
    with pytest.raises(
        ModelError, match=r"^precision 'bf16': no linear layer is laid out for oneDNN; 'fp32' can be used$"
    ):
        in_precision(load_checkpoint(convolutions, device="cpu"), "bf16")
    with pytest.raises(ModelError, match=r"^precision 'int8': one of auto, fp32, bf16$"):
        in_precision(half, "int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^precision 'bf16': is the embedded engine's; vLLM has dtype, as bfloat16$"):
        open_engine(EngineOptions(model=saved, engine="vllm", precision="bf16"))


@needs_bf16
def test_answers_of_one_precision_never_pass_for_the_others(saved: Path) -> None:
    engines = {
        choice: open_engine(EngineOptions(model=saved, device="cpu", precision=choice)).engine
        for choice in ("fp32", "bf16")
    }
    try:
        full, half = engines["fp32"], engines["bf16"]
        assert full.identity.fingerprint() != half.identity.fingerprint()
        assert full.identity.checkpoint == half.identity.checkpoint
        assert (full.identity.precision, half.identity.precision) == ("fp32", "bf16")
        assert half.identity.runtime.startswith("float32 with bf16 products on cpu, ")
        told = [(each.stats().precision, each.stats().precision_told) for each in (full, half)]
        assert told[0] == ("fp32", "")
        assert told[1][0] == "bf16"
        assert "of fp32's ten next tokens" in told[1][1]
    finally:
        for engine in engines.values():
            asyncio.run(engine.close())


@needs_bf16
def test_a_model_without_finite_scores_is_not_blamed_on_bf16(
    definition: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx512_bf16": True})
    model = random_model(copy.deepcopy(CONFIGS["llama"]))
    whole: Any = model
    with torch.no_grad():
        whole.model.norm.weight.fill_(3e38)  # a number itself, and none when multiplied
    saved = write_checkpoint(tmp_path / "nan", model, definition)
    with pytest.raises(ModelError, match=r"^precision 'bf16': the model's scores are not finite$"):
        in_precision(load_checkpoint(saved, device="cpu"), "bf16")
    chosen = in_precision(load_checkpoint(saved, device="cpu"), "auto").precision
    assert (chosen.name, chosen.why) == ("fp32", "bf16: the model's scores are not finite")
