"""The rule by which pointers move, against one that is told in other words: a pile of versions that nobody has left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import InputError
from igd_core.store.pointers import MAX_PAST, Pointer

VERSIONS = ["a", "b", "c", "d"]


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
            pointer = pointer.rolled_back("films", None, VERSIONS)
            left.add(before)
            assert pointer.current not in left
        else:
            with pytest.raises(InputError, match="no version was current before"):
                pointer.rolled_back("films", None, VERSIONS)
        assert pointer.current not in pointer.past
        assert len(set(pointer.past)) == len(pointer.past)
        assert not left & set(pointer.past)


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
