"""Titles to token paths, with text that can never become a control token.

A tokenizer's added tokens (``<|im_end|>``, ``</s>``, tool tags) are matched in plain text by default. Here the whole
added vocabulary is taken out of the tokenizer that reads titles, so a title that spells ``<|im_end|>`` becomes the
ordinary tokens of those characters. Semantic-ID catalogues, whose paths consist of such tokens, opt in.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from igd_core.errors import ArtifactError, CatalogueError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TERMINATOR = "\n"
"""Ends every title, before EOS, as in the reference."""

_CHUNK = 1 << 16  # titles encoded at once: the tokenizer's own results are ten times the size of the ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPaths:
    """Token path of each item, EOS included.

    Attributes:
        offsets: ``(n + 1,)`` int64; path i is ``tokens[offsets[i]:offsets[i + 1]]``.
        tokens: ``(offsets[-1],)`` int32.
        truncated: items whose text was cut to fit.
    """

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    truncated: int


class TitleTokenizer:
    """A checkpoint's tokenizer, split in two: plain text for titles, and the full one for the operator's own text.

    Attributes:
        fingerprint: sha256 of the canonical ``tokenizer.json``; artefacts and checkpoints are matched by it.
        eos_id: id of the end-of-sequence token.
        bos_ids: ids that the tokenizer itself puts in front of a text; often none.
        vocab_size: one more than the highest id, added tokens included.
    """

    def __init__(self, definition: dict[str, Any], eos_token: str) -> None:
        definition = {**definition, "truncation": None, "padding": None}
        canonical = json.dumps(definition, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
        self._full = _parse_tokenizer(definition)
        added = definition.get("added_tokens") or []
        self._added = frozenset(int(token["id"]) for token in added)
        self._plain = _parse_tokenizer({**definition, "added_tokens": [], "post_processor": None})
        eos_id = self._full.token_to_id(eos_token)
        if eos_id is None:
            raise ModelError(f"eos_token {eos_token!r} is not in the tokenizer's vocabulary")
        self.eos_id: int = eos_id
        self.vocab_size: int = 1 + max(self._full.get_vocab(with_added_tokens=True).values())
        self.bos_ids: list[int] = [i for i in self._full.encode("", add_special_tokens=True).ids if i != eos_id]

    @staticmethod
    def from_directory(directory: str | Path) -> TitleTokenizer:
        """Read ``tokenizer.json`` and the name of the EOS token from a checkpoint's directory.

        Raises:
            ModelError: a file is missing, is not JSON, is no tokenizer's, or names no EOS token.
        """
        directory = Path(directory)
        definition = _read_json(directory / "tokenizer.json")
        config = _read_json(directory / "tokenizer_config.json")
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if not isinstance(eos, str):
            raise ModelError(f"{directory / 'tokenizer_config.json'}: eos_token is {eos!r}, a token is needed")
        return TitleTokenizer(definition, eos)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of ``text`` with no special or added token among them."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_trusted(self, text: str) -> list[int]:
        """Token ids of the operator's own text (a prompt template): added tokens are recognised."""
        return list(self._full.encode(text, add_special_tokens=False).ids)

    def token_text(self, token_id: int) -> str:
        """What one token reads as; parts of a character read as U+FFFD."""
        return self.text([token_id])

    def text(self, ids: Sequence[int]) -> str:
        """What several tokens read as, control tokens included."""
        return str(self._full.decode(ids, skip_special_tokens=False))

    def encode_paths(
        self, texts: Sequence[str], *, max_tokens: int = 72, allow_added_tokens: bool = False
    ) -> TokenPaths:
        """Tokenise ``text + newline`` of every item and append EOS.

        Args:
            texts: what each item is spelled by; cleaned, so without newlines.
            max_tokens: longest path, EOS included (72 new tokens in the reference). A longer text is cut after
                ``max_tokens - 1 - len(newline)`` tokens, and still ends with newline and EOS.
            allow_added_tokens: read added tokens in the texts (semantic IDs). EOS stays forbidden.

        Raises:
            CatalogueError: a path that would hold a control token.
        """
        reader = self._full if allow_added_tokens else self._plain
        newline = self.encode_plain(TERMINATOR)
        keep = max_tokens - 1
        if keep <= len(newline):
            raise CatalogueError(f"max_tokens is {max_tokens}; a path needs at least {len(newline) + 2}")
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        tokens = array("i")
        truncated = 0
        for first in range(0, len(texts), _CHUNK):
            lines = [text + TERMINATOR for text in texts[first : first + _CHUNK]]
            for item, encoding in enumerate(reader.encode_batch_fast(lines, add_special_tokens=False), start=first):
                ids = encoding.ids
                if len(ids) > keep:
                    ids = ids[: keep - len(newline)] + newline
                    truncated += 1
                tokens.extend(ids)
                tokens.append(self.eos_id)
                offsets[item + 1] = len(tokens)
        flat = np.frombuffer(tokens, dtype=np.int32) if tokens else np.empty(0, dtype=np.int32)
        self._refuse_control_tokens(offsets, flat, allow_added_tokens=allow_added_tokens)
        return TokenPaths(offsets=offsets, tokens=flat, truncated=truncated)

    def _refuse_control_tokens(
        self, offsets: NDArray[np.int64], tokens: NDArray[np.int32], *, allow_added_tokens: bool
    ) -> None:
        inside = np.ones(len(tokens), dtype=bool)
        inside[offsets[1:] - 1] = False  # the EOS that ends each path
        forbidden = {self.eos_id} if allow_added_tokens else self._added | {self.eos_id}
        bad = np.flatnonzero(inside & np.isin(tokens, np.fromiter(forbidden, dtype=np.int32)))
        if len(bad):
            item = int(np.searchsorted(offsets, bad[0], side="right")) - 1
            token = int(tokens[bad[0]])
            raise CatalogueError(
                f"item {item}: its text would hold the control token {self._full.id_to_token(token)!r}"
            )


def _parse_tokenizer(definition: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more exact
        raise ModelError(f"tokenizer.json: not a fast tokenizer's ({error})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; a fast tokenizer's files are needed") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path}: holds a {type(data).__name__}, not an object")
    return data


def require_same_tokenizer(built_with: str, serving: TitleTokenizer) -> None:
    """Refuse an artefact whose paths were made by another tokenizer.

    Raises:
        ArtifactError: the fingerprints differ.
    """
    if built_with != serving.fingerprint:
        raise ArtifactError(
            f"tokenizer: the artefact was built with {built_with[:12]}, the model has {serving.fingerprint[:12]}"
        )
