"""Events that were read and that a person should look at: a line a kind, with its first rows. All of them count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from igd_core.catalogue.items import item_id_fault
from igd_core.datasets.faults import SHOWN_ROWS, shown, told_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.datasets.interactions import Interactions
    from igd_core.datasets.row_places import RowPlaces

_MOST_FAR = 0.01
_MOST_OF_ONE = 0.1
_CROWD = 200
_MOST_CROWDED = 3
_NO_PERSON = frozenset(
    {"na", "n/a", "nan", "null", "none", "nil", "undefined", "(not set)", "not set", "unknown", "guest", "anonymous"}
)
"""What files write where nobody is known."""


def suspect_events(
    name: str, events: Interactions, rows: NDArray[np.int64], places: RowPlaces, item_ids: Sequence[str]
) -> list[str]:
    """A line for each kind.

    Args:
        name: of the file.
        events: n of them.
        rows: ``(n,)`` int64; their numbers.
        places: where the rows stand.
        item_ids: of the catalogue.
    """

    def told(what: str, at: NDArray[np.intp], values: Sequence[object]) -> list[str]:
        return told_rows(f"{name}: {what}", places, rows[at], values)

    odd: dict[str, list[int]] = {}
    for code, user_id in enumerate(events.user_ids):
        if reason := item_id_fault(user_id):
            odd.setdefault(reason, []).append(code)
    lines = []
    for reason, codes in odd.items():
        at = np.flatnonzero(np.isin(events.user, codes))
        first = [events.user_ids[code] for code in events.user[at[:SHOWN_ROWS]].tolist()]
        lines += told(f"user_id {reason}, and is another person than without", at, first)
    lines += _crowded(name, events)
    at = repeated(events)
    first = [item_ids[item] for item in events.item[at[:SHOWN_ROWS]].tolist()]
    lines += told("the same person, item and time as on an earlier row, and counted again", at, first)
    if events.rating is not None:
        at, low, high = far_ratings(events.rating)
        lines += told(f"rating far from the others ({low:g} to {high:g})", at, events.rating[at[:SHOWN_ROWS]].tolist())
        at = np.flatnonzero((events.rating <= 0) & (high > 1))  # of 0 and 1, or shares, 0 is no sign of a gap
        first = events.rating[at[:SHOWN_ROWS]].tolist()
        lines += told("rating of 0 or less, where the row counts as any other", at, first)
    return lines


def _crowded(name: str, events: Interactions) -> list[str]:
    """A line for each person who is probably none: what files write for a missing one, or with very many rows."""
    count = np.bincount(events.user, minlength=len(events.user_ids))
    lines = []
    for code in np.argsort(-count, kind="stable")[:_MOST_CROWDED].tolist():
        share, user_id = count[code] / len(events), events.user_ids[code]
        no_name = user_id.strip().casefold() in _NO_PERSON
        if (share > _MOST_OF_ONE and count[code] > _CROWD) or (no_name and count[code] > 1):
            of = f"{count[code]:,} of {len(events):,} rows ({share:.0%})"
            lines.append(f"{name}: user_id {shown(user_id)} has {of}, all taken for one person's")
    return lines


def repeated(events: Interactions) -> NDArray[np.intp]:
    """Positions of events that say what an earlier one in the file says, ascending."""
    order = np.lexsort((events.timestamp, events.item, events.user))  # stable: equal ones stay in file order
    same = np.ones(max(0, len(order) - 1), bool)
    for column in (events.user, events.item, events.timestamp):
        same &= column[order[1:]] == column[order[:-1]]
    return np.sort(order[1:][same])


def far_ratings(ratings: NDArray[np.float64]) -> tuple[NDArray[np.intp], float, float]:
    """Positions of the few ratings that lie further from the others than these from each other, and the others' range.

    >>> import numpy as np
    >>> far_ratings(np.array([1.0, 5, 4, 3, 2] * 100 + [500.0]))
    (array([500]), 1.0, 5.0)
    """
    known = ratings[~np.isnan(ratings)]
    if not len(known):
        return np.empty(0, np.intp), 0.0, 0.0
    low, high = np.quantile(known, [_MOST_FAR / 2, 1 - _MOST_FAR / 2], method="closest_observation").tolist()
    at = np.flatnonzero((ratings < low - (high - low)) | (ratings > high + (high - low))) if high > low else np.empty(0)
    return at.astype(np.intp), low, high
