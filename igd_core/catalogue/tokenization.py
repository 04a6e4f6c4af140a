"""Titles to token paths; no title can become a control token.

A tokenizer matches its added tokens (``<|im_end|>``, ``</s>``, tool tags) in plain text by default. Titles are read by
a copy of the tokenizer without control tokens (`control_tokens`), so ``<|im_end|>`` in a title becomes ordinary tokens
of those characters. Catalogues of semantic IDs, whose paths consist of added tokens, opt in.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from igd_core.catalogue.control_tokens import is_control_token, plain_definition, role_tokens, unknown_id
from igd_core.catalogue.token_paths import (
    BYTE_PIECES,
    FaultKind,
    PathFault,
    TokenPaths,
    agreement,
    encoded,
    is_complete,
    sliced,
    spells,
)
from igd_core.errors import ArtifactError, CatalogueError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TERMINATOR", "PathFault", "TitleTokenizer", "TokenPaths", "read_json", "require_same_tokenizer"]

TERMINATOR = "\n"
"""Ends every title, before EOS, as in the reference."""

_CHUNK = 1 << 16  # titles encoded at once: the library's own results take ten times the memory of the ids


class TitleTokenizer:
    """A checkpoint's tokenizer twice: without control tokens for titles, and in full for the operator's own text.

    Attributes:
        fingerprint: sha256 of the canonical ``tokenizer.json``; an artifact serves only models with an equal one.
        eos_id: id of the end-of-sequence token.
        bos_ids: ids that the tokenizer itself puts before a text; often none.
        vocab_size: one more than the highest id, added tokens included.
    """

    def __init__(self, definition: dict[str, Any], eos_token: str, *, roles: Sequence[str] = ()) -> None:
        """``roles``: further tokens to treat as control tokens, such as BOS and padding."""
        definition = {**definition, "truncation": None, "padding": None}
        canonical = json.dumps(definition, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
        self._full = _parse_tokenizer(definition)
        added = definition.get("added_tokens") or []
        self._added = frozenset(int(token["id"]) for token in added)
        named = {eos_token, *roles}
        control = [token for token in added if is_control_token(token, named)]
        self._control = frozenset(int(token["id"]) for token in control)
        self._roles = frozenset(int(token["id"]) for token in control if token["content"] in named)
        self._plain = _parse_tokenizer(plain_definition(definition, named))
        self._unknown_id = unknown_id(definition)
        self._drops = self._unknown_id is None and "merges" in definition["model"] and not is_complete(definition)
        self._held: dict[str, bool] = {}
        eos_id = self._full.token_to_id(eos_token)
        if eos_id is None:
            raise ModelError(f"eos_token {eos_token!r} is not in the tokenizer's vocabulary")
        self.eos_id: int = eos_id
        self.vocab_size: int = 1 + max(self._full.get_vocab(with_added_tokens=True).values())
        self.bos_ids: list[int] = self._read_bos()
        self._newline = self._read_newline()
        (letter,) = encoded(self._plain, ["a"])
        self._letter = letter or []

    @staticmethod
    def from_directory(directory: str | Path) -> TitleTokenizer:
        """Read ``tokenizer.json`` and the names of EOS and the like from a checkpoint's directory.

        Raises:
            ModelError: a file is missing, is not JSON, is no tokenizer's, or names no EOS token.
        """
        directory = Path(directory)
        definition = read_json(directory / "tokenizer.json")
        config = read_json(directory / "tokenizer_config.json")
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if not isinstance(eos, str):
            raise ModelError(f"{directory / 'tokenizer_config.json'}: eos_token is {eos!r}, a token is needed")
        return TitleTokenizer(definition, eos, roles=sorted(role_tokens(config)))

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of ``text`` with no control token among them."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_trusted(self, text: str) -> list[int]:
        """Token ids of the operator's own text (a prompt template): added tokens are recognised."""
        return list(self._full.encode(text, add_special_tokens=False).ids)

    def id_of(self, token: str) -> int | None:
        """Id of a token by its text; None where the vocabulary has no such token."""
        found: int | None = self._full.token_to_id(token)
        return found

    def extends(self, other: TitleTokenizer) -> bool:
        """Whether every token of ``other`` has the same id here, and every new token a higher one."""
        ours, theirs = (each._full.get_vocab(with_added_tokens=True) for each in (self, other))
        added = (at for token, at in ours.items() if token not in theirs)
        return bool(theirs.items() <= ours.items()) and min(added, default=other.vocab_size) >= other.vocab_size

    def token_text(self, token_id: int) -> str:
        """The text of one token in the middle of a line; a part of a character reads as U+FFFD."""
        before = self.text(self._letter)
        return self.text([*self._letter, token_id]).removeprefix(before)

    def token_texts(self, text: str, ids: Sequence[int]) -> list[str]:
        """The text of each token of the path that spells ``text``.

        Joined, they are ``text`` as far as the path goes, a newline where the path has one, and EOS's own name. A
        character that several tokens spell goes to the last of them; the others get "". Ids that are not this
        tokenizer's path of ``text`` are decoded instead.
        """
        if not ids:
            return []
        *body, end = ids
        for reader in (self._plain, self._full):
            (found,) = encoded(reader, [text + TERMINATOR])
            if found is None:
                continue
            encoding = reader.encode(text + TERMINATOR, add_special_tokens=False)
            kept = len(body) - len(self._newline)
            if found == body:
                ends_line = bool(body) and encoding.offsets[-1][1] > len(text)
                return [*sliced(text + TERMINATOR * ends_line, encoding.offsets), self._name_of(end)]
            if kept > 0 and body == [*found[:kept], *self._newline]:  # cut to fit
                spans = encoding.offsets[:kept]
                shown = text[: spans[-1][1]]
                newline = [*[""] * (len(self._newline) - 1), TERMINATOR] if self._newline else []
                return [*sliced(shown, spans), *newline, self._name_of(end)]
        return self._decoded(ids)

    def _name_of(self, token_id: int) -> str:
        return str(self._full.id_to_token(token_id))

    def _decoded(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds to that of the tokens before it."""
        whole, read, texts = self.text(ids), 0, []
        for count in range(1, len(ids) + 1):
            so_far = self.text(ids[:count]) if count < len(ids) else whole
            # An incomplete character reads as U+FFFD, which agrees with nothing.
            end = max(read, agreement(whole, so_far))
            texts.append(whole[read:end])
            read = end
        return texts

    def text(self, ids: Sequence[int]) -> str:
        """The text of several tokens, control tokens included."""
        return str(self._full.decode(ids, skip_special_tokens=False))

    def encode_paths(
        self, texts: Sequence[str], *, max_tokens: int = 72, allow_added_tokens: bool = False, tolerant: bool = False
    ) -> TokenPaths:
        """Tokenise ``text + newline`` of every item and append EOS.

        Args:
            texts: what each item is spelled by; cleaned, so without newlines.
            max_tokens: longest path, EOS included (72 new tokens in the reference). A longer text is cut after
                ``max_tokens - 1 - len(newline)`` tokens, and still ends with newline and EOS.
            allow_added_tokens: read added tokens in the texts (semantic IDs). Tokens with a role (EOS, BOS, padding)
                stay forbidden.
            tolerant: report faults instead of raising the first.

        Raises:
            CatalogueError: a text that has no path of its own.
        """
        reader = self._full if allow_added_tokens else self._plain
        newline = self._newline
        keep = max_tokens - 1
        if keep <= len(newline):
            raise CatalogueError(f"max_tokens is {max_tokens}; a path needs at least {len(newline) + 2}")
        forbidden = (self._roles if allow_added_tokens else self._control) | {self.eos_id}
        lengths, tokens = array("q"), array("i")
        truncated = 0
        faults: dict[int, PathFault] = {}
        for first in range(0, len(texts), _CHUNK):
            chunk = texts[first : first + _CHUNK]
            found = {fault.item: fault for fault in self._lost_characters(chunk)}
            path_tokens, offsets = array("i"), np.zeros(len(chunk) + 1, dtype=np.int64)
            for item, ids in enumerate(encoded(reader, [text + TERMINATOR for text in chunk])):
                if ids is None:
                    found[item] = PathFault(item=item, kind="no piece", what=chunk[item])
                elif len(ids) > keep:
                    truncated += 1
                    path_tokens.extend(ids[: keep - len(newline)] + newline)
                else:
                    path_tokens.extend(ids)
                path_tokens.append(self.eos_id)
                offsets[item + 1] = len(path_tokens)
            misread = self._misread(chunk, offsets, np.frombuffer(path_tokens, dtype=np.int32), forbidden)
            found = {fault.item: fault for fault in misread} | found
            faults |= {first + item: replace(fault, item=first + item) for item, fault in found.items()}
            lengths.extend(np.diff(offsets).tolist())
            tokens.extend(path_tokens)
            if found and not tolerant:
                break
        if faults and not tolerant:
            fault = faults[min(faults)]
            raise CatalogueError(f"item {fault.item}: {fault.reason}")
        return TokenPaths(
            offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            tokens=np.frombuffer(tokens, dtype=np.int32) if tokens else np.empty(0, dtype=np.int32),
            truncated=truncated,
            faults=tuple(faults[item] for item in sorted(faults)),
        )

    def _read_bos(self) -> list[int]:
        """Ids that the tokenizer puts before a text. A tokenizer may use one token as both BOS and EOS."""
        if next(encoded(self._full, ["a"])):
            encoding = self._full.encode("a", add_special_tokens=True)
            return list(encoding.ids[: list(encoding.special_tokens_mask).index(0)])
        return [token for token in self._full.encode("", add_special_tokens=True).ids if token != self.eos_id]

    def _read_newline(self) -> list[int]:
        """Ids of a newline behind a text. Alone, the newline may get another token, for the beginning of a text."""
        alone, before, after = encoded(self._plain, [TERMINATOR, "a", "a" + TERMINATOR])
        if before is None or after is None or after[: len(before)] != before:
            return alone or []
        return after[len(before) :]

    def _misread(
        self, texts: Sequence[str], offsets: NDArray[np.int64], tokens: NDArray[np.int32], forbidden: frozenset[int]
    ) -> Iterator[PathFault]:
        """Find paths with a token that their text does not have, and paths without a token."""
        inside = np.ones(len(tokens), dtype=bool)
        inside[offsets[1:] - 1] = False  # the EOS that ends each path
        spelled = (self._plain.token_to_id(text) for text in (TERMINATOR, BYTE_PIECES[ord(TERMINATOR)]))
        breaks = {token for token in spelled if token is not None}
        ends = offsets[1:][np.diff(offsets) > 1] - 2
        ends = ends[np.isin(tokens[ends], list(breaks))]  # the newline before it
        inside[ends[~np.isin(tokens[ends], list(forbidden))]] = False
        unknown = set() if self._unknown_id is None else {self._unknown_id}
        suspect = np.isin(tokens, np.fromiter(forbidden | breaks | unknown, dtype=np.int32))
        for at in np.flatnonzero(inside & suspect)[::-1]:  # the first fault of a path wins
            item, token = int(np.searchsorted(offsets, at, side="right")) - 1, int(tokens[at])
            if token in unknown:
                yield PathFault(item=item, kind="no piece", what=self._unknown_text(texts[item]))
            elif token in forbidden or TERMINATOR not in texts[item]:
                kind: FaultKind = "control token" if token in forbidden else "line break"
                yield PathFault(item=item, kind=kind, what=self._name_of(token))
        for item in np.flatnonzero(np.diff(offsets) <= len(self._newline) + 1).tolist():
            if tokens[offsets[item] : offsets[item + 1] - 1].tolist() == self._newline and texts[item].strip():
                yield PathFault(item=item, kind="nothing")

    def _unknown_text(self, text: str) -> str:
        """The parts of ``text`` that became the unknown token."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        spans = [span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == self._unknown_id]
        return " ".join(dict.fromkeys(text[first:end] for first, end in spans))

    def _lost_characters(self, texts: Sequence[str]) -> Iterator[PathFault]:
        """Find texts with characters that byte-pair encoding drops silently."""
        lost = {char for char in set().union(*texts) if not self._holds(char)} if self._drops else set()
        for item, text in enumerate(texts if lost else ()):
            if not lost.isdisjoint(text):
                yield PathFault(item=item, kind="no piece", what="".join(dict.fromkeys(c for c in text if c in lost)))

    def _holds(self, char: str) -> bool:
        """Whether the vocabulary has a piece for ``char``, or for its bytes."""
        if char not in self._held:
            self._held[char] = char.isspace() or spells(self._plain, char)
        return self._held[char]


def _parse_tokenizer(definition: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more exact
        raise ModelError(f"tokenizer.json: not a fast tokenizer's ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a tokenizer's JSON files.

    Raises:
        ModelError: it is missing, or no JSON object.
    """
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
    """Refuse an artifact that was built with another tokenizer.

    Raises:
        ArtifactError: the fingerprints differ.
    """
    if built_with != serving.fingerprint:
        raise ArtifactError(
            f"tokenizer: the artifact was built with {built_with[:12]}, the model has {serving.fingerprint[:12]}"
        )
