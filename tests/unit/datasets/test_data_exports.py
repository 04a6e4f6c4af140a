"""Files as particular programs write them: databases, spreadsheets, shops and pandas."""

from __future__ import annotations

import json
from datetime import UTC
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet
import pytest

from igd_core.catalogue.items import Catalogue
from igd_core.cli.main import main
from igd_core.datasets.interactions import Interactions
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.sources import Reading
from igd_core.datasets.tables import open_table
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

CATALOGUE = Catalogue.build(item_ids=["7", "8"], titles=["Seven", "Eight"])


def test_a_backslash_that_escapes_nothing_stays(tmp_path: Path) -> None:
    """MySQL: INTO OUTFILE ... OPTIONALLY ENCLOSED BY '"'."""
    path = tmp_path / "items.csv"
    path.write_text('item_id,title,price,note\n7,"Say \\"Hi\\"",\\N,"C:\\temp"\n8,"B\\\\\\\nC",9.5,"D\\,E"\n')
    read = read_items(path)
    assert read.catalogue.titles == ('Say "Hi"', "B\\ C")
    assert read.catalogue.metadata == {"price": (None, 9.5), "note": ("C:\\temp", "D,E")}
    assert read.notes == [f"{path}: read as quoted with backslashes (--quoting decides)"]


def test_a_quote_behind_a_backslash_shows_the_convention_in_cells_without_quotes_too(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('item_id,title\n7,5\\" disc\n8,plain\n')
    assert read_items(path).catalogue.titles == ('5" disc', "plain")
    path.write_text('item_id,title,note\n7,C:\\temp,"ends with \\"\n8,a\\b,"""quoted"""\n')
    assert read_items(path).catalogue.titles == ("C:\\temp", "a\\b")


DUMP = 'item_id\ttitle\tnote\n7\tA\\tB "C"\t\\N\n8\tD\\\\N\\nE\t5" x\\ty\n'


@pytest.mark.parametrize("quoting", ["auto", "escaped"])
def test_a_dump_of_a_database_is_unescaped(tmp_path: Path, quoting: str) -> None:
    """PostgreSQL: COPY; MySQL: INTO OUTFILE."""
    path = tmp_path / "items.tsv"
    path.write_text(DUMP)
    read = read_items(path, reading=Reading(quoting=quoting))  # type: ignore[arg-type]
    assert read.catalogue.titles == ('A B "C"', "D\\N E")
    assert read.catalogue.metadata == {"note": (None, '5" x\ty')}
    told = f"{path}: read as not quoted, with \\t, \\n and \\\\ as databases write them (--quoting decides)"
    assert read.notes == ([told] if quoting == "auto" else [])


@pytest.mark.parametrize(
    "content",
    [
        "item_id\ttitle\tnote\n7\tC:\\Games\t\\N\n",  # no database leaves such a backslash
        "item_id\ttitle\tnote\n7\tC:\\temp\t\n",  # and none an empty cell without saying so
        'item_id\ttitle\tnote\n"7"\t"C:\\temp"\t\\N\n',
    ],
)
def test_tabs_alone_are_no_dump(tmp_path: Path, content: str) -> None:
    path = tmp_path / "items.tsv"
    path.write_text(content)
    read = read_items(path)
    assert read.catalogue.titles[0].startswith("C:\\")
    assert read.catalogue.item_ids == ("7",)


def test_a_key_that_only_late_lines_have_is_an_attribute(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    lines = [{"item_id": at, "title": f"T{at}"} | ({"genre": "late"} if at == 1500 else {}) for at in range(1501)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_items(path).catalogue.metadata["genre"][1499:] == [None, "late"]


def test_a_json_object_of_columns_is_said_to_be_one(tmp_path: Path) -> None:
    """pandas: to_json without orient="records", lines=True."""
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"item_id": {str(at): at for at in range(9000)}, "title": {"0": "A"}}))
    with pytest.raises(DataError, match=r"^[^ ]*: one JSON object of columns; .* each on a line$"):
        read_items(path)
    path.write_text(json.dumps({"item_id": 7, "title": {str(at): "A" for at in range(9000)}}))
    with pytest.raises(DataError, match=r"column 'title' holds struct<0: .{0,60}\.\.\.; expected text$"):
        read_items(path)


def test_row_numbers_of_pandas_are_no_attribute(tmp_path: Path) -> None:
    path = tmp_path / "items"
    path.write_text(",Unnamed: 0,item_id,title,year\n0,0,7,Seven,1995\n")
    read = read_items(path)
    assert read.catalogue.metadata == {"year": (1995,)}
    assert read.notes[1] == f"{path}: column 2 of 5 has no name but pandas' 'Unnamed: 0' and is left out"
    pa.parquet.write_table(pa.table({"item_id": [7], "title": ["Seven"], "__index_level_0__": [3]}), path)
    assert read_items(path).catalogue.metadata == {}
    assert read_items(path, reading=Reading(columns={"n": "__index_level_0__"})).catalogue.metadata == {"n": (3,)}


@pytest.mark.parametrize("written", ["8.71E+12", "8,71E+12"])
def test_an_id_that_a_spreadsheet_shortened_is_refused(tmp_path: Path, written: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"item_id;title\n{written};A\n9;B\n")
    with pytest.raises(DataError, match=r"row 2: item_id '8.71E\+12' has lost digits, as spreadsheets"):
        read_items(path)
    assert read_items(path, reading=Reading(on_bad_row="skip")).catalogue.item_ids == ("9",)


def test_numbers_of_32_bits_are_what_they_read_like(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    columns = {"item_id": ["7", "8"], "title": ["A", "B"], "price": pa.array([9.99, None], pa.float32())}
    prices = pa.array([[9.99], []], pa.list_(pa.float32()))
    pa.parquet.write_table(pa.table(columns | {"prices": prices}), path)
    found = read_items(path).catalogue.metadata
    assert found == {"price": (9.99, None), "prices": ((9.99,), ())}


def test_values_of_lists_are_trimmed_in_every_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "items"
    path.write_text(json.dumps({"item_id": 7, "title": "A", "tags": [" b ", "", None, "c|d"]}))
    assert read_items(path).catalogue.metadata == {"tags": (("b", "c|d"),)}
    path.write_text("item_id,title,tags\n7,A, b ;;c|d\n")
    assert read_items(path, multi={"tags": ";"}).catalogue.metadata == {"tags": (("b", "c|d"),)}


def test_a_blank_may_stand_before_the_zone(tmp_path: Path) -> None:
    """Shopify's exports have it, in interactions and in items."""
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,timestamp\nu,7,2026-01-31 07:00:00 -0500\n")
    data = read_interactions(path, CATALOGUE).data
    assert data.timestamp is not None
    assert data.timestamp.tolist() == [1_769_860_800]
    path.write_text("item_id,title,created_at\n7,A,2026-01-31 07:00:00 -0500\n8,B,2026-01-31 07:00:00 +05:30\n")
    assert read_items(path).catalogue.metadata == {"created_at": ("2026-01-31T12:00:00Z", "2026-01-31T01:30:00Z")}


def test_a_zone_is_asked_for_where_it_is_all_that_lacks(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,timestamp\nu,7,31/01/2026 12:00\nu,7,2026-01-31 12:00\nu,7,2026-01-31\n")
    with pytest.raises(DataError) as caught:
        read_interactions(path, CATALOGUE, reading=Reading(hints=True))
    told = {line.split(":")[0].strip(): "--timezone" in line for line in str(caught.value).splitlines()[1:]}
    assert told == {
        "timestamp is no time": False,
        "timestamp has no time zone": True,
        "timestamp is a day without a time and a zone": True,
    }


@pytest.mark.parametrize("path", [".", "/", ""])
def test_a_folder_for_a_file_is_one_line(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--items", path, "--interactions", "x", "--tokenizer", "x", "--out", "x"]) == 2
    assert capsys.readouterr().err == f"igd: {path or '.'}: cannot be read: Is a directory\n"


def test_columns_of_an_object_alone_are_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"item_id": 7}\n' * 1000 + '{"item_id": 8, "late": 1}\n')
    assert (open_table(path).columns, open_table(path, every_key=True).columns) == (["item_id"], ["item_id", "late"])


def test_a_rule_for_what_is_no_attribute_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, events = tmp_path / "items.csv", tmp_path / "events.csv"
    items.write_text("item_id,name,title\n7,Seven,Seven | Shop\n")
    events.write_text("user_id,item_id,timestamp\nu,7,1700000000\n")

    def told(*flags: str) -> str:
        assert main(["data", "prepare", "csv", "--items", str(items), "--interactions", str(events), *flags]) == 2
        return capsys.readouterr().err.partition(": ")[2].strip()

    for name in ("item_id", "title"):
        assert told("--type", f"{name}=ignore").startswith(f"{items}: column {name!r} is no attribute")
    assert told("--title-column", "name") == (
        f"{items}: column 'title' is beside the title column, 'name' "
        "(--columns title=name drops it, and so does --type title=ignore)"
    )
    for flags in (["--columns", "title=name"], ["--title-column", "name", "--type", "title=ignore"]):
        assert "cannot be split by time" in told(*flags)


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_ids_that_pandas_made_fractions_are_whole_numbers(tmp_path: Path, kind: str) -> None:
    """A missing cell makes doubles of a column of whole numbers."""
    path = tmp_path / "log"
    if kind == "parquet":
        columns = {"customer": [12346.0, None, 7.0], "item_id": [7.0, 8.0, 8.0], "timestamp": [1_700_000_000] * 3}
        pa.parquet.write_table(pa.table(columns), path)
    else:
        rows = [(12346.0, 7.0), (None, 8.0), (7.0, 8.0)]
        path.write_text(
            "".join(
                json.dumps({"customer": user, "item_id": item, "timestamp": 1_700_000_000}) + "\n"
                for user, item in rows
            )
        )
    found = read_interactions(path, CATALOGUE, reading=Reading(columns={"user_id": "customer"}, on_bad_row="skip"))
    assert isinstance(found.data, Interactions)
    assert (found.data.user_ids, found.data.item.tolist(), found.bad_rows) == (["12346", "7"], [0, 1], 1)


def test_events_of_one_day_that_stand_newest_first_are_taken_in_reverse(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("user_id,item_id,timestamp\nu,8,2024-01-02\nu,7,2024-01-02\nu,8,2024-01-01\nv,7,2024-01-02\n")
    found = read_interactions(path, CATALOGUE, reading=Reading(zone=UTC))
    assert isinstance(found.data, Interactions)
    assert (found.data.user_ids, found.data.item.tolist()) == (["v", "u"], [0, 1, 0, 1])
    assert found.notes == [f"{path}: each person's rows stand newest first; those of one time are taken in reverse too"]
    odd = "".join(f"{user},{item},2024-01-02\n" for user in "uvwxyz" for item in (8, 7))
    path.write_text(f"user_id,item_id,timestamp\n{odd}u,8,2024-01-01\n")
    found = read_interactions(path, CATALOGUE, reading=Reading(zone=UTC))
    assert found.notes == [], "one row at the end shows nothing"
    path.write_text("user_id,item_id,timestamp\nu,8,2024-01-01\nu,7,2024-01-01\nu,8,2024-01-02\n")
    found = read_interactions(path, CATALOGUE, reading=Reading(zone=UTC))
    assert isinstance(found.data, Interactions)
    assert (found.data.item.tolist(), found.notes) == ([1, 0, 1], [])


def prepared(tmp_path: Path, items: str, events: str) -> int:
    (tmp_path / "items").write_text(items)
    (tmp_path / "log").write_text(events)
    files = ["--items", str(tmp_path / "items"), "--interactions", str(tmp_path / "log")]
    return main(["data", "prepare", "csv", *files, "--out", str(tmp_path / "out"), "--force"])


def test_persons_who_are_none_and_ratings_of_nothing_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = "item_id,title\n" + "".join(f"{at},Item {at}\n" for at in range(10))
    rows = [("NA" if at % 4 == 0 else "bot" if at % 4 == 1 else f"u{at % 40}", at) for at in range(1000)]
    events = "user_id,item_id,timestamp,rating\n" + "".join(
        f"{user},{at % 10},{1_700_000_000 + at},{5 if at else -1}\n" for user, at in rows
    )
    assert prepared(tmp_path, items, events) == 0
    told = capsys.readouterr().err
    log = tmp_path / "log"
    assert f"{log}: user_id 'NA' has 250 of 1,000 rows (25%), all taken for one person's\n" in told
    assert f"{log}: user_id 'bot' has 250 of 1,000 rows (25%), all taken for one person's\n" in told
    assert f"{log}: rating of 0 or less, where the row counts as any other: 1 row: row 2 -1.0\n" in told
    assert told.count("all taken") == 2


def test_items_of_which_none_can_be_used_are_refused_by_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = "user_id,item_id,timestamp\nu,7,1700000000\n"
    assert prepared(tmp_path, "item_id,title\n8.1E+12,A\n8.2E+12,B\n", events) == 2
    assert "item_id has lost digits, as spreadsheets write long numbers" in capsys.readouterr().err


def test_ids_with_white_space_are_told_with_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = "user_id,item_id,timestamp\nu,A 1,1700000000\n"
    assert prepared(tmp_path, "item_id,title\nA 1,Red\nA2,Blue\nA 3,Green\n", events) == 2
    told = "item_id holds white space, which separates the ids of a history: 2 rows: row 2 'A 1', row 4 'A 3'"
    assert f"{told}: write another sign in its place, such as _, in both files" in capsys.readouterr().err


def test_dots_mean_the_day_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("user_id,item_id,timestamp\nu,7,3.12.2024\nu,8,4.12.2024\n")
    found = read_interactions(path, CATALOGUE, reading=Reading(zone=UTC))
    assert isinstance(found.data, Interactions)
    assert found.data.timestamp.tolist() == [1_733_184_000, 1_733_270_400]
    for written in ("31.12.2024 7:59", "31.12.2024, 07:59"):
        path.write_text(f'user_id,item_id,timestamp\nu,7,"{written}"\n')
        found = read_interactions(path, CATALOGUE, reading=Reading(zone=UTC))
        assert isinstance(found.data, Interactions)
        assert found.data.timestamp.tolist() == [1_735_631_940]
    for wrong in ("32.12.2024", "12.31.2024", "3.12.24"):
        path.write_text(f"user_id,item_id,timestamp\nu,7,{wrong}\n")
        with pytest.raises(DataError, match="timestamp"):
            read_interactions(path, CATALOGUE, reading=Reading(zone=UTC))
