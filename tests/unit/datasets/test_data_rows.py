from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.catalogue.items import Catalogue
from igd_core.datasets.interactions import Interactions
from igd_core.datasets.rows import HistoryRows, history_rows, item_frequency, newest_rows, rows_of_users
from igd_core.datasets.split import split_by_time, split_leave_one_out
from igd_core.errors import DataError

Events = list[tuple[int, float]]
events_strategy = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9).map(float)), max_size=40)


def interactions_of(events: Events) -> Interactions:
    """(user, time) pairs; an item is the position of its interaction, so that it tells which one it was."""
    return Interactions(
        user_ids=["ann", "bob", "cy", "di"],
        user=np.array([user for user, _ in events], np.int32),
        item=np.arange(len(events), dtype=np.int32),
        timestamp=np.array([time for _, time in events], np.float64),
        rating=np.arange(len(events), dtype=np.float64) / 2,
    )


def history_by_hand(events: Events, target: int, max_history: int) -> list[int]:
    user, time = events[target]
    earlier = [i for i, (other, when) in enumerate(events) if other == user and when < time]
    return sorted(earlier, key=lambda i: (events[i][1], i))[-max_history:]


@given(events_strategy, st.integers(1, 4), st.data())
def test_rows_equal_those_made_one_by_one(events: Events, max_history: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(range(len(events))))) if events else set()
    rows = history_rows(interactions_of(events), np.array(sorted(chosen), np.intp), max_history=max_history)
    by_hand = {target: history_by_hand(events, target, max_history) for target in chosen}
    expected = sorted((t for t in chosen if by_hand[t]), key=lambda t: (events[t][1], t))
    assert rows.item.tolist() == expected
    assert [rows.history(row).tolist() for row in range(len(rows))] == [by_hand[t] for t in expected]
    assert rows.user is not None
    assert rows.timestamp is not None
    assert rows.rating is not None
    assert list(zip(rows.user.tolist(), rows.timestamp.tolist(), strict=True)) == [events[t] for t in expected]
    assert rows.rating.tolist() == [t / 2 for t in expected]


@given(events_strategy)
def test_no_history_holds_anything_at_or_after_its_target(events: Events) -> None:
    interactions = interactions_of(events)
    for split_function in (split_by_time, split_leave_one_out):
        try:
            split = split_function(interactions)
        except DataError:
            continue
        for targets in (split.train, split.valid, split.test):
            rows = history_rows(interactions, targets, max_history=3)
            for row, target in enumerate(rows.item.tolist()):
                history = rows.history(row).tolist()
                assert 1 <= len(history) <= 3
                assert max(events[entry][1] for entry in history) < events[target][1]


@given(events_strategy)
def test_training_rows_hold_nothing_but_training_interactions(events: Events) -> None:
    interactions = interactions_of(events)
    for split_function in (split_by_time, split_leave_one_out):
        try:
            split = split_function(interactions)
        except DataError:
            continue
        rows = history_rows(interactions, split.train, max_history=5)
        train = set(split.train.tolist())
        assert train.issuperset(rows.item.tolist() + rows.history_item.tolist())


@given(events_strategy, st.integers(1, 4))
def test_the_newest_rows_of_each_user_are_kept_whole(events: Events, per_user: int) -> None:
    rows = history_rows(interactions_of(events), np.arange(len(events)), max_history=3)
    newest = newest_rows(rows, per_user)
    assert rows.user is not None
    users = rows.user.tolist()
    kept = [row for row, user in enumerate(users) if users[row + 1 :].count(user) < per_user]
    assert newest.item.tolist() == [int(rows.item[row]) for row in kept]
    assert newest.user is not None
    assert newest.user.tolist() == [users[row] for row in kept]
    histories = [newest.history(row).tolist() for row in range(len(newest))]
    assert histories == [rows.history(row).tolist() for row in kept]


def test_the_newest_rows_are_the_latest_wherever_they_stand() -> None:
    rows = HistoryRows(
        history_start=np.arange(5),
        history_item=np.array([9, 9, 9, 9], np.int32),
        item=np.array([3, 1, 2, 4], np.int32),
        user_ids=["a"],
        user=np.zeros(4, np.int32),
    )
    assert newest_rows(rows, 2).item.tolist() == [2, 4]
    assert newest_rows(dataclasses.replace(rows, timestamp=np.array([30, 10, 20, 5])), 2).item.tolist() == [3, 2]


def test_the_newest_rows_of_nobody_in_particular_are_an_error() -> None:
    rows = HistoryRows(history_start=np.array([0, 1]), history_item=np.zeros(1, np.int32), item=np.ones(1, np.int32))
    with pytest.raises(DataError, match="2 rows of each user are asked for, and the rows have no user_id"):
        newest_rows(rows, 2)


@given(events_strategy, st.integers(1, 5), st.integers(0, 3))
def test_rows_of_drawn_users_are_all_of_theirs(events: Events, wanted: int, seed: int) -> None:
    rows = history_rows(interactions_of(events), np.arange(len(events)), max_history=3)
    drawn = rows_of_users(rows, wanted, seed)
    assert rows.user is not None
    assert drawn.user is not None
    users = set(drawn.user.tolist())
    assert len(users) == min(wanted, len(set(rows.user.tolist())))
    assert drawn.item.tolist() == [int(rows.item[at]) for at in range(len(rows)) if int(rows.user[at]) in users]
    with pytest.raises(DataError, match="rows of 2 users are asked for, and the rows have no user_id"):
        rows_of_users(dataclasses.replace(rows, user=None), 2, 0)


def test_a_history_below_one_entry_is_refused() -> None:
    with pytest.raises(DataError, match="max_history 0"):
        history_rows(interactions_of([(0, 1.0)]), np.array([0]), max_history=0)


def test_frequency_counts_every_interaction_but_only_the_targets_of_rows() -> None:
    catalogue = Catalogue.build(item_ids=["a", "b", "c", "d"], titles=["A", "B", "C", "D"])
    interactions = Interactions(
        user_ids=["u"],
        user=np.zeros(4, np.int32),
        item=np.array([2, 0, 2, 1], np.int32),
        timestamp=np.arange(4),
    )
    rows = HistoryRows(
        history_start=np.array([0, 2, 3]),
        history_item=np.array([0, 0, 1], np.int32),
        item=np.array([2, 2], np.int32),
    )
    assert item_frequency(interactions, catalogue).tolist() == [1, 1, 2, 0]
    assert item_frequency(rows, catalogue).tolist() == [0, 0, 2, 0]
    assert item_frequency(rows, catalogue).dtype == np.int64
