"""Results survive a cut in the middle of a write, and are not mixed with those of other settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from igd_core.errors import DataError
from igd_core.evaluation.journal import Journal, read_journal

if TYPE_CHECKING:
    from pathlib import Path

HEADER = {
    "artifact": "a1",
    "kind": "decoding",
    "methods": [{"name": "m", "known_as": "", "seen": "allowed", "depth": 3}],
}
COST = {"rounds": 2, "tokens": 30, "seconds": 0.5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows-1-of-1.jsonl"


def _written(path: Path, count: int) -> bytes:
    with Journal(path, HEADER) as journal:
        for row in range(count):
            journal.append({"row": row, "lists": [[row]], **COST})
    return path.read_bytes()


def test_a_journal_goes_on_where_it_ended(path: Path) -> None:
    _written(path, 2)
    with Journal(path, HEADER) as journal:
        assert [record["row"] for record in journal.records] == [0, 1]
        journal.append({"row": 2, "lists": None}, {"row": 3, "lists": None})
    header, records = read_journal(path)
    assert [record["row"] for record in records] == [0, 1, 2, 3]
    assert header["artifact"] == "a1"


def test_cut_anywhere_it_keeps_the_whole_records_and_goes_on(path: Path) -> None:
    whole = _written(path, 3)
    complete = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        lines = sum(end < cut for end in complete)
        if lines:
            assert len(read_journal(path)[1]) == lines - 1
        with Journal(path, HEADER) as journal:
            assert len(journal.records) == max(0, lines - 1)
            journal.append({"row": 9, "lists": None})
        assert read_journal(path)[1][-1] == {"row": 9, "lists": None}


def test_other_settings_are_refused_by_name_and_nothing_is_lost(path: Path) -> None:
    before = _written(path, 1)
    with pytest.raises(DataError, match=r'artifact was "a1", now it is "a2"; choose another --out'):
        Journal(path, HEADER | {"artifact": "a2"})
    assert path.read_bytes() == before


def test_a_damaged_line_is_named(path: Path) -> None:
    _written(path, 2)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"{not json", lines[2], b""]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        Journal(path, HEADER)
    with pytest.raises(DataError, match="line 2 is damaged"):
        read_journal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"row": -1},
        {"row": "1"},
        {"row": True},
        {"lists": [["x", 1]]},
        {"lists": [[1.5]]},
        {"lists": [[-1]]},
        {"lists": [[99]]},
        {"lists": [[0, 1, 2, 3]]},
        {"lists": [[0], [1]]},
        {"lists": [7]},
        {"lists": "none"},
        {"rounds": "2"},
        {"tokens": -1},
        {"seconds": float("inf")},
        {"left_out": None},
    ],
)
def test_a_value_that_no_row_can_have_is_damage(path: Path, change: dict[str, object]) -> None:
    lines = _written(path, 2).splitlines()
    record = json.loads(lines[2])
    assert len(read_journal(path, items=5)[1]) == 2
    path.write_bytes(b"\n".join([*lines[:2], json.dumps(record | change).encode(), b""]))
    for reading in (lambda: read_journal(path, items=5), lambda: Journal(path, HEADER, items=5)):
        with pytest.raises(DataError, match=f"{path}: line 3 is damaged; remove the file to compute its rows again"):
            reading()


@pytest.mark.parametrize("methods", [None, "m", [{"name": "m"}], [{**HEADER["methods"][0], "depth": "3"}]])  # type: ignore[dict-item]
def test_a_header_without_its_methods_is_damage(path: Path, methods: object) -> None:
    lines = _written(path, 1).splitlines()
    path.write_bytes(b"\n".join([json.dumps(json.loads(lines[0]) | {"methods": methods}).encode(), lines[1], b""]))
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_journal(path)


def test_a_foreign_or_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_journal(path)
    path.write_text(json.dumps({"format": "something"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no igd-evaluation-rows file"):
        read_journal(path)
    with pytest.raises(DataError, match="other settings"):
        Journal(path, HEADER)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no igd-evaluation-rows file"):
        read_journal(path)


def test_two_processes_do_not_write_one_journal(path: Path) -> None:
    with Journal(path, HEADER), pytest.raises(DataError, match="another process is writing it"):
        Journal(path, HEADER)
    Journal(path, HEADER).close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory"):
        Journal(tmp_path / "nowhere" / "rows.jsonl", HEADER)
