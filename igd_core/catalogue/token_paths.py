"""Token paths of texts, their possible faults, and checks that the tokenizers library does not make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tokenizers import Tokenizer, pre_tokenizers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BYTE_PIECES = [f"<0x{value:02X}>" for value in range(256)]
"""The name of each byte in a vocabulary with byte fallback."""

FaultKind: TypeAlias = Literal["no piece", "control token", "line break", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFault:
    """Why a text cannot have a token path.

    Attributes:
        item: its row.
        kind: characters without a piece; text that reads as a control token or a line break; or no token is left.
        what: those characters, or that token.
    """

    item: int
    kind: FaultKind
    what: str = ""

    @property
    def summary(self) -> str:
        """The reason without the text's own characters, for counting."""
        match self.kind:
            case "no piece":
                return "holds characters that the tokenizer has no piece for"
            case "nothing":
                return "leaves nothing when the tokenizer reads it"
            case _:
                return f"would hold a {self.kind}"

    @property
    def reason(self) -> str:
        """The reason, for people, without naming the item."""
        match self.kind:
            case "no piece":
                return f"the tokenizer has no piece for {self.what!r}"
            case "nothing":
                return "the tokenizer leaves nothing of its text"
            case _:
                return f"its text would hold the {self.kind} {self.what!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPaths:
    """The token path of each item, EOS included.

    Attributes:
        offsets: ``(n + 1,)`` int64; path i is ``tokens[offsets[i]:offsets[i + 1]]``.
        tokens: ``(offsets[-1],)`` int32.
        truncated: items whose text was cut to fit.
        faults: at most one an item, by row; the paths of these items must not be used.
    """

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    truncated: int
    faults: tuple[PathFault, ...] = ()


def spells(tokenizer: Tokenizer, text: str) -> bool:
    """Whether tokens cover every byte of ``text``; byte-pair encoding silently drops what it has no piece for."""
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    parts = tokenizer.pre_tokenizer.pre_tokenize_str(normalized) if tokenizer.pre_tokenizer else [(normalized, None)]
    for part, _ in parts:
        tokens = tokenizer.model.tokenize(part)
        if max((token.offsets[1] for token in tokens), default=0) < len(part.encode()):
            return False
    return True


def encoded(reader: Tokenizer, lines: list[str]) -> Iterator[list[int] | None]:
    """Token ids of each line; None for a line that the tokenizer's model cannot encode."""
    try:
        encodings = reader.encode_batch_fast(lines, add_special_tokens=False)
    except Exception:  # noqa: BLE001 - tokenizers raises nothing more exact, and does not say of which line
        for line in lines:
            try:
                yield list(reader.encode(line, add_special_tokens=False).ids)
            except Exception:  # noqa: BLE001
                yield None
        return
    for encoding in encodings:
        yield encoding.ids


def sliced(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Split ``text`` into a part for each token; joined, the parts are ``text``.

    Args:
        text: what was tokenised.
        spans: first character and end of each token. White space that no token covers goes to the next token; where
            tokens share characters, the last one gets them.
    """
    parts, begin = [], 0
    starts = [*(first for first, _ in spans[1:]), len(text)]
    for at in range(len(starts) - 2, -1, -1):
        starts[at] = min(starts[at], starts[at + 1])
    for at, ((_, end), next_start) in enumerate(zip(spans, starts, strict=True)):
        cut = len(text) if at == len(spans) - 1 else max(begin, min(end, next_start))
        parts.append(text[begin:cut])
        begin = cut
    return parts


def agreement(one: str, other: str) -> int:
    """How many leading characters two texts share."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def is_complete(definition: dict[str, Any]) -> bool:
    """Whether the vocabulary has a piece for every byte, so that it can spell any text."""
    model = definition.get("model") or {}
    vocab = model.get("vocab")
    pieces = {piece[0] for piece in vocab} if isinstance(vocab, list) else set(vocab or ())
    if model.get("byte_fallback"):
        return pieces.issuperset(BYTE_PIECES)
    read_as_bytes = '"ByteLevel"' in json.dumps([definition.get("pre_tokenizer"), definition.get("normalizer")])
    return read_as_bytes and pieces.issuperset(pre_tokenizers.ByteLevel.alphabet())
