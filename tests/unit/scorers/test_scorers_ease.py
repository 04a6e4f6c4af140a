"""EASE against its definition: for each item a ridge regression on all others, solved one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import CatalogueError, InputError
from igd_core.scorers import ease
from igd_core.scorers.ease import ease_rows
from igd_core.scorers.options import ScorerOptions
from igd_core.scorers.record import ScorerRecord

NUM_ITEMS = 7
SEQUENCES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6), max_size=8)


def regressions(sequences: list[list[int]], ridge: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """``B[i, j]``: what having chosen i says of j, from the least squares of column j on the other columns."""
    chosen = np.zeros((len(sequences), NUM_ITEMS))
    for person, sequence in enumerate(sequences):
        chosen[person, sequence] = 1.0
    weights = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for target in range(NUM_ITEMS):
        others = [item for item in range(NUM_ITEMS) if item != target]
        # The ridge as rows of data: sqrt(ridge) times each weight is to be 0.
        data = np.vstack([chosen[:, others], np.sqrt(ridge) * np.eye(len(others))])
        wanted = np.concatenate([chosen[:, target], np.zeros(len(others))])
        weights[others, target] = np.linalg.lstsq(data, wanted)[0]
    return weights


@given(sequences=SEQUENCES, ridge=st.sampled_from([0.1, 1.0, 30.0]), most=st.integers(1, NUM_ITEMS))
def test_weights_are_those_of_a_ridge_regression_on_all_other_items(
    sequences: list[list[int]], ridge: float, most: int
) -> None:
    rows = ease_rows([np.array(each, np.int32) for each in sequences], num_items=NUM_ITEMS, most=most, ridge=ridge)
    assert rows.fault(NUM_ITEMS) is None
    expected = np.maximum(regressions(sequences, ridge), 0.0)
    for item in range(NUM_ITEMS):
        found, weight = rows.of(item)
        assert item not in found
        assert weight == pytest.approx(expected[item, found], abs=1e-6)
        left_out = np.delete(expected[item], found)
        assert left_out.max() <= (weight.min() if len(found) == most else 0.0) + 1e-6


def test_items_that_nobody_chose_have_no_weights_and_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MAX_EASE_ITEMS", 2)
    rows = ease_rows([np.array([4, 900_000], np.int32)], num_items=1_000_000, most=3, ridge=1.0)
    assert [rows.of(item)[0].tolist() for item in (4, 900_000, 5)] == [[900_000], [4], []]


def test_more_items_than_an_inverse_can_be_made_of_are_refused_with_the_bound() -> None:
    with pytest.raises(CatalogueError, match=r"ease: 20,001 items were chosen; at most 20,000 can be, .* 12\.8 GB"):
        ease_rows([np.array([item], np.int32) for item in range(20_001)], num_items=20_001, most=1, ridge=1.0)


def test_a_matrix_that_does_not_fit_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np.linalg, "inv", none_left)
    with pytest.raises(CatalogueError, match=r"scorer ease: 2 items need 0\.0 GB of memory"):
        ease_rows([np.array([0, 1], np.int32)], num_items=2, most=1, ridge=1.0)


def test_the_ridge_is_a_checked_setting_of_ease_alone() -> None:
    assert (
        ScorerRecord.of(ScorerOptions(kind="ease"), 0).ridge
        == ScorerRecord.of(ScorerOptions(kind="ease", ridge=500), 0).ridge
    )
    with pytest.raises(InputError, match=r"^ridge: 0\.0 is not in 0\.001\.\.1e\+06$"):
        ScorerOptions.read({"kind": "ease", "ridge": 0.0})
    with pytest.raises(CatalogueError, match=r"scorer\.ridge is 5\.0; neighbours has none"):
        ScorerRecord.of(ScorerOptions(kind="neighbours", ridge=5), 0)
