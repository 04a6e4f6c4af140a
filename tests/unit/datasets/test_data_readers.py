from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.catalogue.items import Catalogue
from igd_core.datasets.interactions import Interactions
from igd_core.datasets.interactions_file import count_items, read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.rows import HistoryRows, item_frequency
from igd_core.errors import DataError, InputError

VIDEO_GAMES = Path(__file__).parents[4] / "shared" / "data" / "video_games"


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue.build(item_ids=["7", "007", "x"], titles=["Seven", "Bond", "X"])


def write(path: Path, content: str | bytes | dict[str, Any]) -> Path:
    """Bytes or text as they are, columns as Parquet."""
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
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
    with pytest.raises(DataError, match=r"items\.csv: row 3: title of item 'b' is empty$"):
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
        ("item_id,title,title\n1,A,B\n", "column 'title' stands twice in item_id, title"),
        ("item_id,title\n1,A\n,B\n", "row 3: item_id '' is empty"),
        ("item_id,title\n1,A\n1,B\n", "row 3: item_id '1' stands on an earlier row too"),
        ("item_id,title\n1,A\n\u00a02,B\n", "row 3: item_id .*2' begins or ends with white space"),
        (
            {"item_id": ["1", "2\u202e"], "title": ["A", "B"]},
            "row 2: item_id .* holds a control or invisible character",
        ),
        ({"item_id": ["1", "2" * 300], "title": ["A", "B"]}, "row 2: item_id .* has more than 256 characters"),
        ("item_id,title\n1,A\n2,B\x00\n", "row 3: title .* holds a NUL byte or bytes that are no text"),
        (
            "item_id,title\n1,\u00c5\n".encode() + b"2,\xe9\n",
            "row 3: title .* holds a NUL byte or bytes that are no text",
        ),
        ('{"item_id": "1", "title": "A"}\n{"item_id": "2", "title": "\\ud800"}\n', "row 2: title .* bytes that are no"),
        ("item_id,title\n1,A\n2\n", "row 3: has 1 cell where the header has 2 columns"),
        ('item_id,title\n1,"5" disc"\n', "row 2: has a quote in the wrong place"),
        ('item_id,title\n1,"A\n2,B\n', "never closed"),
        (b"item_id,title\n1,A\n2,\x81\n", r"line 3: not UTF-8, and not likely Windows-1252"),
        ("item_id,title\n1,A\n".encode("utf-16-le"), r"the first line holds NUL bytes: no csv, or UTF-16"),
        (b'[{"item_id": 1}]', "one JSON array; JSON is read as one object a line"),
        ('{"item_id": "1", "title": "A"}\n[1]\n', r"row 2: '\[1\]' is no JSON object"),
        ('{"item_id": "1", "title": "A", "price": NaN}\n', "row 1: .* is no JSON object"),
        ('{"item_id": "1", "title": "A"}\n{"item_id": "2"\n', "row 2: .* is not JSON"),
        (b"PK\x03\x04rest", "a zip archive or an Excel workbook: export it as csv"),
        (b"ARROW1\x00\x00", "an Arrow file"),
        (b"PAR1 cut short", "Parquet"),
        (
            {"item_id": [1.5], "title": ["A"]},
            "holds numbers with a fraction or too many digits, such as 1.5",
        ),
        ({"item_id": [2.0**53], "title": ["A"]}, "column 'item_id' holds numbers with a fraction or too many digits"),
        ({"item_id": [1, None], "title": ["A", "B"]}, "row 2: item_id None is empty"),
        ({"item_id": [1], "title": [2]}, "column 'title' holds int64; expected text"),
        ({"item_id": [1], "title": ["A"], "size": [{"w": 1}]}, "column 'size' holds struct"),
        (
            {"item_id": [1], "title": ["A"], "price": [float("inf")]},
            "row 1: price 'inf' is no number, which the column holds",
        ),
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

NOON = 1_769_860_800  # 2026-01-31T12:00:00Z


def test_interactions_are_read_in_file_order_with_ids_as_text(tmp_path: Path, catalogue: Catalogue) -> None:
    path = write(
        tmp_path / "log.csv",
        f"timestamp,user_id,item_id,rating,extra\n{NOON + 3},bob,007,4.5,z\n{NOON},ann,7,,z\n{NOON + 2},bob,x,3,z\n",
    )
    read = as_interactions(read_interactions(path, catalogue).data)
    assert [read.user_ids[code] for code in read.user] == ["bob", "ann", "bob"]
    assert read.item.tolist() == [1, 0, 2]
    assert read.timestamp.tolist() == [NOON + 3, NOON, NOON + 2]
    assert read.timestamp.dtype == np.int64
    assert read.rating is not None
    np.testing.assert_array_equal(read.rating, [4.5, np.nan, 3.0])
    assert item_frequency(read, catalogue).tolist() == [1, 1, 1]


def test_unknown_items_are_an_error_or_are_dropped_and_counted(tmp_path: Path, catalogue: Catalogue) -> None:
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\na,7,{NOON}\nb,07,{NOON}\nb,x,{NOON}\n")
    with pytest.raises(DataError, match=r"row 3: item_id '07' is not in the catalogue of 3 items"):
        read_interactions(path, catalogue)
    read = read_interactions(path, catalogue, on_unknown="drop")
    assert read.dropped == 1
    assert read.data.item.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,item_id\n1,7\n", "neither user_id, item_id, timestamp nor history_item_ids, item_id columns"),
        (f"user_id,item_id,timestamp\n,7,{NOON}\n", "row 2: user_id '' is empty"),
        (f"user_id,item_id,timestamp\n1,,{NOON}\n", "row 2: item_id '' is empty"),
        (f"user_id,item_id,timestamp,rating\n1,7,{NOON},good\n", "row 2: rating 'good' is no number"),
        (f"user_id,item_id,timestamp,user_id\n1,7,{NOON},1\n", "column 'user_id' stands twice"),
        ("history_item_ids,item_id\n7 nope,7\n", "row 2: history_item_ids 'nope' is not in the catalogue"),
        ("history_item_ids,item_id\n7,nope\n", "row 2: item_id 'nope' is not in the catalogue"),
        ({"user_id": [1], "item_id": [7], "timestamp": [[1]]}, "column 'timestamp' holds list"),
        ({"user_id": [True], "item_id": [7], "timestamp": [NOON]}, "column 'user_id' holds bool"),
        ({"history_item_ids": [["7", None]], "item_id": ["7"]}, "row 1: history_item_ids None is not in"),
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
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\na,1,{NOON}\nb,2,{NOON}\n")
    with pytest.raises(DataError, match="none of its 2 rows has an item of the catalogue"):
        read_interactions(path, catalogue, on_unknown="drop")
    with pytest.raises(DataError, match="none of its 2 rows has an item of the catalogue"):
        count_items(path, catalogue, on_unknown="drop")


def test_rows_of_the_other_kind_are_refused_before_they_are_judged(tmp_path: Path, catalogue: Catalogue) -> None:
    single = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n,nope,never\n")
    rows = write(tmp_path / "rows.csv", "history_item_ids,item_id\nnope,nope\n")
    with pytest.raises(DataError, match="single interactions; history rows are needed"):
        read_interactions(single, catalogue, wanted="histories")
    with pytest.raises(DataError, match="these are history rows already"):
        read_interactions(rows, catalogue, wanted="interactions")


def test_columns_that_nobody_asks_for_are_not_judged(tmp_path: Path, catalogue: Catalogue) -> None:
    log = "user_id,item_id,timestamp,rating,,note,note\n,7,never,good,1,a,b\n,x,,,2,c,d\n"
    assert count_items(write(tmp_path / "log.csv", log), catalogue).frequency.tolist() == [1, 0, 1]
    rows = "user_id,history_item_ids,item_id,rating,timestamp\n,7,x,bad,\n,,7,bad,0\n"
    path = write(tmp_path / "rows.csv", rows)
    read = as_rows(read_interactions(path, catalogue, optional=()).data)
    assert (len(read), read.user, read.timestamp, read.rating) == (2, None, None, None)
    with pytest.raises(DataError, match="user_id is empty: 2 rows"):
        read_interactions(path, catalogue, optional=("user_id",))
    columns = {"item_id": ["7"], "user_id": pa.array([{"a": 1}]), "timestamp": [[1.5]]}
    assert count_items(write(tmp_path / "log.parquet", columns), catalogue).frequency.tolist() == [1, 0, 0]


def test_history_rows_are_recognised_with_and_without_users(tmp_path: Path, catalogue: Catalogue) -> None:
    bare = write(tmp_path / "train.csv", "history_item_ids,item_id\n7 007 7,x\n,7\n")
    rows = as_rows(read_interactions(bare, catalogue).data)
    assert [rows.history(row).tolist() for row in range(len(rows))] == [[0, 1, 0], []]
    assert rows.item.tolist() == [2, 0]
    assert rows.user is None
    assert rows.timestamp is None
    full = write(
        tmp_path / "test.csv",
        f"user_id,history_item_ids,item_id,rating,timestamp\nu1,7,x,5.0,{NOON}\nu2,x  x,7,,{NOON + 1}\n",
    )
    rows = as_rows(read_interactions(full, catalogue).data)
    assert [rows.history(row).tolist() for row in range(len(rows))] == [[0], [2, 2]]
    assert rows.user_ids == ["u1", "u2"]
    assert rows.timestamp is not None
    assert rows.timestamp.tolist() == [NOON, NOON + 1]
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
    assert test.user is not None
    with (VIDEO_GAMES / "test.csv").open(encoding="utf-8", newline="") as file:
        assert [test.user_ids[user] for user in test.user] == [row["user_id"] for row in csv.DictReader(file)]
    assert [catalogue.item_ids[item] for item in test.history(0)] == ["2742", "2742", "1804", "514", "3610", "2651"]


def test_items_take_no_python_object_each(tmp_path: Path) -> None:
    """Strings of 30 characters would be 80 bytes each, ids and titles twice while they are cleaned."""
    items = 20_000
    path = tmp_path / "items.parquet"
    ids = [f"B{number:09d}" for number in range(items)]
    pq.write_table(pa.table({"item_id": ids, "title": [f"Wild Night of the Hunter {each}" for each in ids]}), path)
    read_items(path)  # imports
    tracemalloc.start()
    read = read_items(path)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read.catalogue) == items
    assert now / items < 90  # ids and titles of 45 bytes, their starts, rows, counts and the index
    assert peak / items < 240
