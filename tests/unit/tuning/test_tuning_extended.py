"""Checkpoints that are tuned on a tokenizer with tokens more than their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tokenizer_kinds import tokenizer_of, write_tokenizer

from igd_core.catalogue.semantic_ids import extend_tokenizer
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.errors import InputError
from igd_core.tuning.backbone import load_backbone
from igd_core.tuning.settings import LoraSettings, TuningSettings

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

SETTINGS = TuningSettings(precision="fp32")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny Llama without a row of its embedding to spare."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = write_tokenizer("byte-level", tmp_path / "model")
    vocab = tokenizer_of("byte-level").vocab_size
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def embedding(model: PreTrainedModel) -> torch.Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def test_the_embedding_gets_a_row_for_each_token_that_was_added(checkpoint: Path, tmp_path: Path) -> None:
    own = TitleTokenizer.from_directory(checkpoint)
    extended = extend_tokenizer(own, checkpoint, tmp_path / "extended", codes=["<x_1>", "<x_2>"])
    before = load_backbone(str(checkpoint), SETTINGS, tokenizer_dir=None, device="cpu")
    after = load_backbone(str(checkpoint), SETTINGS, tokenizer_dir=tmp_path / "extended", device="cpu")
    assert after.tokenizer.fingerprint == extended.fingerprint
    assert len(embedding(after.plain)) == own.vocab_size + 2 == after.plain.config.vocab_size
    assert torch.equal(embedding(after.plain)[: own.vocab_size], embedding(before.plain))
    assert torch.isfinite(embedding(after.plain)).all()
    after.write(tmp_path / "tuned")
    assert TitleTokenizer.from_directory(tmp_path / "tuned").fingerprint == extended.fingerprint
    again = load_backbone(str(tmp_path / "tuned"), SETTINGS, tokenizer_dir=None, device="cpu")
    assert torch.equal(embedding(again.plain), embedding(after.plain))


def test_the_checkpoints_own_tokenizer_changes_nothing(checkpoint: Path) -> None:
    backbone = load_backbone(str(checkpoint), SETTINGS, tokenizer_dir=checkpoint, device="cpu")
    assert len(embedding(backbone.plain)) == backbone.tokenizer.vocab_size


def test_what_cannot_be_tuned_so_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    own = TitleTokenizer.from_directory(checkpoint)
    extend_tokenizer(own, checkpoint, tmp_path / "extended", codes=["<x_1>"])
    with pytest.raises(InputError, match="1 tokens more than the checkpoint's, and an adapter does not train"):
        load_backbone(
            str(checkpoint),
            TuningSettings(precision="fp32", lora=LoraSettings(rank=2)),
            tokenizer_dir=tmp_path / "extended",
            device="cpu",
        )
    other = write_tokenizer("llama", tmp_path / "other")
    with pytest.raises(InputError, match="is not the checkpoint's with tokens added"):
        load_backbone(str(checkpoint), SETTINGS, tokenizer_dir=other, device="cpu")
