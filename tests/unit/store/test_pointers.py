"""The rule by which pointers move, against one that is told in other words: a pile of versions that nobody has left."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import InputError
from igd_core.store.pointers import MAX_PAST, Pointer, PointerMove
from igd_core.store.trials import Trial, TrialState

VERSIONS = ["a", "b", "c", "d"]
OPEN = dict.fromkeys(VERSIONS, Trial())
STATES: tuple[TrialState, ...] = get_args(TrialState)


@given(st.lists(st.one_of(st.sampled_from(VERSIONS), st.none()), max_size=12))
def test_rolling_back_without_a_name_never_returns_to_what_a_roll_back_left(moves: list[str | None]) -> None:
    """A letter is published (again), None is a roll-back."""
    pointer, left = Pointer(), set[str | None]()
    for move in moves:
        before = pointer.current
        if move is not None:
            pointer = pointer.moved_to(move)
            left.discard(move)
            assert pointer.current == move
            assert pointer.previous == (before if before != move else pointer.previous)
        elif pointer.past:
            pointer = pointer.rolled_back("films", None, OPEN)
            left.add(before)
            assert pointer.current not in left
        else:
            with pytest.raises(InputError, match="no version was current before"):
                pointer.rolled_back("films", None, OPEN)
        assert pointer.current not in pointer.past
        assert len(set(pointer.past)) == len(pointer.past)
        assert not left & set(pointer.past)


@given(st.permutations(VERSIONS), st.lists(st.sampled_from(STATES), min_size=4, max_size=4), st.sets(st.integers(0, 3)))
def test_a_roll_back_goes_to_the_latest_before_that_servers_take_and_says_what_it_passed_by(
    order: list[str], states: list[TrialState], pruned: set[int]
) -> None:
    """``order`` is published one by one; then some are found bad, and some that are not current are pruned."""
    pointer = Pointer()
    for version in order:
        pointer = pointer.moved_to(version)
    trials = {
        version: Trial(state=state, holder="server-1")
        for number, (version, state) in enumerate(zip(order, states, strict=True))
        if number not in pruned or version == order[-1]
    }
    walked: list[str] = []
    for version in reversed(order[:-1]):
        if version not in trials:
            continue
        if trials[version].state != "died":
            after = pointer.rolled_back("films", None, trials)
            move = PointerMove.between(pointer, after, trials)
            assert (after.current, move.version, pointer.returns_to(trials)) == (version,) * 3
            assert (move.before, list(move.passed_by)) == (order[-1], walked)
            assert not move.trial.bars
            assert not {order[-1], *walked} & set(after.past)
            return
        walked.append(version)
    assert pointer.returns_to(trials) is None
    with pytest.raises(InputError) as caught:
        pointer.rolled_back("films", None, trials)
    assert all(version in str(caught.value) for version in walked)
    assert ("igd allow --catalogue films --version VERSION" in str(caught.value)) == bool(walked)


def test_what_a_pointer_remembers_is_bounded() -> None:
    pointer = Pointer()
    for number in range(MAX_PAST + 5):
        pointer = pointer.moved_to(f"v{number}")
    assert pointer.past == tuple(f"v{number}" for number in range(4, MAX_PAST + 4))


@pytest.mark.parametrize(
    ("previous", "past", "expected"),
    [
        (None, None, ()),
        ("a", None, ("a",)),
        ("b", "a b", ("a", "b")),
        ("c", "a b", ("c",)),  # another release has moved it since
        (None, "a b", ()),
    ],
)
def test_a_pointer_that_another_release_moved_is_read_by_what_that_release_keeps(
    previous: str | None, past: str | None, expected: tuple[str, ...]
) -> None:
    assert Pointer.read("z", previous, past) == Pointer(current="z", past=expected)
