"""Replacements for a character that a tokenizer has no piece for, the most natural first."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_USUAL = {
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"',
    "\u00bb": '"', "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u00d7": "x", "\u20ac": "EUR", "\u00a3": "GBP", "\u00a5": "JPY", "\u00a9": "(c)", "\u00ae": "(R)",
    "\u00b7": "-", "\u2022": "-", "\u2044": "/", "\u00f7": "/", "[": "(", "]": ")", "{": "(", "}": ")",
}  # fmt: skip
_LETTER = re.compile(r"(?:LATIN|GREEK|CYRILLIC) (?P<case>SMALL|CAPITAL) (?:LETTER|LIGATURE) (?P<name>[A-Z]+)\b")


def written_otherwise(char: str) -> Iterator[str]:
    """Replacements for ``char``: usual punctuation, its letters without marks, its name, its number.

    >>> [next(written_otherwise(char)) for char in "\u00e9\u00f8\u2019\u00df"]
    ['e', 'o', "'", 'ss']
    >>> list(written_otherwise("\U0001f98a"))
    [' fox face ', ' U+1F98A ', ' 1F98A ']
    """
    if char in _USUAL:
        yield _USUAL[char]
    apart = unicodedata.normalize("NFKD", char)
    bare = "".join(part for part in apart if not unicodedata.combining(part))
    if bare not in ("", char):
        yield bare
    if char.casefold().isascii():
        yield char.casefold()
    name = unicodedata.name(char, "")
    if letter := _LETTER.match(name):
        yield letter["name"].title() if letter["case"] == "CAPITAL" else letter["name"].lower()
    elif name:
        yield f" {name.lower()} "
    yield f" U+{ord(char):04X} "
    yield f" {ord(char):04X} "
