"""(history, target) rows: what a user chose, and what the user chose next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.exposure import Exposure
    from igd_core.datasets.interactions import Interactions, Seconds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HistoryRows:
    """Row i: the history ``history_item[history_start[i]:history_start[i + 1]]``, oldest first, then ``item[i]``.

    Attributes:
        history_start: ``(n + 1,)`` int64.
        history_item: ``(history_start[-1],)`` int32, `ItemIndex`; a history may repeat an item, or be empty.
        item: ``(n,)`` int32, `ItemIndex` of the target.
        user_ids: distinct users, or None where the source does not say who.
        user: ``(n,)`` int32, index into `user_ids`; None with it.
        timestamp: ``(n,)`` of the target, seconds since 1970, or None.
        rating: ``(n,)`` float64 of the target, NaN where missing, or None.
        exposure: what was shown with the target, or None.
    """

    history_start: NDArray[np.int64]
    history_item: NDArray[np.int32]
    item: NDArray[np.int32]
    user_ids: Sequence[str] | None = None
    user: NDArray[np.int32] | None = None
    timestamp: Seconds | None = None
    rating: NDArray[np.float64] | None = None
    exposure: Exposure | None = None

    def __len__(self) -> int:
        return len(self.item)

    def history(self, row: int) -> NDArray[np.int32]:
        """``(length,)`` int32 items of one row's history, oldest first."""
        return self.history_item[self.history_start[row] : self.history_start[row + 1]]

    @property
    def is_timed(self) -> bool:
        """Whether the rows tell whose they are, and when each target was chosen."""
        return self.user is not None and self.timestamp is not None

    def by_user_and_time(self) -> NDArray[np.intp]:
        """``(n,)`` positions, each user's together, by time where the rows tell it, and else as they stand.

        Rows of one time stay as they stand; without users, all do.
        """
        if self.user is None:
            return np.arange(len(self))
        if self.timestamp is None:
            return np.argsort(self.user, kind="stable")
        order: NDArray[np.intp] = np.lexsort((self.timestamp, self.user))
        return order

    def take(self, chosen: NDArray[np.intp]) -> HistoryRows:
        """The rows at these positions, in the given order; user codes stay."""
        histories = [self.history(int(row)) for row in chosen]
        return HistoryRows(
            history_start=np.concatenate(([0], np.cumsum([len(history) for history in histories]))).astype(np.int64),
            history_item=np.concatenate([np.empty(0, np.int32), *histories]),
            item=self.item[chosen],
            user_ids=self.user_ids,
            user=None if self.user is None else self.user[chosen],
            timestamp=None if self.timestamp is None else self.timestamp[chosen],
            rating=None if self.rating is None else self.rating[chosen],
            exposure=None if self.exposure is None else self.exposure.take(chosen),
        )


def history_rows(interactions: Interactions, targets: NDArray[np.intp], *, max_history: int) -> HistoryRows:
    """Make rows for the interactions at positions `targets`, in time order (then file order).

    A history holds the user's last `max_history` interactions STRICTLY earlier than the target. Interactions at the
    target's own timestamp are left out, wherever the file has them: their order is unknown, so they could be its
    future. A target without earlier interactions gives no row.

    A history reaches back over all splits: a test row knows what its user did in the training period.

    Raises:
        DataError: `max_history` is below 1.
    """
    if max_history < 1:
        raise DataError(f"max_history {max_history}: expected 1 or more")
    by_user = np.lexsort((interactions.timestamp, interactions.user))  # stable: ties stay in file order
    user, time = interactions.user[by_user], interactions.timestamp[by_user]
    new_user = np.ones(len(by_user), bool)
    new_user[1:] = user[1:] != user[:-1]
    new_time = new_user.copy()
    new_time[1:] |= time[1:] != time[:-1]

    # For each sorted position: where its user begins, and where the entries of its own timestamp begin.
    position = np.arange(len(by_user))
    user_begin = np.maximum.accumulate(np.where(new_user, position, 0))
    end_sorted = np.maximum.accumulate(np.where(new_time, position, 0))
    begin_sorted = np.maximum(user_begin, end_sorted - max_history)
    begin, end = np.empty_like(by_user), np.empty_like(by_user)
    begin[by_user], end[by_user] = begin_sorted, end_sorted

    kept = targets[end[targets] > begin[targets]]
    kept = kept[np.lexsort((kept, interactions.timestamp[kept]))]
    length = end[kept] - begin[kept]
    history_start = np.concatenate(([0], np.cumsum(length)))
    gather = np.repeat(begin[kept] - history_start[:-1], length) + np.arange(history_start[-1])
    rows = interactions.take(kept)
    return HistoryRows(
        history_start=history_start.astype(np.int64),
        history_item=interactions.item[by_user[gather]],
        item=rows.item,
        user_ids=rows.user_ids,
        user=rows.user,
        timestamp=rows.timestamp,
        rating=rows.rating,
        exposure=rows.exposure,
    )


def newest_rows(rows: HistoryRows, per_user: int) -> HistoryRows:
    """The last ``per_user`` rows of every user, by time where they tell it, in the given order.

    Raises:
        DataError: the rows do not say which user they are of.
    """
    if rows.user is None:
        raise DataError(f"{per_user} rows of each user are asked for, and the rows have no user_id")
    by_user = rows.by_user_and_time()
    user = rows.user[by_user]
    end = np.searchsorted(user, user, side="right")
    return rows.take(np.sort(by_user[end - np.arange(len(by_user)) <= per_user]))


def rows_of_users(rows: HistoryRows, wanted: int, seed: int) -> HistoryRows:
    """All rows of ``wanted`` users, drawn by the seed, in the given order; every row where there are no more users.

    Raises:
        DataError: the rows do not say which user they are of.
    """
    if rows.user is None:
        raise DataError(f"rows of {wanted} users are asked for, and the rows have no user_id")
    users = np.unique(rows.user)
    if wanted >= len(users):
        return rows
    drawn = users[np.random.default_rng(seed).permutation(len(users))[:wanted]]
    return rows.take(np.flatnonzero(np.isin(rows.user, drawn)))


def item_frequency(data: Interactions | HistoryRows, catalogue: Catalogue) -> NDArray[np.int64]:
    """How often each item was chosen, ``(num_items,)`` int64: interactions, or only the targets of history rows."""
    return np.bincount(data.item, minlength=len(catalogue)).astype(np.int64)
