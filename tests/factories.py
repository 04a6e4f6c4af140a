"""Small real parts for tests: a tokenizer, titles, catalogues, artifacts and models, all made here, none from a hub."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from devices import DEVICES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from igd_core.artifact import Artifact, Manifest
from igd_core.artifact.counts import Counts
from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of
from igd_core.catalogue.items import Catalogue, prior
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.catalogue.trie import TokenTrie

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.engines.embedded.forward import Feed, Forward
    from igd_core.engines.embedded.llama import LlamaForward
    from igd_core.engines.embedded.pooled_llama import PooledLlama

EOS = "<|im_end|>"
SEMANTIC_TOKENS = [f"<{level}_{code}>" for level in "abc" for code in range(8)]
# Family and data type; then the forward, if it is not transformers': "own" for the project's own on a CPU, "pooled" for
# that on a GPU, which a CPU can run; and "cuda" for a GPU.
MODEL_KINDS: tuple[str, ...] = (
    *("llama-fp32", "llama-bf16", "llama-fp32-own", "qwen2-fp32-own", "qwen3-fp32-own"),
    *("llama-fp32-pooled", "qwen3-fp32-pooled"),
)
if "cuda" in DEVICES:
    MODEL_KINDS += ("llama-fp32-cuda", "llama-bf16-cuda")
    MODEL_KINDS += ("llama-fp32-pooled-cuda", "qwen3-fp32-pooled-cuda")
POSITIONS = 320
"""Of the tiny checkpoints: a prompt of ten titles, spelled byte by byte at worst, and a path."""

_OPENINGS = ("The", "A", "Return of the", "Night of the", "Pokémon:")
_ADJECTIVES = ("Red", "Quiet", "Last", "Golden", "Electric")
_NOUNS = ("House", "River", "Planet", "Dragon", "Garden", "Machine")
_ENDINGS = ("", " II", ": Director's Cut", " (1997)", " & Friends")


def tokenizer_definition() -> dict[str, Any]:
    """A byte-level BPE tokenizer with three special tokens and 24 semantic-ID tokens, as `tokenizer.json` holds it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([title + "\n" for title in make_titles(600, seed=1)], trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in SEMANTIC_TOKENS])
    definition: dict[str, Any] = json.loads(tokenizer.to_str())
    return definition


def make_titles(count: int, *, seed: int = 0) -> list[str]:
    """Titles that share openings and endings; some stand twice."""
    rng = random.Random(seed)
    parts = (_OPENINGS, _ADJECTIVES, _NOUNS, _ENDINGS)
    return ["{} {} {}{}".format(*(rng.choice(words) for words in parts)) for _ in range(count)]


def make_catalogue(count: int, *, seed: int = 0) -> Catalogue:
    """``count`` items of which one in eight is cold, with a year and genres."""
    rng = random.Random(seed)
    return Catalogue.build(
        item_ids=[f"item-{row}" for row in range(count)],
        titles=make_titles(count, seed=seed),
        frequency=np.array([0 if row % 8 == 5 else rng.randint(1, 200) for row in range(count)]),
        metadata={
            "year": [None if row % 10 == 9 else 1980 + row % 7 for row in range(count)],
            "genres": [tuple(rng.sample(["drama", "comedy", "noir"], row % 3)) for row in range(count)],
        },
    )


def flat(paths: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets and tokens, as `TokenTrie.build` takes them."""
    offsets = np.cumsum([0, *(len(path) for path in paths)], dtype=np.int64)
    return offsets, np.array([token for path in paths for token in path], dtype=np.int32)


def artifact_of_paths(paths: Sequence[Sequence[int]], frequency: Sequence[int], *, vocab_size: int = 64) -> Artifact:
    """An artifact around given token paths, without a tokenizer; item i is called ``i``."""
    names = [str(row) for row in range(len(paths))]
    catalogue = Catalogue.build(item_ids=names, titles=names, frequency=np.array(frequency))
    trie = TokenTrie.build(*flat(paths))
    gains = InfoGainTable.build(trie, leaf_prior_of(trie, prior(catalogue.frequency)))
    counts = Counts(
        items=trie.num_items,
        leaves=trie.num_leaves,
        nodes=trie.num_nodes,
        edges=trie.num_edges,
        depth=trie.depth,
        cold=sum(count == 0 for count in frequency),
        truncated=0,
    )
    manifest = Manifest(
        name="paths",
        tokenizer_sha256="0" * 64,
        vocab_size=vocab_size,
        eos_id=0,
        model_id="",
        alpha=0.2,
        smoothing=0.0,
        path_column="title",
        entropy_nats=0.0,
        template=PromptTemplate(prefix_ids=(1,)),
        counts=counts,
        parts={},  # it never goes to disk
    )
    return Artifact.assemble(manifest, catalogue, trie, gains)


def tiny_checkpoint(kind: str, tokenizer: TitleTokenizer) -> Checkpoint:
    """A random model of two or three layers with grouped queries, with weights large enough to prefer some tokens.

    ``kind`` is one of `MODEL_KINDS`, or another of their parts put together.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    from igd_core.engines.embedded.checkpoint import Checkpoint

    family, dtype, *how = kind.split("-")
    shape: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size + 5,  # padded, as real checkpoints are
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.4,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
        "bos_token_id": None,
        "attn_implementation": "sdpa",
    }
    config: PretrainedConfig
    if family == "llama":
        config = LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True, **shape)
    elif family == "qwen2":
        config = Qwen2Config(num_hidden_layers=3, **shape)
    else:
        config = Qwen3Config(num_hidden_layers=2, head_dim=8, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    model = model.eval().requires_grad_(requires_grad=False)
    if "cuda" in how:
        model = model.to("cuda")
    forwards: dict[str | None, Forward] = {}
    if "own" in how or "pooled" in how:
        forwards[None] = own_forward(model) if "own" in how else pooled_forward(model)
    return Checkpoint(model=model, tokenizer=tokenizer, model_id=kind, forwards=forwards)


def laned_forward(model: PreTrainedModel, *, count: int = 2) -> LlamaForward:
    """As `own_forward`, with every pass cut as finely as can be, and computed in the most lanes that can be."""
    from igd_core.engines.embedded import lanes
    from igd_core.engines.embedded.fastest_way import FastestWay
    from igd_core.engines.embedded.llama import LlamaForward
    from igd_core.engines.embedded.packed_linear import pack_linears

    class Laned(LlamaForward):
        def feed(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
            with patch.multiple(lanes, LEAST_TOKENS=1, _MOST_UNCUT=1, _UNEVEN=2.0):
                return super().feed(feeds)

    class Most(FastestWay):
        def choose(self, tokens: int, ways: Sequence[int]) -> int:  # noqa: ARG002 - whatever it was
            return max(ways)

    pack_linears(model)
    made = lanes.Lanes(count)
    return Laned(model, lanes=lambda: made, fastest=Most)


def own_forward(model: PreTrainedModel) -> LlamaForward:
    """The project's own forward of ``model``, whose linear layers are laid out for it."""
    from igd_core.engines.embedded.llama import LlamaForward, why_not_own
    from igd_core.engines.embedded.packed_linear import pack_linears

    pack_linears(model)
    assert why_not_own(model) == ""
    return LlamaForward(model)


def plain_forward(model: PreTrainedModel) -> LlamaForward:
    """As `own_forward`, and layers multiply plainly, as a small model's do."""
    from igd_core.engines.embedded.packed_linear import PackedLinear

    forward = own_forward(model)
    for each in model.modules():
        if isinstance(each, PackedLinear):
            each.lay_out_plainly()
    return forward


def pooled_forward(model: PreTrainedModel) -> PooledLlama:
    """The project's own forward for GPUs, wherever ``model`` is; its pool grows in every test."""
    from igd_core.engines.embedded.pooled_llama import PooledLlama, why_not_pooled

    assert why_not_pooled(model) == ""
    return PooledLlama(model, first_slots=32)
