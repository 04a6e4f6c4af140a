"""Metrics against RecTools, and where they have no value."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from rectools.metrics import NDCG, CatalogCoverage, HitRate

from igd_core.evaluation.metrics import (
    coverage,
    discounted_gains,
    hits,
    mean_over_list,
    popularity_lift,
    target_ranks,
)

ROWS, ITEMS, DEPTH = 60, 15, 10


@pytest.fixture(scope="module")
def lists() -> np.ndarray:
    """Random lists, some of them short, one empty."""
    rng = np.random.default_rng(3)
    made = np.array([rng.permutation(ITEMS)[:DEPTH] for _ in range(ROWS)])
    for row in range(0, ROWS, 4):
        made[row, row % DEPTH :] = -1
    return made


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    return np.random.default_rng(4).integers(0, ITEMS, ROWS)


def _frames(lists: np.ndarray, target: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    row, place = np.nonzero(lists >= 0)
    recommended = pd.DataFrame({"user_id": row, "item_id": lists[row, place], "rank": place + 1})
    return recommended, pd.DataFrame({"user_id": np.arange(len(target)), "item_id": target})


@pytest.mark.parametrize("k", [1, 5, 10])
def test_hit_rate_and_ndcg_equal_rectools(lists: np.ndarray, target: np.ndarray, k: int) -> None:
    recommended, chosen = _frames(lists, target)
    rank = target_ranks(lists, target)
    assert hits(rank, k).mean() == pytest.approx(HitRate(k=k).calc(recommended, chosen), abs=1e-12)
    expected = NDCG(k=k, divide_by_achievable=True).calc(recommended, chosen)
    assert discounted_gains(rank, k).mean() == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


@pytest.mark.parametrize("k", [1, 5])
def test_coverage_equals_rectools(lists: np.ndarray, target: np.ndarray, k: int) -> None:
    recommended, _ = _frames(lists, target)
    expected = CatalogCoverage(k=k).calc(recommended, catalog=list(range(40)))
    assert coverage(lists, k, 40) == pytest.approx(expected / (40 if expected > 1 else 1))


def test_a_target_that_no_catalogue_holds_is_no_hit_in_a_short_list() -> None:
    assert target_ranks(np.array([[4, -1]]), np.array([-1])).tolist() == [0]


def test_an_empty_list_has_no_popularity_and_covers_nothing() -> None:
    empty = np.full((2, 3), -1)
    assert np.isnan(mean_over_list(np.ones(5), empty, 3)).all()
    assert coverage(empty, 3, 5) == 0.0


def test_lift_over_targets_that_were_never_seen_has_no_value() -> None:
    assert math.isnan(popularity_lift(3.0, 0.0))
