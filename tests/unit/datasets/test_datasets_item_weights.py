"""Weights between items, read from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from igd_core.catalogue.items import Catalogue
from igd_core.datasets.item_weights_file import read_item_weights
from igd_core.errors import DataError
from igd_core.scorers.given import GivenWeights

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "item_id,next_item_id,weight\n"


def catalogue(*ids: str) -> Catalogue:
    return Catalogue.build(item_ids=[*ids], titles=[f"Title {each}" for each in ids], frequency=np.ones(len(ids), int))


def test_rows_become_the_heaviest_weights_of_the_items_that_are_left(tmp_path: Path) -> None:
    file = tmp_path / "w.csv"
    file.write_text(HEADER + "a,b,1\na,c,3\na,d,2.5\nb,a,1e-3\nd,a,4\n")
    whole = catalogue("a", "b", "c", "d")
    maker = GivenWeights(item_ids=whole.item_ids, weights=read_item_weights(file, whole), most=1)
    rows = maker(catalogue("d", "a", "b"), [])  # c was left out, and d comes first
    found = {item: [array.tolist() for array in rows.of(item)] for item in range(3)}
    assert found == {0: [[1], [4.0]], 1: [[0], [2.5]], 2: [[1], [pytest.approx(1e-3)]]}
    assert rows.fault(3) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,b,0\n", r"w.csv: row 2: weight 0\.0 is not a number above 0"),
        ("a,b,-1\n", r"row 2: weight -1\.0 is not"),
        ("a,b,1e39\n", r"row 2: weight 1e\+39 is not"),
        ("a,b,1e-60\n", r"row 2: weight 1e-60 is not"),
        ("a,b,\n", "row 2: weight nan is not"),
        ("a,b,much\n", "row 2: weight 'much' is no number"),
        ("a,x,1\n", "row 2: next_item_id 'x' is not in the catalogue of 2 items"),
        ("x,b,1\n", "row 2: item_id 'x' is not in the catalogue of 2 items"),
        ("a,b,1\nb,a,2\na,b,3\n", "row 4: pair 'a, b' stands there before"),
        ("", "w.csv: no"),
    ],
)
def test_what_cannot_be_is_refused_by_row(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "w.csv").write_text(HEADER + rows)
    with pytest.raises(DataError, match=message):
        read_item_weights(tmp_path / "w.csv", catalogue("a", "b"))


def test_items_that_the_catalogue_lacks_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text(HEADER + "a,x,1\na,b,2\n")
    read = read_item_weights(tmp_path / "w.csv", catalogue("a", "b"), on_unknown="drop")
    assert (read.source.tolist(), read.target.tolist(), read.weight.tolist(), read.dropped) == ([0], [1], [2.0], 1)
