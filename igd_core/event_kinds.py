"""Kinds of events: what a user did with an item, and what that says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

UNSAID_KIND = "click"
"""The kind of an event that names none: the user chose the item. All events were so before they had kinds."""
KINDS = ("view", "click", "cart", "buy", "rating", "skip")
"""The kinds that a server knows unless it is told others."""
HISTORY_KINDS = ("click", "cart", "buy", "rating")
"""Of these, those that make a history."""
SUCCESS_KINDS = ("click", "cart", "buy")
"""Of these, those that count as a success of the answer that showed the item."""
MAX_KINDS = 32
KIND = r"^[a-z][a-z0-9_-]{0,31}$"
"""What names a kind."""

_KIND = re.compile(KIND)


def is_kind(text: str) -> bool:
    """Whether ``text`` can name a kind: a lower-case letter, then up to 31 of them, digits, ``_`` and ``-``."""
    return _KIND.match(text) is not None and not text.endswith("\n")


def steps(chosen: Iterable[tuple[str, str]]) -> list[int]:
    """Where each step of a history begins, given (item id, kind) of its events, oldest first.

    Neighbours on one item whose kinds all differ are one step: who clicks on a film, puts it into the cart and buys it
    has chosen once. An event of a kind that the step has already begins another: two clicks are two steps.
    """
    begins: list[int] = []
    item: str | None = None
    kinds: set[str] = set()
    for position, (item_id, kind) in enumerate(chosen):
        if item_id == item and kind not in kinds:
            kinds.add(kind)
            continue
        item, kinds = item_id, {kind}
        begins.append(position)
    return begins
