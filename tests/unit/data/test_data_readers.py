from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.catalogue import Catalogue
from igd_core.data.interactions import Interactions
from igd_core.data.readers import read_interactions, read_items
from igd_core.data.rows import HistoryRows, item_frequency
from igd_core.errors import CatalogueError, DataError, InputError

VIDEO_GAMES = Path(__file__).parents[4] / "shared" / "data" / "video_games"


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue.build(item_ids=["7", "007", "x"], titles=["Seven", "Bond", "X"])


def write(path: Path, content: str | bytes | dict[str, Any]) -> Path:
    """Bytes or text as they are, columns as Parquet."""
    if isinstance(content, dict):
        pyarrow.parquet.write_table(pa.table(content), path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_rows(data: Interactions | HistoryRows) -> HistoryRows:
    assert isinstance(data, HistoryRows)
    return data


def as_interactions(data: Interactions | HistoryRows) -> Interactions:
    assert isinstance(data, Interactions)
    return data


# Items


def test_items_keep_their_ids_as_text_and_their_numbers_as_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "items.csv",
        "item_id,title,year,price,new,code,genres,big,note\n"
        '007,"Bond, James &amp; Co",1962,9.5,true,01,spy|film,12345678901234567890,x\n'
        "7,Seven,,10,false,2,,1,\n",
    )
    catalogue = read_items(path, multi={"genres": "|"}).catalogue
    assert catalogue.item_ids == ("007", "7")
    assert catalogue.titles == ("Bond, James & Co", "Seven")
    assert catalogue.texts == catalogue.titles
    assert catalogue.metadata == {
        "year": (1962, None),
        "price": (9.5, 10.0),
        "new": (True, False),
        "code": ("01", "2"),
        "genres": (("spy", "film"), ()),
        "big": ("12345678901234567890", "1"),
        "note": ("x", None),
    }


def test_parquet_items_keep_their_types(tmp_path: Path) -> None:
    columns = {
        "item_id": pa.array([1, 2]),
        "title": pa.array(["A", "B"]).dictionary_encode(),
        "genres": [["x", "y"], None],
        "price": [1.5, float("nan")],
        "code": ["1", "2"],
        "stock": pa.array([3, None]),
        "since": pa.array([0, None], pa.date32()),
    }
    catalogue = read_items(write(tmp_path / "items.data", columns)).catalogue
    assert catalogue.item_ids == ("1", "2")
    assert catalogue.titles == ("A", "B")
    # Text that looks like a number is typed as in csv, so that both formats agree.
    assert catalogue.metadata == {
        "genres": (("x", "y"), ()),
        "price": (1.5, None),
        "code": (1, 2),
        "stock": (3, None),
        "since": ("1970-01-01", None),
    }


def test_the_path_column_spells_the_item_and_the_title_column_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", "item_id,name,sid\n1,One,<a_1><b_2>\n2,Two,<a_1><b_3>\n")
    catalogue = read_items(path, title_column="name", path_column="sid").catalogue
    assert catalogue.titles == ("One", "Two")
    assert catalogue.texts == ("<a_1><b_2>", "<a_1><b_3>")
    assert catalogue.metadata == {}


def test_a_title_of_several_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", b'\xef\xbb\xbfitem_id,title\r\n1,"A\r\nB ""C"""\r\n\r\n2,D\r\n')
    assert read_items(path).catalogue.titles == ('A B "C"', "D")


def test_an_empty_title_is_an_error_that_names_the_item_or_is_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", "item_id,title,year\na,A,1\nb,&nbsp;,2\nc,C,3\n")
    with pytest.raises(CatalogueError, match=r"items\.csv: row 3: item 'b': empty title"):
        read_items(path)
    read = read_items(path, on_empty="skip")
    assert read.skipped == ["b"]
    assert read.catalogue.item_ids == ("a", "c")
    assert read.catalogue.metadata == {"year": (1, 3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("item_id,title\n", "no rows below the header"),
        ("item_id,name\n1,A\n", "no column 'title'; it has item_id, name"),
        ("id,title\n1,A\n", "no column 'item_id'"),
        ("item_id,title,title\n1,A,B\n", "a column name stands twice"),
        (",item_id,title\n0,1,A\n", "column 1 of 3 has no name"),
        ("item_id,title\n1,A\n,B\n", "row 3: item_id '' is empty"),
        ("item_id,title\n1,A\n1,B\n", "item '1': this id stands on more than one row"),
        ("item_id,title\n1,A\n2\n", "Row #3: Expected 2 columns, got 1"),
        ('item_id,title\n1,"A\n2,B\n', "never closed"),
        (b"item_id,title\n1,A\n2,\xe9\n", r"line 3: not UTF-8: byte b'\\xe9'"),
        ("item_id,title\n1,A\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"PAR1 cut short", "Parquet"),
        ({"item_id": [1.0], "title": ["A"]}, "column 'item_id' holds double"),
        ({"item_id": [1, None], "title": ["A", "B"]}, "row 2: item_id None is empty"),
        ({"item_id": [1], "title": [2]}, "column 'title' holds int64; expected text"),
        ({"item_id": [1], "title": ["A"], "size": [{"w": 1}]}, "column 'size' holds struct"),
        ({"item_id": [1], "title": ["A"], "price": [float("inf")]}, "item '1': price inf"),
    ],
)
def test_an_items_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, content: str | bytes | dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "items.csv", content)
    with pytest.raises(InputError, match=message) as caught:
        read_items(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_bad_multi_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read: No such file"):
        read_items(tmp_path / "absent.csv")
    path = write(tmp_path / "items.csv", "item_id,title,genres\n1,A,x\n")
    with pytest.raises(DataError, match="no column 'tags'"):
        read_items(path, multi={"tags": "|"})
    with pytest.raises(DataError, match="separator of its values is empty"):
        read_items(path, multi={"genres": ""})


# Interactions


def test_interactions_are_read_in_file_order_with_ids_as_text(tmp_path: Path, catalogue: Catalogue) -> None:
    path = write(
        tmp_path / "log.csv", "timestamp,user_id,item_id,rating,extra\n30,bob,007,4.5,z\n10,ann,7,,z\n20,bob,x,3,z\n"
    )
    read = as_interactions(read_interactions(path, catalogue).data)
    assert [read.user_ids[code] for code in read.user] == ["bob", "ann", "bob"]
    assert read.item.tolist() == [1, 0, 2]
    assert read.timestamp.tolist() == [30, 10, 20]
    assert read.timestamp.dtype == np.int64
    assert read.rating is not None
    np.testing.assert_array_equal(read.rating, [4.5, np.nan, 3.0])
    assert item_frequency(read, catalogue).tolist() == [1, 1, 1]


def test_parquet_timestamps_and_fractions_become_seconds(tmp_path: Path, catalogue: Catalogue) -> None:
    columns = {"user_id": [5, 5], "item_id": [7, 7]}
    instants = pa.array([1_500_000_000_250, 1_500_000_001_000], pa.timestamp("ms", tz="UTC"))
    for name, times in (("ms", instants), ("float", pa.array([1_500_000_000.25, 1_500_000_001.0]))):
        read = read_interactions(write(tmp_path / name, {**columns, "timestamp": times}), catalogue).data
        assert read.timestamp is not None
        assert read.timestamp.tolist() == [1_500_000_000.25, 1_500_000_001.0]
    csv = write(tmp_path / "f.csv", "user_id,item_id,timestamp\n5,7,1500000000.25\n5,7,1.5e9\n")
    assert as_interactions(read_interactions(csv, catalogue).data).timestamp.tolist() == [1_500_000_000.25, 1.5e9]


def test_unknown_items_are_an_error_or_are_dropped_and_counted(tmp_path: Path, catalogue: Catalogue) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\na,7,1\nb,07,2\nb,x,3\n")
    with pytest.raises(DataError, match=r"row 3: item_id '07' is not in the catalogue of 3 items"):
        read_interactions(path, catalogue)
    read = read_interactions(path, catalogue, on_unknown="drop")
    assert read.dropped == 1
    assert read.data.item.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,item_id\n1,7\n", "neither user_id, item_id, timestamp nor history_item_ids, item_id columns"),
        ("user_id,item_id,timestamp\n1,7,yesterday\n", "row 2: timestamp 'yesterday' is no finite number of seconds"),
        ("user_id,item_id,timestamp\n1,7,3\n1,7,\n", "row 3: timestamp '' is no finite"),
        ("user_id,item_id,timestamp\n1,7,nan\n", "row 2: timestamp 'nan' is no finite"),
        ("user_id,item_id,timestamp\n1,7,1.5\n1,7,1e999\n", "row 3: timestamp inf is no finite"),
        ("user_id,item_id,timestamp\n1,7,99999999999999999999\n", "column 'timestamp' of string: .*out of range|99999"),
        ("user_id,item_id,timestamp\n,7,1\n", "row 2: user_id '' is empty"),
        ("user_id,item_id,timestamp\n1,,1\n", "row 2: item_id '' is empty"),
        ("user_id,item_id,timestamp,rating\n1,7,1,good\n", "row 2: rating 'good' is no number"),
        ("history_item_ids,item_id\n7 nope,7\n", "row 2: history_item_ids: 'nope' is not in the catalogue"),
        ("history_item_ids,item_id\n7,nope\n", "row 2: item_id 'nope' is not in the catalogue"),
        ({"user_id": [1], "item_id": [7], "timestamp": [float("nan")]}, "row 1: timestamp nan is no finite"),
        ({"user_id": [1], "item_id": [7], "timestamp": pa.array([None], pa.int64())}, "row 1: timestamp None"),
        ({"user_id": [1], "item_id": [7], "timestamp": [[1]]}, "column 'timestamp' of list"),
        ({"history_item_ids": [["7", None]], "item_id": ["7"]}, "row 1: history_item_ids: None is not in"),
        ({"history_item_ids": [1.5], "item_id": ["7"]}, "column 'history_item_ids' holds double"),
    ],
)
def test_an_interactions_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, catalogue: Catalogue, content: str | dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "log", content)
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(path, catalogue)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_of_which_nothing_is_known_is_refused_even_when_dropping(tmp_path: Path, catalogue: Catalogue) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\na,1,1\nb,2,2\n")
    with pytest.raises(DataError, match="none of its 2 rows has an item of the catalogue"):
        read_interactions(path, catalogue, on_unknown="drop")


def test_history_rows_are_recognised_with_and_without_users(tmp_path: Path, catalogue: Catalogue) -> None:
    bare = write(tmp_path / "train.csv", "history_item_ids,item_id\n7 007 7,x\n,7\n")
    rows = as_rows(read_interactions(bare, catalogue).data)
    assert [rows.history(row).tolist() for row in range(len(rows))] == [[0, 1, 0], []]
    assert rows.item.tolist() == [2, 0]
    assert rows.user is None
    assert rows.timestamp is None
    full = write(
        tmp_path / "test.csv", "user_id,history_item_ids,item_id,rating,timestamp\nu1,7,x,5.0,12\nu2,x  x,7,,13\n"
    )
    rows = as_rows(read_interactions(full, catalogue).data)
    assert [rows.history(row).tolist() for row in range(len(rows))] == [[0], [2, 2]]
    assert rows.user_ids == ["u1", "u2"]
    assert rows.timestamp is not None
    assert rows.timestamp.tolist() == [12, 13]
    assert item_frequency(rows, catalogue).tolist() == [1, 0, 1]


def test_unknown_entries_of_a_history_are_dropped_and_counted_apart(tmp_path: Path, catalogue: Catalogue) -> None:
    path = write(tmp_path / "rows.csv", "history_item_ids,item_id\n007 gone,gone\n7 gone x,007\ngone,7\n")
    read = read_interactions(path, catalogue, on_unknown="drop")
    rows = as_rows(read.data)
    assert [rows.history(row).tolist() for row in range(len(rows))] == [[0, 2], []]
    assert rows.item.tolist() == [1, 0]
    assert (read.dropped, read.dropped_from_histories) == (1, 2)


@given(lists=st.lists(st.none() | st.lists(st.sampled_from(["7", "007", "x"]), max_size=4), min_size=1))
def test_parquet_lists_and_text_hold_the_same_histories(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[str] | None]
) -> None:
    catalogue = Catalogue.build(item_ids=["7", "007", "x"], titles=["Seven", "Bond", "X"])
    folder = tmp_path_factory.mktemp("lists")
    column = pa.array(lists, pa.list_(pa.string()))
    listed = write(folder / "l", {"history_item_ids": column, "item_id": ["7"] * len(lists)})
    lines = "".join(f"{' '.join(history or [])},7\n" for history in lists)
    texted = write(folder / "t", f"history_item_ids,item_id\n{lines}")
    for path in (listed, texted):
        rows = as_rows(read_interactions(path, catalogue).data)
        found = [[catalogue.item_ids[item] for item in rows.history(row)] for row in range(len(rows))]
        assert found == [history or [] for history in lists]


@pytest.mark.skipif(not VIDEO_GAMES.is_dir(), reason=f"no data set at {VIDEO_GAMES}")
def test_video_games_reads_with_the_counts_its_readme_states() -> None:
    catalogue = read_items(VIDEO_GAMES / "items.csv").catalogue
    assert len(catalogue) == 3858
    assert len(set(catalogue.titles)) == 3806
    assert not [title for title in catalogue.titles if "&amp;" in title or "&reg;" in title]
    rows = {part: as_rows(read_interactions(VIDEO_GAMES / f"{part}.csv", catalogue).data) for part in ("train", "test")}
    assert (len(rows["train"]), len(rows["test"])) == (49133, 6142)
    lengths = np.diff(rows["train"].history_start)
    assert (lengths.min(), lengths.max()) == (1, 10)
    frequency = item_frequency(rows["train"], catalogue)
    assert (frequency == 0).sum() == 43
    assert frequency.sum() == 49133
    test = rows["test"]
    assert test.user_ids is not None
    assert test.user_ids[0] == "A3UO4554MW8IB1"
    assert [catalogue.item_ids[item] for item in test.history(0)] == ["2742", "2742", "1804", "514", "3610", "2651"]
