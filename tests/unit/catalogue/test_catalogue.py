from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.catalogue.item_rows import ItemRows
from igd_core.catalogue.items import Catalogue, MetadataValue, prior
from igd_core.catalogue.packed_texts import PackedTexts
from igd_core.errors import CatalogueError


def test_an_index_leads_to_its_item_and_an_unknown_id_to_none() -> None:
    catalogue = Catalogue.build(item_ids=["007", "7", "a b"], titles=["Bond", "Seven", "Seven"])
    assert [catalogue.index_of(item_id) for item_id in catalogue.item_ids] == [0, 1, 2]
    assert catalogue.index_of("07") is None
    assert len(catalogue) == 3
    assert catalogue.texts == catalogue.titles
    assert catalogue.frequency.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_ids": [], "titles": []}, "no items"),
        ({"item_ids": ["a", "a"]}, "'a': this id stands on more than one row"),
        ({"item_ids": ["", "b"]}, "its id is empty"),
        ({"item_ids": ["a", "b" * 257]}, "its id has more than 256 characters"),
        ({"item_ids": [" a", "b"]}, "' a'.* white space"),
        ({"item_ids": ["a", "b\x00c"]}, "invisible"),
        ({"item_ids": ["a", "b\u202ec"]}, "invisible"),
        ({"item_ids": ["a"]}, "titles: 2 values for 1 items"),
        ({"titles": ["A", " "]}, "'b': empty title"),
        ({"titles": ["A", "B\nC"]}, "'b': title .* one trimmed line"),
        ({"texts": ["A", "B\u2028C"]}, "'b': text .* one trimmed line"),
        ({"texts": ["A", ""]}, "'b': empty text"),
        ({"frequency": np.array([1, -2])}, "-2 at item row 1"),
        ({"frequency": np.array([1.0, 2.0])}, "float64"),
        ({"frequency": np.array([1])}, "frequency: 1 values for 2 items"),
        ({"metadata": {"year": [1]}}, "'year': 1 values for 2 items"),
        ({"metadata": {"": [1, 2]}}, "needs a name"),
        ({"metadata": {"title": ["x", "y"]}}, "other than item_id and title"),
        ({"metadata": {"price": [1.0, float("nan")]}}, "'b': price nan"),
        ({"metadata": {"genres": [("x",), ("y", 3)]}}, "'b': genres"),
        ({"metadata": {"genres": [["x"], None]}}, "'a': genres"),
    ],
)
def test_what_cannot_be_a_catalogue_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        Catalogue.build(**({"item_ids": ["a", "b"], "titles": ["A", "B"]} | change))


def test_an_id_of_256_unicode_characters_stands() -> None:
    assert Catalogue.build(item_ids=["é" * 256], titles=["x"]).index_of("é" * 256) == 0


def test_every_kind_of_metadata_value_is_kept() -> None:
    columns: dict[str, list[MetadataValue]] = {
        "year": [1995, None],
        "price": [9.5, 1.0],
        "new": [True, False],
        "genres": [("a", "b"), ()],
    }
    built = Catalogue.build(item_ids=["a", "b"], titles=["A", "B"], metadata=columns)
    assert built.metadata == {name: tuple(column) for name, column in columns.items()}


def test_a_new_frequency_leaves_the_old_catalogue_and_the_given_array_alone() -> None:
    cold = Catalogue.build(item_ids=["a", "b"], titles=["A", "B"])
    counts = np.array([3, 1], np.int64)
    warm = cold.with_frequency(counts)
    counts[0] = 99
    assert warm.frequency.tolist() == [3, 1]
    assert warm.frequency.dtype == np.int64
    assert cold.frequency.tolist() == [0, 0]
    assert warm.index_of("b") == 1
    with pytest.raises(ValueError, match="read-only"):
        warm.frequency[0] = 5


@given(st.lists(st.integers(0, 10**6), min_size=1), st.floats(0, 10, allow_subnormal=False))
def test_the_prior_is_each_share_of_the_smoothed_total(counts: list[int], smoothing: float) -> None:
    total = sum(count + smoothing for count in counts)
    if total == 0:
        with pytest.raises(CatalogueError, match="smoothing above 0"):
            prior(np.array(counts), smoothing)
        return
    p = prior(np.array(counts), smoothing)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, [(count + smoothing) / total for count in counts], rtol=1e-9)


def test_cold_items_have_no_prior_unless_smoothed() -> None:
    assert prior(np.array([3, 0, 1])).tolist() == [0.75, 0, 0.25]
    assert prior(np.array([3, 0, 1]), smoothing=1).tolist() == [4 / 7, 1 / 7, 2 / 7]


@pytest.mark.parametrize("smoothing", [-0.1, float("nan"), float("inf")])
def test_a_smoothing_that_makes_no_prior_is_refused(smoothing: float) -> None:
    with pytest.raises(CatalogueError, match="smoothing"):
        prior(np.array([1]), smoothing)


@given(ids=st.lists(st.text("ab1é😀", min_size=1, max_size=6), min_size=1, max_size=60, unique=True), other=st.text())
def test_every_id_leads_to_its_row_whatever_their_hashes(ids: list[str], other: str) -> None:
    rows = ItemRows.of(ids)
    for _ in range(2):  # sought first, and remembered then
        assert [rows.find(item_id) for item_id in ids] == list(range(len(ids)))
    assert rows.find(other) == (ids.index(other) if other in ids else None)
    with pytest.raises(CatalogueError, match="stands on more than one row"):
        ItemRows.of([*ids, ids[0]])


def test_ids_are_compared_and_not_their_hashes() -> None:
    # One bucket for all, as if every hash were the same.
    spread = ItemRows.of(["a", "b", "c"])
    rows = dataclasses.replace(
        spread, mask=0, start=np.array([0, 3], np.int32).data, rows=np.arange(3, dtype=np.int32).data
    )
    assert [rows.find(item_id) for item_id in "abcd"] == [0, 1, 2, None]


def test_an_id_that_is_no_unicode_is_unknown() -> None:
    assert ItemRows.of(["a"]).find("\ud800") is None


def test_rows_that_were_found_lately_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igd_core.catalogue.item_rows._MOST_RECENT", 4)
    rows = ItemRows.of([f"item {number}" for number in range(50)])
    for number in range(50):
        assert rows.find(f"item {number}") == number
        assert rows.find(f"absent {number}") is None
    assert 0 < len(rows._recent) <= 4


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20), st.slices(20))
def test_texts_are_a_sequence_of_their_texts(values: list[str], some: slice) -> None:
    texts = PackedTexts.of(values)
    assert [texts[at] for at in range(len(texts))] == list(texts) == texts[:] == values
    assert [texts[at - len(texts)] for at in range(len(texts))] == values
    assert texts[some] == values[some]
    assert PackedTexts.of(texts) is texts
    for outside in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError, match=f"text {outside} of"):
            texts[outside]
