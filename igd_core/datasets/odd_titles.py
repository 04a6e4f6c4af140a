"""Titles that a catalogue may hold and a person should look at: placeholders, markup, broken text, control tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from igd_core.catalogue.items import Catalogue

_MOST_CHARS = 200
_PLACEHOLDERS = frozenset({"n/a", "na", "null", "none", "nan", "unknown", "untitled", "test", "tbd", "todo", "title"})
_REASONS: Final = (
    ("spells a control token, and is read as plain text", re.compile(r"<\|[^|>]{1,40}\|>|</?s>|\[(?:INST|PAD|MASK)\]")),
    ("holds markup", re.compile(r"</?[A-Za-z][^<>]*>")),
    ("holds a web address", re.compile(r"https?://|www\.")),
    ("was read in another encoding than it was written in", re.compile(r"\ufffd|Ã[\x80-\xbf]|â€")),
    ("has neither a letter nor a digit", re.compile(r"^[\W_]+$")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OddTitle:
    """A title, and what is odd about it; `item` is its row in the catalogue."""

    item: int
    reason: str


def odd_titles(catalogue: Catalogue) -> Iterator[OddTitle]:
    """Every odd title, with the first reason that applies."""
    for item, (item_id, title) in enumerate(zip(catalogue.item_ids, catalogue.titles, strict=True)):
        reason = _reason(item_id, title)
        if reason is not None:
            yield OddTitle(item=item, reason=reason)


def _reason(item_id: str, title: str) -> str | None:
    found = next((reason for reason, pattern in _REASONS if pattern.search(title)), None)
    if found is not None:
        return found
    if title.casefold() in _PLACEHOLDERS:
        return "is a placeholder"
    if title == item_id:
        return "is the item's id"
    return f"is longer than {_MOST_CHARS} characters" if len(title) > _MOST_CHARS else None
