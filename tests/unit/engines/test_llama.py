"""The own forwards against transformers' modules: plain passes of theirs, trees and cached prompts of ours."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from checkpoints import TINY, random_model, write_checkpoint
from factories import laned_forward, own_forward, plain_forward, pooled_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from igd_core.engines.embedded import llama
from igd_core.engines.embedded.checkpoint import load_checkpoint, proved_forward
from igd_core.engines.embedded.forward import LayerPairs, TransformersForward
from igd_core.engines.embedded.llama import LlamaForward, why_not_own
from igd_core.engines.embedded.packed_linear import kernel_rows, pack_linears
from igd_core.engines.embedded.prefix_cache import PromptKV
from igd_core.engines.embedded.token_tree import Growth, NewTokens, TokenTree, grow
from igd_core.errors import ModelError
from igd_core.ids import ROOT, NodeId

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

    from igd_core.engines.embedded.forward import Forward

VOCAB = TINY["vocab_size"]
TOLERANCE = 1e-5


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **fields}}


LLAMA3: dict[str, Any] = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**TINY),
    "tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "biases": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "one head for all": LlamaConfig(**TINY | {"num_key_value_heads": 1}),
    "a head each": LlamaConfig(**TINY | {"num_key_value_heads": 4}),
    "wide heads": LlamaConfig(**TINY, head_dim=24),
    "one layer": LlamaConfig(**TINY | {"num_hidden_layers": 1}),
    "theta": LlamaConfig(**TINY, **rope("default")),
    "linear": LlamaConfig(**TINY, **rope("linear", factor=3.0)),
    "llama3": LlamaConfig(**TINY, **rope("llama3", **LLAMA3)),
    "yarn": LlamaConfig(**TINY, **rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": MistralConfig(**TINY, sliding_window=None),
    "qwen2": Qwen2Config(**TINY),
    "qwen3": Qwen3Config(**TINY, head_dim=16),
}


def random_weights(config: PretrainedConfig) -> PreTrainedModel:
    """Biases and norms too, which a fresh model has at 0 and 1."""
    model = random_model(copy.deepcopy(config))
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        weight.requires_grad = False
        if weight.dim() == 1:
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


WAYS: dict[str, Callable[[PreTrainedModel], Forward]] = {
    "own": own_forward,
    "own in lanes": laned_forward,
    "own, plainly": plain_forward,
    "pooled": pooled_forward,
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_weights(CONFIGS[request.param])


@pytest.fixture(scope="module")
def plain_llama() -> PreTrainedModel:
    made = random_weights(CONFIGS["llama"])
    pack_linears(made)
    return made


def plain_logprobs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """``(len(ids), vocabulary)``, by one plain pass of transformers."""
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0], dim=-1)


def feed(tree: TokenTree, new: NewTokens, wanted: list[bool]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(tree.compute(new, wanted), dim=-1)


NOTHING = NewTokens(nodes=[], parents=[], tokens=[])


@pytest.mark.parametrize("way", WAYS)
def test_the_last_token_of_a_long_prompt_and_branches_below_it_are_as_in_plain_passes(
    model: PreTrainedModel, way: str
) -> None:
    prompt = [(7 * at + at * at) % VOCAB for at in range(200)]
    branches = ([3, 4, 5], [9, 8])
    expected = [plain_logprobs(model, [*prompt, *branch])[199:] for branch in branches]
    tree = TokenTree(WAYS[way](copy.deepcopy(model)), prompt)
    first = feed(tree, NOTHING, [True])
    order = [(10, ROOT, 3), (20, ROOT, 9), (11, 10, 4), (21, 20, 8), (12, 11, 5)]
    new = NewTokens(
        nodes=[NodeId(node) for node, *_ in order],
        parents=[NodeId(parent) for _, parent, _ in order],
        tokens=[token for *_, token in order],
    )
    below = feed(tree, new, [True] * 5)
    torch.testing.assert_close(torch.cat([first, below[[0, 2, 4]]]), expected[0], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(torch.cat([first, below[[1, 3]]]), expected[1], atol=TOLERANCE, rtol=TOLERANCE)


class RowsMultiplied(TorchDispatchMode):
    """Notes how many rows each of oneDNN's products has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("mkldnn::_linear_pointwise"):
            self.seen.add(args[0].numel() // args[0].shape[-1])
        return func(*args, **kwargs or {})


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("name", ["llama", "tied", "qwen3"])
def test_passes_of_every_size_multiply_few_numbers_of_rows(name: str) -> None:
    made = random_weights(CONFIGS[name])
    forward = own_forward(made)
    with RowsMultiplied() as rows:
        for size in range(1, 100):
            tree = TokenTree(forward, [1, 2])
            with torch.inference_mode():
                tree.compute(NOTHING, [True])
                new = NewTokens(
                    nodes=[NodeId(at) for at in range(1, size + 1)], parents=[ROOT] * size, tokens=[3] * size
                )
                tree.compute(new, [at % 3 == 0 for at in range(size)])
    assert max(rows.seen) > 90
    assert rows.seen <= {kernel_rows(count) for count in range(1, 100)}


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], int, list[list[tuple[int, int]]]]:
    """A prompt, how much of it is cached, and rounds of (parent, token); nodes are numbered from 1 in order."""
    token = st.integers(0, VOCAB - 1)
    prompt = draw(st.lists(token, min_size=1, max_size=12))
    cached = draw(st.integers(0, len(prompt) - 1))
    rounds, nodes = [], 0
    for size in draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)):
        rounds.append([(draw(st.integers(0, nodes + at)), draw(token)) for at in range(size)])
        nodes += size
    return prompt, cached, rounds


@pytest.fixture(scope="module")
def forwards(plain_llama: PreTrainedModel) -> dict[str, Forward]:
    """The same weights, run in each way."""
    return {
        "own": LlamaForward(plain_llama),
        "own in lanes": laned_forward(plain_llama),
        "own, plainly": plain_forward(random_weights(CONFIGS["llama"])),
        "pooled": pooled_forward(random_weights(CONFIGS["llama"])),
    }


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25)
@given(drawn=trees(), data=st.data())
def test_every_node_of_any_tree_has_the_logits_of_its_path_alone(
    plain_llama: PreTrainedModel,
    forwards: dict[str, Forward],
    way: str,
    drawn: tuple[list[int], int, list[list[tuple[int, int]]]],
    data: st.DataObject,
) -> None:
    prompt, cached, rounds = drawn
    forward, prefix = forwards[way], None
    if cached:
        before = TokenTree(forward, [*prompt[:cached], 1])
        feed(before, NOTHING, [True])
        layers = before.prompt_layers()
        prefix = PromptKV(ids=np.asarray([*prompt[:cached], 1]), layers=layers).prefix(cached)
    tree, paths = TokenTree(forward, prompt, prefix), {0: list(prompt)}
    while tree.prompt_left > 1 and (most := data.draw(st.integers(0, tree.prompt_left - 1))):
        with torch.inference_mode():
            grow([Growth(tree=tree, new=NOTHING, wanted=[], most_prompt_tokens=most)])
    for number, drawn_round in enumerate(rounds):
        nodes = range(len(paths), len(paths) + len(drawn_round))
        for node, (parent, token) in zip(nodes, drawn_round, strict=True):
            paths[node] = [*paths[parent], token]
        asked = [*([0] if number == 0 else []), *nodes]
        wanted = [data.draw(st.booleans()) for _ in asked]
        if number and not asked:
            continue
        new = NewTokens(
            nodes=[NodeId(node) for node in nodes],
            parents=[NodeId(parent) for parent, _ in drawn_round],
            tokens=[token for _, token in drawn_round],
        )
        found = feed(tree, new, wanted)
        asked = [node for node, is_wanted in zip(asked, wanted, strict=True) if is_wanted]
        for node, ours in zip(asked, found, strict=True):
            theirs = plain_logprobs(plain_llama, paths[node])[-1]
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


def test_weights_are_those_of_the_model_and_not_copies_of_them(plain_llama: PreTrainedModel) -> None:
    whole: Any = plain_llama
    forward = LlamaForward(plain_llama)
    for ours, theirs in zip(forward._layers, whole.model.layers, strict=True):
        assert ours.query is theirs.self_attn.q_proj
        assert ours.down is theirs.mlp.down_proj
        assert ours.before_mlp.weight.data_ptr() == theirs.post_attention_layernorm.weight.data_ptr()


def test_a_prompts_keys_and_values_stay_as_they_are_and_keep_no_room_alive(plain_llama: PreTrainedModel) -> None:
    tree = TokenTree(LlamaForward(plain_llama), [1, 2, 3, 4])
    feed(tree, NewTokens(nodes=[NodeId(1)], parents=[ROOT], tokens=[5]), [True])
    kept = tree.prompt_layers()
    assert isinstance(kept, LayerPairs)
    layers = kept.pairs
    before = [(keys.clone(), values.clone()) for keys, values in layers]
    assert (
        layers[0][0].untyped_storage().nbytes() == 2 * 2 * 2 * 5 * 8 * 4
    )  # kinds, layers, heads, tokens, width, bytes
    for node in range(2, 30):
        feed(tree, NewTokens(nodes=[NodeId(node)], parents=[NodeId(node - 1)], tokens=[node]), [True])
    for (keys, values), (old_keys, old_values) in zip(layers, before, strict=True):
        assert torch.equal(keys, old_keys)
        assert torch.equal(values, old_values)


def test_a_pass_that_fails_leaves_the_tree_as_it_was(
    plain_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, new = (
        TokenTree(LlamaForward(plain_llama), [1, 2, 3]),
        NewTokens(nodes=[NodeId(1)], parents=[ROOT], tokens=[5]),
    )
    feed(tree, NOTHING, [True])
    attend, calls = LlamaForward._attend, 0

    def failing(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("out of memory")
        return attend(*args)

    with monkeypatch.context() as patched:
        patched.setattr(LlamaForward, "_attend", failing)
        with pytest.raises(torch.OutOfMemoryError):
            feed(tree, new, [True])
    expected = plain_logprobs(plain_llama, [1, 2, 3, 5])[-1:]
    torch.testing.assert_close(feed(tree, new, [True]), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_what_it_is_not_for_is_named(plain_llama: PreTrainedModel) -> None:
    from transformers import GPT2Config, MixtralConfig

    gpt2 = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    mixtral = MixtralConfig(**TINY, num_local_experts=2, sliding_window=None)
    longrope = rope("longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=40)
    for config, why in (
        (gpt2, "architecture 'gpt2'"),
        (mixtral, "architecture 'mixtral'"),
        (LlamaConfig(**TINY, hidden_act="gelu"), "hidden_act 'gelu'"),
        (LlamaConfig(**TINY, **rope("dynamic", factor=2.0)), "rope_type 'dynamic'"),
        (LlamaConfig(**TINY, **longrope), "rope_type 'longrope'"),
    ):
        made = random_model(config)
        pack_linears(made)
        assert why_not_own(made) == why
    unpacked = random_model(CONFIGS["llama"])
    assert why_not_own(unpacked) == "model.layers.0.self_attn.q_proj is a Linear, not laid out for oneDNN"
    assert why_not_own(unpacked.to(torch.bfloat16)) == "bfloat16 on cpu; it is for float32 on the CPU"  # type: ignore[arg-type]
    assert why_not_own(plain_llama) == ""


def test_auto_is_the_own_forward_where_it_is_proved_and_says_why_where_it_is_not(
    plain_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(proved_forward(plain_llama, "auto"), LlamaForward)
    assert isinstance(proved_forward(plain_llama, "own"), LlamaForward)
    asked = proved_forward(plain_llama, "transformers")
    assert (type(asked), asked.why) == (TransformersForward, "")
    rotated = llama._rotated

    def wrong(heads: torch.Tensor, shared: Any) -> torch.Tensor:
        return rotated(heads, shared) * (1 + 1e-3)

    monkeypatch.setattr(llama, "_rotated", wrong)
    fallen = proved_forward(plain_llama, "auto")
    assert fallen.name == "transformers"
    assert "gives other logits (by " in fallen.why
    with pytest.raises(ModelError, match=r"^forward 'own': .* gives other logits .*; 'auto' runs this model by transf"):
        proved_forward(plain_llama, "own")
    monkeypatch.setattr(llama, "_rotated", lambda *_: 1 / 0)
    assert (
        proved_forward(plain_llama, "auto").why == "it failed when it was tried (ZeroDivisionError: division by zero)"
    )


def test_nothing_is_proved_of_a_model_that_computes_no_numbers() -> None:
    model = random_model(CONFIGS["llama"])
    whole: Any = model
    whole.model.norm.weight.data[3] = float("nan")
    pack_linears(model)
    forward = proved_forward(model, "auto")
    assert (forward.name, forward.why) == ("transformers", "the model's own logits are not finite")


def test_a_checkpoint_is_loaded_with_the_forward_that_is_asked_for(definition: dict[str, Any], tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", random_model(CONFIGS["qwen3"]), definition)
    for choice, name in (("auto", "own"), ("own", "own"), ("transformers", "transformers")):
        assert load_checkpoint(directory, device="cpu", forward=choice).forward_of(None).name == name  # type: ignore[arg-type]
    half = load_checkpoint(directory, device="cpu", dtype="bfloat16")
    assert half.forward_of(None).why == "bfloat16 on cpu; it is for float32 on the CPU"
    with pytest.raises(ModelError, match=r"^forward 'own': bfloat16 on cpu"):
        load_checkpoint(directory, device="cpu", dtype="bfloat16", forward="own")
    with pytest.raises(ModelError, match=r"^forward 'fast': one of auto, own, transformers$"):
        load_checkpoint(directory, device="cpu", forward="fast")  # type: ignore[arg-type]
