"""The own forward for GPUs, run on a CPU: its pool, its fixed shapes, texts that stay apart. On a GPU its graphs too.

That it computes what transformers' modules do is tested beside the other own forward (`test_llama`, `test_rounds`).
"""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from checkpoints import TINY, random_model
from devices import DEVICES, needs_cuda
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig

from igd_core.engines.embedded import fixed_batches, pooled_llama
from igd_core.engines.embedded.checkpoint import proved_forward
from igd_core.engines.embedded.key_value_pool import KeyValuePool, PooledLayers, PooledText
from igd_core.engines.embedded.pooled_llama import PooledLlama, why_not_pooled
from igd_core.engines.embedded.prefix_cache import PromptKV
from igd_core.engines.embedded.self_test import tree_differences
from igd_core.engines.embedded.token_tree import Growth, NewTokens, TokenTree, grow
from igd_core.ids import ROOT, NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_core.engines.embedded.forward import Layers

VOCAB = TINY["vocab_size"]
SLOTS = 32
NOTHING = NewTokens(nodes=[], parents=[], tokens=[])


def llama(**fields: Any) -> Any:
    return random_model(LlamaConfig(**TINY | {"initializer_range": 0.4} | fields))


@pytest.fixture(params=DEVICES)
def forward(request: pytest.FixtureRequest) -> PooledLlama:
    return PooledLlama(llama().to(request.param), first_slots=SLOTS)


@torch.inference_mode()
def fed(forward: PooledLlama, *prompts: Sequence[int]) -> tuple[list[TokenTree], list[torch.Tensor]]:
    """Prompts in one pass, and the logits of what follows each."""
    trees = [TokenTree(forward, prompt) for prompt in prompts]
    return trees, grow([Growth(tree=tree, new=NOTHING, wanted=[True]) for tree in trees])


def both_of(layers: Layers) -> torch.Tensor:
    """``(layers, tokens, 2, heads, width)``, keys before values."""
    assert isinstance(layers, PooledLayers)
    return layers.both


def chain(*tokens: int) -> NewTokens:
    nodes = [NodeId(number) for number in range(1, len(tokens) + 1)]
    return NewTokens(nodes=nodes, parents=[ROOT, *nodes[:-1]], tokens=tokens)


@given(what=st.sampled_from(["texts", "new", "seen", "wanted"]), count=st.integers(1, 5000))
def test_a_size_is_filled_up_by_a_half_at_most(what: str, count: int) -> None:
    filled, least = fixed_batches.filled_up(what, count), fixed_batches._LEAST[what]
    assert filled >= max(count, least)
    assert filled == least or filled < count * 3 / 2
    sizes = {fixed_batches.filled_up(what, each) for each in range(1, count + 1)}
    assert len(sizes) <= 2 * count.bit_length()
    assert {fixed_batches.filled_up(what, size) for size in sizes} == sizes


@given(data=st.data())
def test_texts_own_their_slots_alone_and_all_come_back(data: st.DataObject) -> None:
    pool = KeyValuePool(layers=1, heads=1, width=2, like=torch.zeros(1), first_slots=8)
    texts: list[PooledText] = []
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(-3, len(texts) - 1))
        if at >= 0:
            texts.pop(at)
        else:
            texts.append(PooledText(pool, None))
            texts[-1].slots += pool.take(data.draw(st.integers(0, 9)))
        owned = [slot for text in texts for slot in text.slots]
        assert len(set(owned)) == len(owned)
        assert not {0, 1} & set(owned)
        assert pool.num_free + len(owned) + 2 == pool.slots.shape[1]
        assert all(0 <= slot < pool.slots.shape[1] for slot in owned)
    texts.clear()
    assert pool.num_free + 2 == pool.slots.shape[1]


def test_a_text_that_is_dropped_gives_its_slots_to_others(forward: PooledLlama) -> None:
    free = forward.pool.num_free
    for _ in range(50):
        trees, _ = fed(forward, [1, 2, 3, 4, 5], [6, 7])
        assert forward.pool.num_free == free - 7
        del trees
        gc.collect()
        assert forward.pool.num_free == free
    assert forward.pool.slots.shape[1] == SLOTS


def test_a_pool_that_grows_keeps_what_it_holds(forward: PooledLlama) -> None:
    tree, _ = fed(forward, [1, 2, 3])
    before = both_of(tree[0].prompt_layers())
    others, _ = fed(forward, list(range(50)))
    assert forward.pool.slots.shape[1] == 2 * SLOTS
    assert torch.equal(both_of(tree[0].prompt_layers()), before)
    assert others


def test_a_prompt_that_is_kept_is_a_copy_and_is_written_back_as_it_was(forward: PooledLlama) -> None:
    (tree,), _ = fed(forward, [1, 2, 3, 4])
    layers = tree.prompt_layers()
    assert both_of(layers).shape == (2, 4, 2, 2, 8)
    assert layers.nbytes == 2 * 4 * 2 * 2 * 8 * 4
    kept = PromptKV(ids=np.arange(4), layers=layers).prefix(3)
    del tree
    gc.collect()
    fed(forward, [9, 9, 9, 9, 9, 9])  # in the slots that came free
    again = PooledText(forward.pool, kept)
    assert torch.equal(both_of(again.layers(3)), both_of(layers)[:, :3])


def test_numbers_that_are_none_stay_in_their_text(forward: PooledLlama) -> None:
    """Also where what is filled up reads and writes."""
    trees, _ = fed(forward, [1, 2, 3], [4, 5], [6])
    alone = [fed(forward, prompt)[0][0].compute(chain(7, 8), [True, True]) for prompt in ([1, 2, 3], [4, 5])]
    forward.pool.slots[:, trees[2]._running.slots] = float("nan")  # type: ignore[attr-defined]
    growths = [Growth(tree=tree, new=chain(7, 8), wanted=[True, True]) for tree in trees]
    *sound, bad = forward_all(growths)
    assert bad.isnan().all()
    for ours, theirs in zip(sound, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not forward.pool.slots[:, 0].any()


@torch.inference_mode()
def forward_all(growths: Sequence[Growth]) -> list[torch.Tensor]:
    return grow(growths)


def test_a_pass_that_fails_gives_its_slots_back_and_leaves_all_texts_as_they_were(
    forward: PooledLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees, _ = fed(forward, [1, 2, 3], [4] * 20)
    attended = PooledLlama._attended

    def failing(*args: Any) -> torch.Tensor:
        if args[-1].tokens.shape[1] > 8:  # in the second of two batches, one for each text
            raise torch.OutOfMemoryError("out of memory")
        return attended(*args)

    growths = [
        Growth(tree=trees[0], new=chain(5, 6), wanted=[True, True]),
        Growth(tree=trees[1], new=chain(*range(20)), wanted=[True] * 20),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(PooledLlama, "_attended", failing)
        with pytest.raises(torch.OutOfMemoryError):
            forward_all(growths)
    assert forward.pool.num_free == forward.pool.slots.shape[1] - 2 - 23
    for growth, found in zip(growths, forward_all(growths), strict=True):
        torch.testing.assert_close(found, fed_alone(forward, growth), atol=1e-5, rtol=1e-5)


def fed_alone(forward: PooledLlama, growth: Growth) -> torch.Tensor:
    tree = TokenTree(forward, growth.tree._prompt)
    with torch.inference_mode():
        return grow([Growth(tree=tree, new=growth.new, wanted=growth.wanted)])[0]


def test_a_shape_is_met_again_and_beyond_so_many_all_are_dropped(
    forward: PooledLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All: graphs of one stream cannot be dropped one by one."""
    monkeypatch.setattr(pooled_llama, "_MOST_SHAPES", 2)
    kept = []
    for size in (1, 5, 9, 8, 13, 1):
        fed(forward, list(range(size)))
        kept.append([shape.new for shape in forward._batches])
    assert kept == [[8], [8], [8, 12], [8, 12], [16], [16, 8]]


class _Graph:
    """Stands for a CUDA graph on a CPU: what it finds lies in the same memory each time."""

    def __init__(self, batch: Any, compute: Callable[[Any], torch.Tensor]) -> None:
        self.found = compute(batch)
        self._batch, self._compute = batch, compute

    def replay(self) -> None:
        self.found.copy_(self._compute(self._batch))


class _Recorder:
    """Stands for where graphs are recorded."""

    def __init__(self, _: torch.device) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        self.memory = object()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> tuple[PooledLlama, list[Any]]:
    """A forward on a CPU that takes it for a GPU, and the memory of each recording."""
    made: list[Any] = []

    def record(batch: Any, compute: Callable[[Any], torch.Tensor], recorder: Any) -> None:
        batch._graph = _Graph(batch, compute)
        batch._found = batch._graph.found
        made.append(recorder.memory)

    monkeypatch.setattr(fixed_batches.Batch, "record", record)
    monkeypatch.setattr(pooled_llama, "Recorder", _Recorder)
    forward = PooledLlama(llama(), first_slots=SLOTS)
    forward._records = True
    return forward, made


def test_a_graph_is_recorded_at_the_second_pass_and_answers_from_the_third_as_kernels_do(
    recording: tuple[PooledLlama, list[Any]],
) -> None:
    forward, made = recording
    kernels = PooledLlama(llama(), first_slots=SLOTS)
    for number in range(4):
        prompts = [[number, 2, 3], [4, number], [number] * 12]
        for prompt, found in zip(prompts, fed(forward, *prompts)[1], strict=True):
            torch.testing.assert_close(found, fed(kernels, prompt)[1][0], atol=1e-5, rtol=1e-5)
    assert (forward.counts["kernels"], forward.counts["graph"], len(made)) == (2, 6, 2)
    assert made[0] is made[1]


def test_graphs_recorded_after_the_pool_grew_share_no_memory_with_those_before(
    recording: tuple[PooledLlama, list[Any]],
) -> None:
    """torch refuses to record into memory whose graphs have all been dropped."""
    forward, made = recording
    for _ in range(2):
        fed(forward, [1, 2, 3])
    forward.pool.take(2 * SLOTS)
    first = [fed(forward, [1, 2, 3])[1][0] for _ in range(3)]
    assert len(made) == 2
    assert made[0] is not made[1]
    torch.testing.assert_close(first[2], first[0])


def test_where_no_graph_can_be_recorded_passes_go_on_kernel_by_kernel_and_it_says_why(
    recording: tuple[PooledLlama, list[Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, _ = recording
    tried = 0

    def refuse(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\nMore")

    monkeypatch.setattr(fixed_batches.Batch, "record", refuse)
    first, *others = [fed(forward, [1, 2, 3], [4] * 12)[1] for _ in range(3)]
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert tried == 1
    assert (forward.counts["kernels"], forward.counts["graph"]) == (6, 0)
    assert forward.why.endswith("(AcceleratorError: CUDA error: operation not permitted when stream is capturing)")
    assert forward.why in caplog.text


def test_tokens_and_the_room_that_they_took_are_counted(forward: PooledLlama) -> None:
    fed(forward, [1, 2, 3], [4, 5], [6] * 9)  # two rows of 8, and one of 12
    assert (forward.counts["tokens"], forward.counts["room"]) == (14, 2 * 8 + 12)


def test_weights_stay_one_copy_and_modules_go_on_with_them() -> None:
    model = llama()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
    forward = PooledLlama(model, first_slots=SLOTS)
    fused = forward._layers[0].query_key_value.weight
    attention = model.model.layers[0].self_attn
    for each in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert each.weight.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, before)
    forward.release()
    assert forward.pool.slots.numel() == 0


def test_half_precision_is_near_to_fp32_and_nearer_than_modules_in_it() -> None:
    """By a model of many layers, over whose residual stream rounding adds up."""
    shape = {"initializer_range": 0.2, "num_hidden_layers": 16}
    exact, half = llama(**shape), llama(**shape).to(torch.bfloat16)
    prompts = [[(seed + 7 * at) % VOCAB for at in range(20)] for seed in range(10)]
    with torch.inference_mode():
        wanted, theirs = (
            torch.cat([model(input_ids=torch.tensor([each])).logits[0, -1:].float() for each in prompts])
            for model in (exact, half)
        )
    _, found = fed(PooledLlama(half, first_slots=SLOTS), *prompts)
    ours = torch.cat(found)
    assert ours.dtype == torch.float32
    assert 0 < (ours - wanted).norm() < 0.8 * (theirs - wanted).norm()


def test_what_it_is_not_for_is_named() -> None:
    assert why_not_pooled(llama()) == ""
    gpt2 = random_model(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=64))
    assert why_not_pooled(gpt2) == "architecture 'gpt2'"
    quantised = llama()
    quantised.model.layers[1].mlp.up_proj = torch.nn.Identity()
    assert why_not_pooled(quantised) == "model.layers.1.mlp.up_proj is a Identity"


@needs_cuda
@pytest.mark.parametrize("head_dim", [8, 12, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_it_is_what_auto_chooses_and_its_graphs_compute_what_its_kernels_did(
    dtype: torch.dtype, head_dim: int
) -> None:
    model = llama(head_dim=head_dim).to("cuda", dtype)
    forward = proved_forward(model, "auto")
    assert forward.why == ""
    assert isinstance(forward, PooledLlama)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    _, first = fed(forward, *prompts)
    assert forward.counts["graph"] > 0  # the test at load met some shapes twice
    before = forward.counts.copy()
    for _ in range(3):
        _, again = fed(forward, *prompts)
        for one, other in zip(first, again, strict=True):
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    assert forward.counts["graph"] == before["graph"] + 3
    assert forward.counts["kernels"] == before["kernels"]
    forward.pool.take(2 * forward.pool.slots.shape[1])  # it grows: graphs of the old memory are dropped
    _, grown = fed(forward, *prompts)
    for one, other in zip(first, grown, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    assert max(tree_differences(model, forward).values()) < 0.25


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_graphs_live_on_whatever_happens_beside_them(dtype: torch.dtype) -> None:
    """Another thread records what this one ran; another model's graphs are dropped; the pool grows; parts are fed."""
    forward, other = (PooledLlama(llama(num_hidden_layers=4).to("cuda", dtype), first_slots=SLOTS) for _ in range(2))
    prompts = [[1, 2, 3], [4, 5, 6, 7], [8] * 20]

    tolerance = 1e-5 if dtype == torch.float32 else 0.02

    def check() -> None:
        for one, again in zip(first, fed(forward, *prompts)[1], strict=True):
            torch.testing.assert_close(one, again, atol=tolerance, rtol=tolerance)
        assert forward.why == ""

    first = fed(forward, *prompts)[1]  # and let go of the trees: the pool is not to grow yet
    with ThreadPoolExecutor(1) as thread:
        for _ in range(3):
            thread.submit(check).result()  # its first pass is a recording
    check()
    for _ in range(3):
        fed(other, *prompts)
    assert other.counts["graph"] > 0
    other.release()
    torch.cuda.empty_cache()
    check()
    for _ in range(2):
        forward.pool.take(2 * forward.pool.slots.shape[1])
        before = forward.counts["graph"]
        for _ in range(3):
            check()
        assert forward.counts["graph"] == before + 4  # two batches, twice each
    tree = TokenTree(forward, prompts[2])
    part = Growth(tree=tree, new=NOTHING, wanted=[], most_prompt_tokens=15)
    assert forward_all([part])[0].shape == (0, VOCAB)
    whole = forward_all([Growth(tree=tree, new=NOTHING, wanted=[True])])[0]
    torch.testing.assert_close(whole, first[2], atol=1e-1, rtol=1e-1)
