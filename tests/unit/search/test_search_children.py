"""The best children of each node, against sorting every row by itself."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from igd_core.search.children import best_of_rows

SCORES = st.sampled_from([-3.0, -1.5, -1.0, -0.5, 0.0])  # few, so that many tie


@given(rows=st.lists(st.tuples(st.lists(SCORES, max_size=12), st.integers(1, 5)), max_size=8))
def test_each_row_keeps_its_best_in_order_and_ties_as_they_stood(rows: list[tuple[list[float], int]]) -> None:
    scores = [score for row, _ in rows for score in row]
    expected, start = [], 0
    for row, keep in rows:
        expected += [start + place for place in sorted(range(len(row)), key=lambda place: -row[place])[:keep]]
        start += len(row)
    of_row = np.repeat(np.arange(len(rows)), [len(row) for row, _ in rows]).astype(np.int64)
    keeps = np.array([keep for _, keep in rows], dtype=np.int64)
    assert best_of_rows(of_row, np.array(scores, dtype=np.float64), keeps).tolist() == expected
