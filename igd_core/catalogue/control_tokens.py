"""Tell control tokens, which steer a model, from text; make a tokenizer that finds none of them in a text.

A checkpoint marks most tokens that steer it (``<|im_end|>``) as special, and leaves out some (``<tool_call>`` of Qwen
3, ``[multimodal]`` of Gemma 3). Others of its added tokens are text and no more: Gemma's runs of newlines and spaces,
words that somebody added. An added token counts as control if it is marked special, has a role, or has characters
that words have not.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_WORD_CATEGORIES = frozenset({"Mn", "Mc", "So"})
_WORD_CHARACTERS = frozenset("\u2581-'\u2019.,!&")  # U+2581 is sentencepiece's space


def role_tokens(config: dict[str, Any]) -> frozenset[str]:
    """Tokens to which ``tokenizer_config.json`` gives a role (EOS, padding ...)."""
    named = [config.get(role) for role in _ROLES]
    contents = [each.get("content") if isinstance(each, dict) else each for each in named]
    return frozenset(content for content in contents if isinstance(content, str))


def is_control_token(token: dict[str, Any], roles: Collection[str] = ()) -> bool:
    """Whether an entry of ``added_tokens`` is a control token: special, with a role, or not made of word characters."""
    content: str = token["content"]
    if token.get("special", False) or content in roles:
        return True
    return len(content) != 1 and not all(map(_belongs_to_words, content))


def _belongs_to_words(char: str) -> bool:
    return (
        char.isalnum()
        or char.isspace()
        or char in _WORD_CHARACTERS
        or unicodedata.category(char) in _WORD_CATEGORIES  # accents; emoji
    )


def plain_definition(definition: dict[str, Any], roles: Collection[str] = ()) -> dict[str, Any]:
    """``tokenizer.json`` of a tokenizer for plain text, which matches nothing in a text as a control token.

    Added tokens that are text stay, under their ids. Control tokens leave the added tokens, and the pieces that BPE and
    Unigram can put a text together from: ``</s>`` is a piece of many a vocabulary. Word vocabularies stay as they are.
    """
    added = definition.get("added_tokens") or []
    kept = [token for token in added if not is_control_token(token, roles)]
    control = {token["content"]: int(token["id"]) for token in added if is_control_token(token, roles)}
    model = _without_pieces(definition.get("model") or {}, control)
    return {
        **definition,
        "added_tokens": kept,
        "post_processor": None,
        "model": _with_pieces(model, {token["content"]: int(token["id"]) for token in kept}),
    }


def unknown_id(definition: dict[str, Any]) -> int | None:
    """Id of the unknown token, which stands for text without a piece; None where the vocabulary has none."""
    model = definition.get("model") or {}
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        return model.get("unk_id")
    unknown = model.get("unk_token")
    return vocab.get(unknown) if isinstance(vocab, dict) and unknown is not None else None


def _unreadable(token_id: int) -> str:
    """A piece that occurs in no text: two newlines, where an item's text has only one, at its end."""
    return f"\n{token_id}\n"


def _without_pieces(model: dict[str, Any], control: dict[str, int]) -> dict[str, Any]:
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        pieces = [[_unreadable(at) if piece[0] in control else piece[0], piece[1]] for at, piece in enumerate(vocab)]
        return {**model, "vocab": pieces}
    if not isinstance(vocab, dict) or "merges" not in model:
        return model
    blocked = {content for content in control if content in vocab} - {model.get("unk_token")}
    if not blocked:
        return model
    return {
        **model,
        "vocab": {_unreadable(at) if piece in blocked else piece: at for piece, at in vocab.items()},
        "merges": [merge for merge in model["merges"] if not _merged(merge) & blocked],
    }


def _merged(merge: str | list[str]) -> set[str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}


def _with_pieces(model: dict[str, Any], kept: dict[str, int]) -> dict[str, Any]:
    """Keep the ids of what stays: without the removed pieces, tokenizers would number the added tokens anew."""
    vocab = model.get("vocab")
    missing = {content: at for content, at in kept.items() if isinstance(vocab, dict) and content not in vocab}
    if isinstance(vocab, dict):
        return {**model, "vocab": {**vocab, **missing}} if missing else model
    if not isinstance(vocab, list):
        return model
    pieces = [*vocab, *([_unreadable(at), 0.0] for at in range(len(vocab), 1 + max(kept.values(), default=-1)))]
    for content, at in kept.items():
        if at >= len(vocab):
            pieces[at] = [content, 0.0]
    return {**model, "vocab": pieces}
