"""`tests/bench/shapes.py`: what it says on paper follows from a model's weights, and prompts are as long as asked."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from bench.shapes import CARDS, SHAPES, Row, config_of, histories, paper
from factories import make_catalogue
from transformers import AutoModelForCausalLM

from igd_core.artifact import BuildOptions, build_artifact

if TYPE_CHECKING:
    from igd_core.catalogue.tokenization import TitleTokenizer

ROW = Row(prompt=150, beams=10, at_once=1)
ROUNDS, TOKENS = 6, 120


def weights(shape: str) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in AutoModelForCausalLM.from_config(config_of(shape)).parameters())


@pytest.mark.parametrize(("shape", "millions"), [("smollm2-135m", 135), ("qwen2.5-1.5b", 1544), ("llama-3-8b", 8030)])
def test_a_shape_has_as_many_weights_as_the_model_it_is_named_after(shape: str, millions: int) -> None:
    assert round(weights(shape) / 1e6) == millions


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"tiny"}))
def test_alone_every_pass_reads_the_weights_and_at_once_every_token_is_computed(shape: str) -> None:
    card = CARDS["H200"]
    told = paper(shape, card, ROW, rounds=ROUNDS, tokens=TOKENS)
    read = weights(shape) - (0 if SHAPES[shape][1].get("tie_word_embeddings", True) else weights_of_embedding(shape))
    least_ms = 1e3 * (1 + ROUNDS) * 2 * read / card.bandwidth
    assert least_ms <= told["alone_ms"] * 1.01  # the figure is rounded
    assert told["alone_ms"] <= 1.1 * least_ms  # keys and values, and a prompt that takes longer to compute than to read
    layers = weights(shape) - weights_of_embedding(shape) * (1 if read == weights(shape) else 2)
    most = card.operations / (2 * (ROW.prompt + TOKENS) * layers)
    assert told["per_second_at_1"] < told["per_second_at_128"] < most


def weights_of_embedding(shape: str) -> int:
    config = config_of(shape)
    return int(config.vocab_size * config.hidden_size)


def test_a_card_that_does_both_twice_as_fast_takes_half_the_time() -> None:
    card = CARDS["L4"]
    twice = replace(card, bandwidth=2 * card.bandwidth, operations=2 * card.operations)
    one, other = (paper("qwen3-1.7b", each, ROW, rounds=ROUNDS, tokens=TOKENS) for each in (card, twice))
    assert other["alone_ms"] == pytest.approx(one["alone_ms"] / 2, rel=1e-3)


def test_prompts_have_the_tokens_asked_for_within_a_title(tokenizer: TitleTokenizer) -> None:
    artifact = build_artifact(make_catalogue(60), tokenizer, BuildOptions(name="films", max_history=60))
    for wanted in (120, 200):
        for history in itertools.islice(histories(artifact, wanted), 5):
            assert wanted <= len(artifact.prompt(history)) < wanted + artifact.trie.depth + 1
