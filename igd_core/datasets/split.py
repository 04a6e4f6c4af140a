"""Split interactions into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from igd_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.datasets.interactions import Interactions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Every interaction in exactly one part.

    Attributes:
        train: ``(n_train,)`` intp, ascending positions in the interactions.
        valid: as ``train``.
        test: as ``train``.
    """

    train: NDArray[np.intp]
    valid: NDArray[np.intp]
    test: NDArray[np.intp]


def split_as(
    how: Literal["time", "leave-one-out"], interactions: Interactions, *, held_out: int | None = None
) -> Split:
    """Split by the function of this name: `split_by_time`, with ``held_out``, or `split_leave_one_out`.

    Raises:
        DataError: these interactions cannot be split this way.
    """
    return split_by_time(interactions, held_out=held_out) if how == "time" else split_leave_one_out(interactions)


def split_by_time(interactions: Interactions, *, held_out: int | None = None) -> Split:
    """Split at two instants that hold for all users, so that no part knows the future of another.

    The instants are where the sorted interactions reach 80 % and 90 %; or later, where that leaves ``held_out`` of them
    for validation and as many for test: what a model is not trained on need not grow with a shop's years. All of one
    timestamp go to one part, the later one, so every train timestamp < every valid timestamp < every test timestamp.

    Raises:
        DataError: a part would be empty: too few interactions, or too few distinct timestamps.
    """
    time = interactions.timestamp
    if len(time):
        places = [len(time) * 8 // 10, len(time) * 9 // 10]
        if held_out is not None:
            places = [max(places[0], len(time) - 2 * held_out), max(places[1], len(time) - held_out)]
        valid_from, test_from = np.sort(time)[places]
        valid = (time >= valid_from) & (time < test_from)
        split = Split(
            train=np.flatnonzero(time < valid_from), valid=np.flatnonzero(valid), test=np.flatnonzero(time >= test_from)
        )
        if len(split.train) and len(split.valid):
            return split
    distinct = len(np.unique(time))
    raise DataError(
        f"{len(time)} interactions at {distinct} distinct timestamps cannot be split by time 8:1:1: "
        "training or validation would be empty"
    )


def split_leave_one_out(interactions: Interactions) -> Split:
    """Each user's last interaction is test, the one before it valid, the rest train.

    Order is by time, then file order. Users with fewer than three interactions are all train. Another user's training
    interactions may be later than a test one, by the definition of leave-one-out; `split_by_time` has no such overlap.

    Raises:
        DataError: no user has three interactions.
    """
    by_user = np.lexsort((interactions.timestamp, interactions.user))
    user = interactions.user[by_user]
    count = np.bincount(user, minlength=1)
    from_last = np.cumsum(count)[user] - 1 - np.arange(len(user))
    enough = count[user] >= 3
    part = np.zeros(len(user), np.int8)
    part[by_user] = np.where(enough & (from_last == 0), 2, np.where(enough & (from_last == 1), 1, 0))
    if not part.any():
        raise DataError("leave-one-out needs a user with three interactions: none has")
    return Split(train=np.flatnonzero(part == 0), valid=np.flatnonzero(part == 1), test=np.flatnonzero(part == 2))
