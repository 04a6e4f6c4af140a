from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.datasets.interactions import Interactions
from igd_core.datasets.split import Split, split_by_time, split_leave_one_out
from igd_core.errors import DataError

Events = list[tuple[int, int]]
events_strategy = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=60)


def interactions_of(events: Events) -> Interactions:
    """(user, time) pairs; an item is the position of its interaction, so that it tells which one it was."""
    return Interactions(
        user_ids=[f"u{user}" for user in range(5)],
        user=np.array([user for user, _ in events], np.int32),
        item=np.arange(len(events), dtype=np.int32),
        timestamp=np.array([time for _, time in events], np.int64),
    )


def parts(split: Split) -> list[list[int]]:
    return [split.train.tolist(), split.valid.tolist(), split.test.tolist()]


@given(events_strategy)
def test_split_by_time_puts_each_interaction_in_one_part_and_no_part_before_another_ends(events: Events) -> None:
    ordered = sorted(time for _, time in events)
    valid_from, test_from = ordered[len(ordered) * 8 // 10], ordered[len(ordered) * 9 // 10]
    if not ordered[0] < valid_from < test_from:
        with pytest.raises(DataError, match="would be empty"):
            split_by_time(interactions_of(events))
        return
    train, valid, test = parts(split_by_time(interactions_of(events)))
    assert sorted(train + valid + test) == list(range(len(events)))
    times = [[events[i][1] for i in part] for part in (train, valid, test)]
    assert all(times)
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])


@pytest.mark.parametrize(("held_out", "expected"), [(3, [94, 3, 3]), (10, [80, 10, 10]), (1000, [80, 10, 10])])
def test_no_more_is_held_out_than_is_asked_for_and_never_more_than_a_tenth(held_out: int, expected: list[int]) -> None:
    order = np.random.default_rng(1).permutation(100)
    split = split_by_time(interactions_of([(0, int(time)) for time in order]), held_out=held_out)
    assert [len(part) for part in parts(split)] == expected
    assert sorted(order[split.test].tolist()) == list(range(100 - expected[2], 100))


def test_split_by_time_without_ties_is_8_to_1_to_1() -> None:
    order = np.random.default_rng(0).permutation(100)
    split = split_by_time(interactions_of([(0, int(time)) for time in order]))
    assert [len(part) for part in parts(split)] == [80, 10, 10]
    assert sorted(order[split.test].tolist()) == list(range(90, 100))


def test_a_tie_across_the_border_falls_wholly_in_the_later_part() -> None:
    times = [0, 1, 2, 3, 4, 5, 6, 7, 7, 9]  # the border at 8 of 10 lies inside the pair of sevens
    assert parts(split_by_time(interactions_of([(0, time) for time in times]))) == [list(range(7)), [7, 8], [9]]


@pytest.mark.parametrize("events", [[(0, 1)], [(0, 1)] * 50, [(0, 1)] * 50 + [(0, 2)] * 50])
def test_interactions_that_leave_a_part_empty_are_refused(events: Events) -> None:
    with pytest.raises(DataError, match="distinct timestamps cannot be split"):
        split_by_time(interactions_of(events))


@given(events_strategy)
def test_leave_one_out_equals_sorting_each_user_by_hand(events: Events) -> None:
    expected: list[list[int]] = [[], [], []]
    for user in range(5):
        mine = sorted((i for i, event in enumerate(events) if event[0] == user), key=lambda i: (events[i][1], i))
        cut = len(mine) - 2 if len(mine) >= 3 else len(mine)
        expected[0] += mine[:cut]
        expected[1] += mine[cut : cut + 1]
        expected[2] += mine[cut + 1 :]
    if not expected[2]:
        with pytest.raises(DataError, match="three interactions"):
            split_leave_one_out(interactions_of(events))
        return
    assert parts(split_leave_one_out(interactions_of(events))) == [sorted(part) for part in expected]
