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


def test_a_coverage_lies_inside_its_interval() -> None:
    """Quantiles of resampled coverages would not hold it: a resample shows fewer rows."""
    lists = np.random.default_rng(1).integers(0, 300, size=(100, 5))
    value = coverage(lists, 5, 300)
    found = coverage_interval(value, lists, total=300, resampling=Resampling(resamples=100))
    assert 0 < found.low < value < found.high <= 1
    nothing = coverage_interval(0.0, np.full((3, 2), -1), total=9, resampling=Resampling(resamples=100))
    assert (nothing.low, nothing.high) == (0.0, 0.0)
