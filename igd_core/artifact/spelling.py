"""Tokenise the texts of a catalogue; refuse, skip or rewrite those that the tokenizer cannot spell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from igd_core.catalogue.semantic_ids import are_semantic_ids, require_codes
from igd_core.catalogue.transliteration import written_otherwise
from igd_core.errors import CatalogueError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from igd_core.artifact.options import OnUnspellable
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import PathFault, TitleTokenizer, TokenPaths

_ROUNDS = 8
_SHOWN = 5


class UnspellableError(CatalogueError):
    """Some items have texts that this tokenizer cannot spell.

    Attributes:
        faults: one an item, by row.
    """

    def __init__(self, faults: tuple[PathFault, ...], catalogue: Catalogue) -> None:
        """The message names the first five items."""
        named = "; ".join(f"item {catalogue.item_ids[fault.item]!r}: {fault.reason}" for fault in faults[:_SHOWN])
        more = f"; and {len(faults) - _SHOWN:,} more" if len(faults) > _SHOWN else ""
        super().__init__(named + more)
        self.faults = faults


@dataclass(frozen=True, slots=True, kw_only=True)
class SpelledCatalogue:
    """A catalogue in which every item has a path.

    Attributes:
        catalogue: the items that are left, with the texts that spell them.
        paths: their token paths, in the same order.
        faults: faults of the texts as given, by rows of the catalogue as given.
        written: the text used instead, by row; without the items left out.
    """

    catalogue: Catalogue
    paths: TokenPaths
    faults: tuple[PathFault, ...] = ()
    written: Mapping[int, str] = field(default_factory=dict)


def spell_catalogue(
    catalogue: Catalogue,
    tokenizer: TitleTokenizer,
    *,
    max_tokens: int,
    allow_added_tokens: bool = False,
    on_unspellable: OnUnspellable = "error",
) -> SpelledCatalogue:
    """Tokenise every item's text.

    Args:
        catalogue: whose ``texts`` are read.
        tokenizer: makes the paths.
        max_tokens: longest path.
        allow_added_tokens: texts may hold the tokenizer's added tokens (semantic IDs).
        on_unspellable: for a text that the tokenizer cannot spell, raise (``error``), leave the item out (``skip``), or
            replace the characters without a piece (``spell``).

    Raises:
        UnspellableError: with ``error``; with ``spell``, if no replacement can be spelled either.
        CatalogueError: semantic IDs that are not tokens of this tokenizer, or no item is left.
    """
    if allow_added_tokens or are_semantic_ids(catalogue.texts):
        require_codes(tokenizer, catalogue.texts, catalogue.item_ids)

    def paths_of(texts: Catalogue, *, tolerant: bool) -> TokenPaths:
        return tokenizer.encode_paths(
            texts.texts, max_tokens=max_tokens, allow_added_tokens=allow_added_tokens, tolerant=tolerant
        )

    paths = paths_of(catalogue, tolerant=True)
    faults = paths.faults
    if not faults:
        return SpelledCatalogue(catalogue=catalogue, paths=paths)
    if on_unspellable == "error":
        raise UnspellableError(faults, catalogue)
    if on_unspellable == "skip":
        left_out = {fault.item for fault in faults}
        kept = [row for row in range(len(catalogue)) if row not in left_out]
        if not kept:
            raise UnspellableError(faults, catalogue)
        left = catalogue.take(kept)
        return SpelledCatalogue(catalogue=left, paths=paths_of(left, tolerant=False), faults=faults)
    speller = _Speller(tokenizer, allow_added_tokens=allow_added_tokens)
    written = {fault.item: speller.respelled(catalogue.texts[fault.item]) for fault in faults}
    hopeless = tuple(fault for fault in faults if written[fault.item] is None)
    if hopeless:
        raise UnspellableError(hopeless, catalogue)
    taken = {row: text for row, text in written.items() if text is not None}
    changed = catalogue.with_texts([taken.get(row, text) for row, text in enumerate(catalogue.texts)])
    return SpelledCatalogue(catalogue=changed, paths=paths_of(changed, tolerant=False), faults=faults, written=taken)


class _Speller:
    """Replaces characters that the tokenizer cannot spell."""

    def __init__(self, tokenizer: TitleTokenizer, *, allow_added_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._allow_added_tokens = allow_added_tokens
        self._instead: dict[str, str | None] = {}

    def respelled(self, text: str) -> str | None:
        """The text without faults; None if no replacement is found."""
        for _ in range(_ROUNDS):
            fault = self._fault(text)
            if fault is None:
                return text
            before = text
            if fault.kind in {"no piece", "nothing"}:
                for char in dict.fromkeys(fault.what or text):
                    instead = self._instead_of(char)
                    if instead is None:  # dropping the character would change the word
                        return None
                    text = text.replace(char, instead)
            else:  # text that reads as a control token: break it with a space
                text = text.replace(fault.what, f"{fault.what[:1]} {fault.what[1:]}")
            text = " ".join(text.split())
            if not text or text == before:
                return None
        return None

    def _instead_of(self, char: str) -> str | None:
        if char not in self._instead:
            candidates = (char, *written_otherwise(char))
            fits = (each for each in candidates if each.isspace() or self._fault(each.strip()) is None)
            self._instead[char] = next(fits, None)
        return self._instead[char]

    def _fault(self, text: str) -> PathFault | None:
        paths = self._tokenizer.encode_paths(
            [text], max_tokens=512, allow_added_tokens=self._allow_added_tokens, tolerant=True
        )
        return paths.faults[0] if paths.faults else None
