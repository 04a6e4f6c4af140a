"""Columns of events that are not used, though they tell that a row is no purchase: what is said of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from igd_core.datasets.column_names import plain_name

if TYPE_CHECKING:
    from igd_core.datasets.column_profiles import ColumnProfile

_QUANTITIES = re.compile(
    r"(^|_)(quantity|qty|units?|pieces|pcs|count|menge|anzahl|stueck|stk|cantidad(es)?|quantite)(_|$)"
)
_UNDONE = re.compile(
    r"(?i)(?<![a-z_])(?<!not )(?<!non-)(refund|refunded|returned|cancell?ed|void|voided|failed|declined|rejected"
    r"|charge.?back|storno|storniert|erstattet|retoure?|abgelehnt|annulliert)(?![a-z_])"
)
_GOOD = frozenset({"recommended", "is_recommended", "recommend", "liked", "is_liked", "voted_up", "thumbs_up"})
_BAD = re.compile("(is_)?(returned|cancell?ed|refunded|voided|storniert)")
"""Names of columns of true and false, by what true says of the item."""
_TRUTHS, _FALSEHOODS = frozenset({"true", "yes", "1", "t", "y"}), frozenset({"false", "no", "0", "f", "n"})
_MOST_KINDS = 30
_WAY_OUT = "; export without them"


def counts_alike(profile: ColumnProfile) -> str:
    """What follows "not used" of a column that tells returns, cancellations or dislikes; empty of another."""
    name, kinds = plain_name(profile.name), sorted(set(profile.sample))
    if profile.is_number and _QUANTITIES.search(name):
        below = sum(cell.startswith("-") for cell in profile.sample)
        return f": {below / len(profile.sample):.0%} are negative, and count as purchases do{_WAY_OUT}" if below else ""
    undone = [kind for kind in kinds if _UNDONE.search(kind)] if len(kinds) <= _MOST_KINDS else []
    if undone:
        return f": rows with {undone[0]!r} count as the others do{_WAY_OUT}"
    if (
        (name in _GOOD or _BAD.fullmatch(name))
        and len(kinds) > 1
        and {kind.casefold() for kind in kinds} <= _TRUTHS | _FALSEHOODS
    ):
        against = _FALSEHOODS if name in _GOOD else _TRUTHS
        told = next(kind for kind in kinds if kind.casefold() in against)
        return f": rows with {told!r} count as the others do{_WAY_OUT}"
    return ""
