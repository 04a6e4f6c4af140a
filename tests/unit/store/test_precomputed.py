"""Lists made in advance, as stores keep them: what is read is what was written, or nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.store.precomputed import PrecomputedList, newest_of

_ITEMS = st.lists(
    st.tuples(st.text(min_size=1, max_size=20), st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=5,
)


def made(at: int = 1, catalogue: str = "films") -> PrecomputedList:
    return PrecomputedList(
        catalogue=catalogue, version="v", model_fingerprint="f", made_at_ms=at, item_ids=("a", "b"), scores=(-1.0, -2.5)
    )


@given(_ITEMS, st.text(), st.integers(0, 253_402_300_799_999))
def test_it_comes_back_as_it_was(items: list[tuple[str, float]], text: str, at: int) -> None:
    ids, scores = zip(*items, strict=True)
    written = PrecomputedList(
        catalogue=text, version=text, model_fingerprint=text, made_at_ms=at, item_ids=ids, scores=scores
    )
    try:
        record = written.packed()
    except UnicodeEncodeError:  # lone surrogates, which no store takes
        return
    assert PrecomputedList.unpacked(record) == written


@pytest.mark.parametrize(
    "change",
    [
        {0: 2},
        {1: 7},
        {4: "now"},
        {4: True},
        {4: -1},
        {4: 10**18},
        {5: []},
        {5: ["a"]},
        {5: ["a", 3]},
        {5: ["a", ""]},
        {5: ["a", "x" * 10_000]},
        {5: "ab"},
        {6: [1.0, "2"]},
        {6: [1.0, float("nan")]},
        {6: [1.0, float("inf")]},
        {6: [1.0, True]},
    ],
)
def test_what_is_none_is_passed_over(change: dict[int, object]) -> None:
    fields = json.loads(made().packed())
    for place, value in change.items():
        fields[place] = value
    assert PrecomputedList.unpacked(json.dumps(fields).encode()) is None


@pytest.mark.parametrize(
    "record", [b"", b"null", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'[1,"a","b","c",1,["x"],[1.0],9]']
)
def test_so_is_what_is_no_record(record: bytes) -> None:
    assert PrecomputedList.unpacked(record) is None


def test_the_newest_of_the_catalogue_counts() -> None:
    records = [made(5).packed(), made(9).packed(), b"odd", made(7).packed(), made(11, "books").packed()]
    assert newest_of(records, "films") == made(9)
    assert newest_of(records, "songs") is None
