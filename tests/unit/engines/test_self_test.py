"""What a checkpoint must prove when it is loaded: one architecture of each kind: docs/reference/architectures.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoints import TINY, random_model, write_checkpoint
from transformers import (
    BartConfig,
    BertConfig,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    MptConfig,
    Phi3Config,
)

from igd_core.engines.embedded import self_test, token_tree
from igd_core.engines.embedded.checkpoint import context_tokens, load_checkpoint
from igd_core.engines.embedded.forward import LayerPairs
from igd_core.engines.embedded.self_test import require_trees_as_plain_passes
from igd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

VOCAB = 100
SHAPE: dict[str, Any] = TINY | {"vocab_size": VOCAB, "max_position_embeddings": 64}
BERT = {name: size for name, size in SHAPE.items() if name != "num_key_value_heads"}
GPT: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LlamaConfig(**SHAPE), id="rotary"),
        pytest.param(Phi3Config(**SHAPE, rope_parameters=dict(LONGROPE)), id="longrope"),
        pytest.param(MixtralConfig(**SHAPE, num_local_experts=4, sliding_window=None), id="experts"),
        pytest.param(GPT2Config(**GPT), id="learned positions"),
        pytest.param(
            BertConfig(**BERT, is_decoder=True),
            id="a decoder's Bert",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_architecture_whose_tree_passes_say_what_plain_ones_say_is_let_through(
    config: PretrainedConfig, dtype: torch.dtype
) -> None:
    require_trees_as_plain_passes(random_model(config).to(dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4), id="alibi"),
        pytest.param(MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4), id="alibi by slots"),
        pytest.param(
            BartConfig(vocab_size=VOCAB, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48),
            id="positions by slots",
        ),
        pytest.param(BertConfig(**BERT), id="sees what comes after"),
        pytest.param(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2), id="recurrent"),
        pytest.param(
            GPTNeoConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                window_size=8,
                attention_types=[[["global", "local"], 1]],
            ),
            id="window",
        ),
    ],
)
def test_an_architecture_whose_tree_passes_say_something_else_is_refused_by_name(config: PretrainedConfig) -> None:
    with pytest.raises(ModelError, match=f"^architecture '{config.model_type}': ") as caught:
        require_trees_as_plain_passes(random_model(config))
    assert "\n" not in str(caught.value)


@pytest.fixture
def model() -> PreTrainedModel:
    return random_model(LlamaConfig(**SHAPE))


def _sees_too_much(visible: torch.Tensor, positions: list[int]) -> tuple[torch.Tensor, list[int]]:
    return torch.ones_like(visible).tril_(visible.shape[1] - visible.shape[0]), positions


def _by_slot(visible: torch.Tensor, positions: list[int]) -> tuple[torch.Tensor, list[int]]:
    first = visible.shape[1] - visible.shape[0]
    return visible, list(range(first, first + len(positions)))


@pytest.mark.parametrize("wrong", [_sees_too_much, _by_slot])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_mask_or_a_position_that_is_wrong_is_noticed(
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[torch.Tensor, list[int]], tuple[torch.Tensor, list[int]]],
    dtype: torch.dtype,
) -> None:
    place = token_tree.TokenTree._place
    monkeypatch.setattr(token_tree.TokenTree, "_place", lambda *args: wrong(*place(*args)))
    with pytest.raises(ModelError, match="branch in a tree of tokens gives other logits than the model's own passes"):
        require_trees_as_plain_passes(model.to(dtype))  # type: ignore[arg-type]


def test_a_cached_prompt_that_changes_what_follows_is_noticed(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Any = token_tree.TokenTree.prompt_layers

    def wrong(tree: token_tree.TokenTree) -> LayerPairs:
        return LayerPairs(tuple((keys, 2 * values) for keys, values in right(tree).pairs))

    monkeypatch.setattr(token_tree.TokenTree, "prompt_layers", wrong)
    with pytest.raises(ModelError, match="the prompt and its chain on a cached prompt gives other logits"):
        require_trees_as_plain_passes(model)


@pytest.mark.parametrize(
    ("dtype", "right", "wrong"),
    [(torch.float32, 3e-5, 2e-4), (torch.bfloat16, 0.07, 0.2), (torch.float16, 0.08, 0.15)],
    ids=["fp32", "bf16", "fp16"],
)
def test_what_right_models_differ_by_is_let_through_and_twice_as_much_is_not(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, right: float, wrong: float
) -> None:
    found = {"a part": right}
    monkeypatch.setattr(self_test, "tree_differences", lambda _: found)
    require_trees_as_plain_passes(model.to(dtype))  # type: ignore[arg-type]
    found["a part"] = wrong
    with pytest.raises(ModelError, match="a part gives other logits"):
        require_trees_as_plain_passes(model)


@pytest.mark.parametrize(
    ("dtype", "rounding", "right", "wrong"),
    [(torch.bfloat16, 0.1, 0.19, 0.21), (torch.bfloat16, 5.0, 0.29, 0.31), (torch.float32, 5.0, 1e-4, 2e-4)],
    ids=["twice that", "not more", "fp32"],
)
def test_where_the_models_own_passes_round_more_more_is_let_through(
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    rounding: float,
    right: float,
    wrong: float,
) -> None:
    found = {"a part": right}
    monkeypatch.setattr(self_test, "tree_differences", lambda *_: found)
    monkeypatch.setattr(self_test, "_own_rounding", lambda _: rounding)
    model = model.to(dtype)  # type: ignore[arg-type]
    require_trees_as_plain_passes(model)
    found["a part"] = wrong
    with pytest.raises(ModelError, match="a part gives other logits"):
        require_trees_as_plain_passes(model)


def test_how_much_a_model_rounds_is_measured_on_its_own_passes(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = self_test._own_rounding(model)
    assert 0 < exact < 1e-5
    rough = self_test._own_rounding(model.to(torch.bfloat16))  # type: ignore[arg-type]
    assert 1e-3 < rough < 0.05

    def in_one_part(**inputs: Any) -> Any:
        if inputs.get("past_key_values") is not None:
            raise ValueError("no cache")
        return right(**inputs)

    right = model.forward
    monkeypatch.setattr(model, "forward", in_one_part)
    assert self_test._own_rounding(model) == 0


def test_one_bad_embedding_does_not_keep_the_proof_from_being_made(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from igd_core.engines.embedded.self_test import _Probe

    embeddings: Any = model.get_input_embeddings()
    embeddings.weight.data[_Probe.drawn(VOCAB, 0).prompt[3]] = float("nan")
    require_trees_as_plain_passes(model)
    place = token_tree.TokenTree._place
    monkeypatch.setattr(token_tree.TokenTree, "_place", lambda *args: _by_slot(*place(*args)))
    with pytest.raises(ModelError, match="gives other logits"):
        require_trees_as_plain_passes(model)


def test_longrope_bounds_the_context_by_what_one_set_of_factors_holds_for() -> None:
    assert context_tokens(LlamaConfig(**SHAPE, rope_parameters=dict(LONGROPE))) == 40
    phi = Phi3Config(**SHAPE, rope_parameters=dict(LONGROPE), original_max_position_embeddings=48)
    rope: Any = phi.rope_parameters
    assert context_tokens(phi) == rope["original_max_position_embeddings"]
    assert context_tokens(LlamaConfig(**SHAPE)) == 64
    with pytest.raises(ModelError, match=r"'bloom': config\.json has no max_position_embeddings"):
        context_tokens(BloomConfig())


def test_a_checkpoint_that_fails_is_refused_when_it_is_loaded(definition: dict[str, Any], tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "bert", random_model(BertConfig(**BERT)), definition)
    with pytest.raises(ModelError, match="architecture 'bert': the prompt and its chain in a tree of tokens gives"):
        load_checkpoint(directory, device="cpu")
