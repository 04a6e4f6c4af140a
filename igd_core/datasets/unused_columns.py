"""Columns of events that are not used, though they tell that a row is no purchase: what is said of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from igd_core.datasets.column_names import plain_name

if TYPE_CHECKING:
    from igd_core.datasets.column_profiles import ColumnProfile

_QUANTITIES = re.compile(r"(^|_)(quantity|qty|units?|pieces|menge|anzahl|stueck|cantidad|quantite)(_|$)")
_UNDONE = re.compile("(?i)refund|return|cancel|void|fail|declin|reject|charge.?back|storn|erstatt|retour|abgelehnt")
_JUDGED = re.compile(r"recommend|like|vote|thumb|return|cancel|refund|storn")
_TRUTHS = frozenset({"true", "false", "yes", "no", "0", "1", "t", "f", "y", "n"})
_MOST_KINDS = 30


def counts_alike(profile: ColumnProfile) -> str:
    """What follows "not used" of a column that tells returns, cancellations or dislikes; empty of another."""
    name, kinds = plain_name(profile.name), sorted(set(profile.sample))
    if profile.is_number and _QUANTITIES.search(name):
        below = sum(cell.startswith("-") for cell in profile.sample)
        return f": {below / len(profile.sample):.0%} are negative, and count as purchases do{_WAY_OUT}" if below else ""
    undone = [kind for kind in kinds if _UNDONE.search(kind)] if len(kinds) <= _MOST_KINDS else []
    if undone:
        return f": rows with {undone[0]!r} count as the others do{_WAY_OUT}"
    if _JUDGED.search(name) and len(kinds) > 1 and {kind.casefold() for kind in kinds} <= _TRUTHS:
        return f": rows with {kinds[0]!r} count as those with {kinds[-1]!r}{_WAY_OUT}"
    return ""


_WAY_OUT = "; export without them"
