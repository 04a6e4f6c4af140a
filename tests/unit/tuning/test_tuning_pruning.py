from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from factories import EOS, make_catalogue

from igd_core.artifact import Artifact, BuildOptions, build_artifact
from igd_core.errors import InputError, ModelError
from igd_core.tuning.pruning import prune_definition, prune_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer


@pytest.fixture
def whole(tmp_path: Path, definition: dict[str, Any]) -> Path:
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return tmp_path


def test_a_smaller_vocabulary_spells_the_catalogue_by_the_same_pieces(
    tokenizer: TitleTokenizer, whole: Path, tmp_path: Path
) -> None:
    catalogue = make_catalogue(12)
    options = BuildOptions(instruction="House:\n", bullet="Machine", suffix="Planet")  # a token each, in few titles
    before = build_artifact(catalogue, tokenizer, options)
    small = prune_tokenizer(before, whole, tmp_path / "small")
    after = build_artifact(catalogue, small, options)
    assert small.vocab_size < tokenizer.vocab_size
    for leaf_before, leaf_after in zip(before.leaf_of_item, after.leaf_of_item, strict=True):
        pieces = [tokenizer.token_text(token) for token in before.trie.path(leaf_before)]
        assert [small.token_text(token) for token in after.trie.path(leaf_after)] == pieces
    assert before.trie.num_nodes == after.trie.num_nodes
    for part in ("prefix_ids", "bullet_ids", "suffix_ids"):
        ids = getattr(before.manifest.template, part)
        kept = getattr(after.manifest.template, part)
        assert [small.token_text(token) for token in kept] == [tokenizer.token_text(token) for token in ids]
    assert small.token_text(small.eos_id) == EOS


def test_other_text_still_round_trips(artifact: Artifact, whole: Path, tmp_path: Path) -> None:
    small = prune_tokenizer(artifact, whole, tmp_path / "small")
    text = "Žluťoučký kůň 再见 <|im_end|>"
    ids = small.encode_plain(text)
    assert small.eos_id not in ids
    assert small._full.decode(ids) == text


def test_only_what_can_be_cut_is_cut(artifact: Artifact, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only a BPE tokenizer"):
        prune_definition({"model": {"type": "WordPiece"}}, {1})
    with pytest.raises(InputError, match="exists already"):
        prune_tokenizer(artifact, whole, tmp_path)
