from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.catalogue.items import Catalogue, MetadataValue
from igd_core.datasets.cleaning import clean_title
from igd_core.datasets.interactions import Interactions
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.options import Preparation
from igd_core.datasets.prepared import write_prepared
from igd_core.datasets.rows import HistoryRows, history_rows, item_frequency
from igd_core.datasets.split import split_by_time
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def catalogue_of(num_items: int) -> Catalogue:
    titles = [f'Film "{i}", part |&' for i in range(num_items)]
    return Catalogue.build(item_ids=[f"{i:03}" for i in range(num_items)], titles=titles)


def interactions_of(num_items: int, *, seed: int = 0) -> Interactions:
    random = np.random.default_rng(seed)
    return Interactions(
        user_ids=["a b", 'quo"te', "c,d"],
        user=random.integers(0, 3, 200).astype(np.int32),
        item=random.integers(0, num_items, 200).astype(np.int32),
        timestamp=random.integers(10**9, 10**9 + 150, 200) + random.choice([0.0, 0.5]),
        rating=random.choice([1.0, 4.5, np.nan], 200),
    )


def events(data: Interactions | HistoryRows) -> list[tuple[object, ...]]:
    assert data.user_ids is not None
    assert data.user is not None
    assert data.timestamp is not None
    assert data.rating is not None
    users = [data.user_ids[code] for code in data.user]
    return list(zip(users, data.item.tolist(), data.timestamp.tolist(), map(str, data.rating.tolist()), strict=True))


def folder_state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_and_interactions_read_back_as_they_were_made(tmp_path: Path, seed: int) -> None:
    catalogue, interactions = catalogue_of(9), interactions_of(9, seed=seed)
    write_prepared(tmp_path / "out", catalogue, interactions, Preparation(max_history=4))
    read_back = read_items(tmp_path / "out" / "items.csv").catalogue
    assert read_back.item_ids == catalogue.item_ids
    assert read_back.titles == catalogue.titles

    split = split_by_time(interactions)
    training = read_interactions(tmp_path / "out" / "train_interactions.csv", read_back).data
    assert isinstance(training, Interactions)
    assert events(training) == events(interactions.take(split.train))
    for part, targets in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        made = history_rows(interactions, targets, max_history=4)
        read = read_interactions(tmp_path / "out" / f"{part}.csv", read_back).data
        assert isinstance(read, HistoryRows)
        assert events(read) == events(made)
        assert read.history_start.tolist() == made.history_start.tolist()
        assert read.history_item.tolist() == made.history_item.tolist()
        if part == "train":
            # First choices have no history and so no row: only train_interactions.csv counts them for the prior.
            first_choices = item_frequency(training, catalogue) - item_frequency(read, catalogue)
            assert first_choices.min() >= 0
            assert first_choices.sum() == len(split.train) - len(made) > 0


VALUES: dict[str, st.SearchStrategy[MetadataValue]] = {
    "whole": st.none() | st.integers(-(2**63), 2**63 - 1),
    "number": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "flag": st.booleans(),
    "word": st.none()
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).map(lambda t: "w" + t),
    "several": st.lists(st.sampled_from(["a", "b c", 'd"', "é,"])).map(tuple),
}
TITLE = st.text(st.characters(codec="utf-8"), min_size=1).map(clean_title).filter(bool)
ITEM = st.fixed_dictionaries({"title": TITLE, **VALUES})


@given(items=st.lists(ITEM, min_size=1, max_size=5))
def test_items_read_back_with_the_same_titles_and_metadata(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, MetadataValue]]
) -> None:
    catalogue = Catalogue.build(
        item_ids=[f"0{i}" for i in range(len(items))],
        titles=[str(item["title"]) for item in items],
        metadata={name: [item[name] for item in items] for name in VALUES},
    )
    out = tmp_path_factory.mktemp("prepared") / "out"
    write_prepared(out, catalogue, interactions_of(len(items)), Preparation())
    read = read_items(
        out / "items.csv", multi=json.loads((out / "dataset.json").read_text())["multi"] or {"several": "|"}
    )
    assert read.catalogue.titles == catalogue.titles
    for name, column in catalogue.metadata.items():
        found = read.catalogue.metadata[name]
        assert found == column, name
        if name != "number":  # a column of numbers that are all whole is whole
            assert [type(value) for value in found] == [type(value) for value in column]


def test_the_summary_is_what_the_folder_holds(tmp_path: Path) -> None:
    summary = write_prepared(
        tmp_path / "a" / "out", catalogue_of(9), interactions_of(9), Preparation(split="leave-one-out")
    )
    assert summary == json.loads((tmp_path / "a" / "out" / "dataset.json").read_text())
    assert summary["interactions"] == {"train": 194, "valid": 3, "test": 3}
    assert summary["users"] == 3
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["out"]


def test_items_first_chosen_after_training_are_counted_as_never_in_training(tmp_path: Path) -> None:
    interactions = Interactions(
        user_ids=["u"], user=np.zeros(10, np.int32), item=np.arange(10, dtype=np.int32), timestamp=10**9 + np.arange(10)
    )
    summary = write_prepared(tmp_path / "out", catalogue_of(12), interactions, Preparation())
    assert summary["items_never_in_training"] == 4  # two are chosen only in the last fifth, two not at all
    assert (tmp_path / "out" / "train_interactions.csv").read_text().startswith("user_id,item_id,timestamp\n")


def test_a_folder_that_is_not_empty_is_replaced_only_when_forced_and_only_if_prepared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_prepared(out, catalogue_of(9), interactions_of(9), Preparation())
    before = folder_state(tmp_path)
    with pytest.raises(DataError, match="is not empty; igd data prepare --force replaces it"):
        write_prepared(out, catalogue_of(5), interactions_of(5), Preparation())
    assert folder_state(tmp_path) == before
    write_prepared(out, catalogue_of(5), interactions_of(5), Preparation(), force=True)
    assert len(read_items(out / "items.csv").catalogue) == 5
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"holds 'notes\.txt', no part of a prepared data set, so --force leaves it alone"
    ):
        write_prepared(out, catalogue_of(9), interactions_of(9), Preparation(), force=True)
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    (out / "notes.txt").unlink()
    (out / "dataset.json").unlink()
    with pytest.raises(DataError, match="leaves it alone"):
        write_prepared(out, catalogue_of(9), interactions_of(9), Preparation(), force=True)
    with pytest.raises(DataError, match="is a file"):
        write_prepared(out / "items.csv", catalogue_of(9), interactions_of(9), Preparation(), force=True)


def test_a_write_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_prepared(out, catalogue_of(9), interactions_of(9), Preparation())
    before = folder_state(tmp_path)
    # A lone surrogate cannot be encoded: the third file fails while it is written.
    interactions = interactions_of(9)
    broken = Interactions(
        user_ids=["a", "b", "\ud800"], user=interactions.user, item=interactions.item, timestamp=interactions.timestamp
    )
    with pytest.raises(UnicodeEncodeError):
        write_prepared(out, catalogue_of(9), broken, Preparation(), force=True)
    assert folder_state(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: File exists"):
        write_prepared(tmp_path / "file" / "out", catalogue_of(9), interactions_of(9), Preparation())


@pytest.mark.parametrize("bad", ["|;||\t\x1f.", " x", ""])
def test_what_could_not_be_told_apart_again_is_refused(tmp_path: Path, bad: str) -> None:
    spaced = Catalogue.build(item_ids=["a b"], titles=["A"])
    with pytest.raises(DataError, match="'a b': its id holds white space"):
        write_prepared(tmp_path / "out", spaced, interactions_of(1), Preparation())
    several = Catalogue.build(item_ids=["a"], titles=["A"], metadata={"genres": [("fine", bad)]})
    with pytest.raises(DataError, match=r"genres .* one of several values"):
        write_prepared(tmp_path / "out", several, interactions_of(1), Preparation())
    assert not list(tmp_path.iterdir())


def test_lists_are_separated_by_what_none_of_their_values_holds(tmp_path: Path) -> None:
    metadata = {"plain": (("a", "b"), ()), "odd": (("a|b", "c;d"), ("e",))}
    catalogue = Catalogue.build(item_ids=["1", "2"], titles=["A", "B"], metadata=metadata)
    summary = write_prepared(tmp_path / "out", catalogue, interactions_of(2), Preparation())
    assert summary["multi"] == {"plain": "|", "odd": "||"}
    assert read_items(tmp_path / "out" / "items.csv").catalogue.metadata == metadata
