"""Small tokenizers of the kinds that checkpoints come with, trained here on made-up titles."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from factories import EOS, make_titles, tokenizer_definition
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from igd_core.catalogue.tokenization import TitleTokenizer

if TYPE_CHECKING:
    from pathlib import Path

_UNKNOWN = "<unk>"
_UNKNOWN_WORD = "[UNK]"
SPECIAL = [_UNKNOWN, "<s>", "</s>", "<pad>"]
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_TEXTS = [
    *make_titles(300, seed=3),
    "abcdefghijklmnopqrstuvwxyz",
    'ABCDEFGHIJKLMNOPQRSTUVWXYZ"+',
    "<>/|_[]():;0123456789 -'&!?,.",
]


def _definition(tokenizer: Tokenizer) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(tokenizer.to_str())
    return definition


def _sentencepiece(texts: list[str]) -> Tokenizer:
    """Byte-pair encoding as sentencepiece has it: U+2581 for a space, bytes for characters without a piece."""
    tokenizer = Tokenizer(models.BPE(unk_token=_UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=[*SPECIAL, *_BYTES], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    definition = _definition(tokenizer)
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(definition))


def gemma() -> dict[str, Any]:
    """As Gemma's: runs of newlines among the added tokens, not special; so are some that steer."""
    tokenizer = _sentencepiece([text + "\n" for text in _TEXTS])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    for text in ("\n", "\n\n", "\u2581\u2581", "[multimodal]"):
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)])
    return _definition(tokenizer)


def llama() -> dict[str, Any]:
    """As Llama 2's: a space in front of every text, a newline that is a byte, BOS from the post-processor."""
    tokenizer = _sentencepiece(_TEXTS)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return _definition(tokenizer)


def unigram(*, byte_fallback: bool = False) -> dict[str, Any]:
    """As T5's: NFKC, white space squeezed (a newline too), no piece for most of Unicode."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<s>", "<pad>", "</s>", _UNKNOWN], unk_token=_UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    definition = _definition(tokenizer)
    if byte_fallback:
        definition["normalizer"] = None
        definition["decoder"] = {"type": "Sequence", "decoders": [definition["decoder"], {"type": "ByteFallback"}]}
        definition["model"]["byte_fallback"] = True
        definition["model"]["vocab"] += [[piece, 0.0] for piece in _BYTES]
    return definition


def wordpiece() -> dict[str, Any]:
    """As BERT's: lower case, no accents, words of pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=_UNKNOWN_WORD))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=[_UNKNOWN_WORD, "[CLS]", "[SEP]", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return _definition(tokenizer)


def partial_bytes() -> dict[str, Any]:
    """Byte-level pairs of an alphabet of ASCII alone: other characters are passed over without a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ascii_texts = [text.encode("ascii", "ignore").decode() + "\n" for text in _TEXTS]
    tokenizer.train_from_iterator(
        ascii_texts, trainers.BpeTrainer(vocab_size=160, special_tokens=["</s>"], show_progress=False)
    )
    return _definition(tokenizer)


def fallback_unigram() -> dict[str, Any]:
    return unigram(byte_fallback=True)


KINDS = {
    "byte-level": (tokenizer_definition, EOS),
    "gemma": (gemma, "</s>"),
    "llama": (llama, "</s>"),
    "unigram": (unigram, "</s>"),
    "unigram-bytes": (fallback_unigram, "</s>"),
    "wordpiece": (wordpiece, "</s>"),
    "partial-bytes": (partial_bytes, "</s>"),
}
"""Definition and EOS by name."""


@cache
def tokenizer_of(kind: str) -> TitleTokenizer:
    """Trained once: Unigram's training comes out a little different each time."""
    make, eos = KINDS[kind]
    return TitleTokenizer(make(), eos)


def write_tokenizer(kind: str, directory: Path) -> Path:
    """A checkpoint's folder with nothing but its tokenizer."""
    make, eos = KINDS[kind]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(make()), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}), encoding="utf-8")
    return directory
