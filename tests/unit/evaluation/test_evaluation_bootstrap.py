"""Intervals: paired, seeded, and about as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest

from igd_core.evaluation.bootstrap import Interval, Resampling, coverage_interval
from igd_core.evaluation.metrics import coverage


def test_the_spread_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    draws = Resampling(resamples=4000, seed=1).means(values)
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.05)
    found = Interval.of(values.mean(), draws[:, 0])
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_differences_of_columns_are_of_the_same_rows() -> None:
    """Two methods that differ by a constant differ by it in every draw, however noisy each is."""
    noisy = np.random.default_rng(0).normal(scale=100.0, size=50)
    draws = Resampling(resamples=200, seed=2).means(np.column_stack([noisy, noisy + 0.5]))
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.5, atol=1e-9)


def test_the_seed_decides_the_draws() -> None:
    values = np.arange(20, dtype=np.float64)[:, None]
    first, again = Resampling(resamples=100, seed=5).means(values), Resampling(resamples=100, seed=5).means(values)
    np.testing.assert_array_equal(first, again)
    assert (first != Resampling(resamples=100, seed=6).means(values)).any()


def test_rows_without_a_value_do_not_count() -> None:
    values = np.array([[1.0], [np.nan], [1.0], [np.nan]])
    draws = Resampling(resamples=300, seed=0).means(values)
    assert set(draws[np.isfinite(draws)]) == {1.0}


def test_an_interval_without_a_finite_draw_has_no_ends() -> None:
    found = Interval.of(float("nan"), np.array([np.nan, np.nan]))
    assert np.isnan([found.low, found.high]).all()


def test_rows_in_groups_of_one_are_drawn_as_rows() -> None:
    values = np.random.default_rng(0).normal(size=(30, 2))
    apart = Resampling(resamples=150, seed=4, groups=np.arange(30))
    alone = Resampling(resamples=150, seed=4)
    for drawn, expected in zip(apart.weights(30), alone.weights(30), strict=True):
        np.testing.assert_array_equal(drawn, expected)
    # Means are matrix products, whose last bit is the machine's: it may depend on how the weights lie in memory.
    np.testing.assert_allclose(apart.means(values), alone.means(values), rtol=1e-12)


def test_a_group_is_drawn_whole_and_a_mean_is_over_the_rows_that_came() -> None:
    groups = np.array([0, 1, 1, 2, 2, 2])
    values = np.array([1.0, 10.0, 30.0, 500.0, 100.0, 300.0])[:, None]
    sums, sizes = np.array([1.0, 40.0, 900.0]), np.array([1, 2, 3])
    rng = np.random.default_rng(7)
    expected = [[sums[drawn].sum() / sizes[drawn].sum()] for drawn in rng.integers(0, 3, size=(64, 3))]
    np.testing.assert_allclose(Resampling(resamples=64, seed=7, groups=groups).means(values), expected)


def test_a_part_of_the_rows_keeps_its_groups() -> None:
    whole = Resampling(resamples=64, seed=2, groups=np.array([0, 1, 1, 2, 3, 3]))
    part = whole.of(np.array([False, True, True, False, True, False]))
    values = np.array([1.0, 2.0, 9.0])[:, None]
    alone = Resampling(resamples=64, seed=2, groups=np.array([0, 0, 1]))
    np.testing.assert_allclose(part.means(values), alone.means(values), rtol=1e-12)
    assert Resampling(seed=2).of(np.array([True, False])).groups is None


def test_copies_of_a_row_are_one_witness() -> None:
    """Forty rows that ask for one title and are all found make a mean certain only if each counts as a new row."""
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.choice([-1.0, 1.0], size=160), np.ones(40)])[:, None]
    groups = np.append(np.arange(160), np.full(40, 160))
    by_row = Interval.of(values.mean(), Resampling(groups=None).means(values)[:, 0])
    by_group = Interval.of(values.mean(), Resampling(groups=groups).means(values)[:, 0])
    assert by_row.low > 0
    assert by_group.low < 0 < by_group.high


def test_a_coverage_lies_inside_its_interval() -> None:
    """Quantiles of resampled coverages would not hold it: a resample shows fewer rows."""
    lists = np.random.default_rng(1).integers(0, 300, size=(100, 5))
    value = coverage(lists, 5, 300)
    found = coverage_interval(value, lists, total=300, resampling=Resampling(resamples=100))
    assert 0 < found.low < value < found.high <= 1
    nothing = coverage_interval(0.0, np.full((3, 2), -1), total=9, resampling=Resampling(resamples=100))
    assert (nothing.low, nothing.high) == (0.0, 0.0)
