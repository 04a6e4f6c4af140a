"""The rows of an input: which can be answered, and why the others cannot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import make_catalogue

from igd_core.batch.inputs import InputFiles, InputReader, ReadRows
from igd_core.datasets.sources import Reading, Source
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

CATALOGUE = make_catalogue(12)


def read(
    path: Path, *, on_unknown: Any = "error", on_bad_row: Any = "skip", **more: Any
) -> tuple[list[Any], list[Any]]:
    """The rows that can be answered as dictionaries, and the others as (file, row, user, reason)."""
    reading = Reading(on_bad_row=on_bad_row, **more)
    reader = InputReader(InputFiles.of(Source.of(path), reading), CATALOGUE, reading, on_unknown=on_unknown)
    batches: list[ReadRows] = list(reader.batches())
    rejected = [(each.file, each.row, each.user_id, each.reason) for batch in batches for each in batch.rejected]
    return [row for batch in batches for row in batch.rows.to_pylist()], rejected


def test_every_row_is_answered_or_rejected_with_its_own_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "user_id,history_item_ids\nann,item-1 item-2\nbob,item-1 gone item-9\n,item-3\ncat,\ndan,item-1,more\n"
        'eve,"item-3"x\n',
        encoding="utf-8",
    )
    rows, rejected = read(path)
    assert [(row["file"], row["row"], row["user_id"], row["history"]) for row in rows] == [
        ("rows.csv", 2, "ann", [1, 2]),
        ("rows.csv", 5, "cat", []),
    ]
    assert [each[:3] for each in rejected] == [
        *[("rows.csv", 3, "bob"), ("rows.csv", 4, None)],
        *[("rows.csv", 6, None), ("rows.csv", 7, None)],
    ]
    reasons = [each[3] for each in rejected]
    assert reasons[0] == "history_item_ids 'gone' is not in the catalogue of 12 items"
    assert reasons[1] == "user_id '' is empty"
    assert reasons[2] == "has 3 cells where the header has 2 columns"
    assert "quote" in reasons[3]


def test_each_of_many_bad_rows_names_its_own_value(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,history_item_ids\n" + "".join(f"u{at},gone-{at} x\n" for at in range(30)))
    _, rejected = read(path)
    assert [(user, f"'gone-{at}'" in reason) for at, (_, _, user, reason) in enumerate(rejected)] == [
        (f"u{at}", True) for at in range(30)
    ]


def test_unknown_items_may_be_left_out_of_histories(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,history_item_ids\nann,item-1 gone item-2 lost\nbob,gone\n", encoding="utf-8")
    rows, rejected = read(path, on_unknown="drop")
    assert ([row["history"] for row in rows], rejected) == ([[1, 2], []], [])


def test_a_folder_is_all_its_files_by_name_but_not_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "day=2").mkdir()
    table = pa.table({"user_id": [7, 8], "history_item_ids": [["item-4", "item-5"], None]})
    pq.write_table(table, tmp_path / "day=2" / "part-0.parquet")
    (tmp_path / "b.csv").write_text("user_id;history_item_ids\nann;item-1\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"user_id": "x", "history_item_ids": ["item-2"]}\n', encoding="utf-8")
    for hidden in ("_SUCCESS", ".part-0.crc"):
        (tmp_path / hidden).write_text("", encoding="utf-8")
    rows, rejected = read(tmp_path)
    assert [(row["file"], row["row"], row["user_id"], row["history"]) for row in rows] == [
        ("a.jsonl", 1, "x", [2]),
        ("b.csv", 2, "ann", [1]),
        ("day=2/part-0.parquet", 1, "7", [4, 5]),
        ("day=2/part-0.parquet", 2, "8", []),
    ]
    assert not rejected


def test_columns_go_by_other_names_and_users_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("who,history\nann,item-1\n", encoding="utf-8")
    rows, _ = read(path, columns={"user_id": "who", "history_item_ids": "history"})
    assert (rows[0]["user_id"], rows[0]["history"]) == ("ann", [1])
    rows, _ = read(path, columns={"history_item_ids": "history"})
    assert (rows[0]["user_id"], rows[0]["history"]) == (None, [1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("user_id,history_item_ids\nann,item-1\nbob,gone\n", r"row 3: history_item_ids 'gone' is not in the catalogue"),
        ("user_id,history_item_ids\n,item-1\n", "row 2: user_id '' is empty"),
        ("user_id,items\nann,item-1\n", "no column 'history_item_ids'; it has user_id, items"),
    ],
)
def test_bad_rows_refuse_the_input_where_that_is_asked_for(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        read(path, on_bad_row="error")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,history_item_ids\nann,item-1\n", encoding="utf-8")
    files = InputFiles.of(Source.of(path), Reading())
    files.require_unchanged()
    path.write_text("user_id,history_item_ids\nann,item-12\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.csv: changed while it was being read"):
        files.require_unchanged()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        InputFiles.of(Source.of(tmp_path), Reading())


@pytest.mark.parametrize("items", [[[["item-1"]]], [[{"id": "item-1"}]], [[1.0, 2.0]], [[True]]])
def test_lists_of_what_is_no_id_are_refused(items: list[Any], tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["ann"], "history_item_ids": items}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: column 'history_item_ids' holds lists of .*; expected lists"):
        read(tmp_path / "rows.parquet")


def test_what_a_folder_holds_is_read_or_refused_and_never_passed_over(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "rows", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
        (place / "a.csv").write_text("user_id,history_item_ids\nann,item-1\n", encoding="utf-8")
    (folder / "b.csv").symlink_to(elsewhere / "a.csv")
    assert [row["file"] for row in read(folder)[0]] == ["a.csv", "b.csv"]
    strange = folder / "strange"
    strange.symlink_to(elsewhere)
    with pytest.raises(DataError, match="rows/strange: a link to a folder"):
        read(folder)
    strange.unlink()
    strange.symlink_to("gone")
    with pytest.raises(DataError, match="rows/strange: neither a file nor a folder"):
        read(folder)
    strange.unlink()
    os.mkfifo(strange)
    with pytest.raises(DataError, match="rows/strange: neither a file nor a folder"):
        read(folder)
    strange.rename(folder / "_strange")
    assert len(read(folder)[0]) == 2
