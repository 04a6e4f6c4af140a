"""Weights that somebody brought, as the rows of a scorer."""

from __future__ import annotations

import numpy as np
import pytest

from igd_core.catalogue.items import Catalogue
from igd_core.datasets.item_weights_file import ItemWeights
from igd_core.scorers.given import GivenWeights


def catalogue(*item_ids: str) -> Catalogue:
    return Catalogue.build(item_ids=list(item_ids), titles=list(item_ids), frequency=np.ones(len(item_ids), np.int64))


def test_rows_are_those_of_the_items_that_are_left_with_the_heaviest_of_each() -> None:
    read = catalogue("a", "b", "c", "d")
    weights = ItemWeights(
        source=np.array([0, 0, 0, 1, 3], np.int32),
        target=np.array([1, 2, 3, 0, 2], np.int32),
        weight=np.array([0.5, 9.0, 2.0, 1.0, 3.0]),
        dropped=0,
    )
    left = catalogue("d", "a", "b")  # c is left out, and the rows are others
    made = GivenWeights(item_ids=read.item_ids, weights=weights, most=1)(left, [np.array([0, 1], np.int32)])
    found = {
        left.item_ids[item]: [(left.item_ids[other], weight) for other, weight in zip(*made.of(item), strict=True)]
        for item in range(3)
    }
    assert found == {"d": [], "a": [("d", pytest.approx(2.0))], "b": [("a", pytest.approx(1.0))]}
