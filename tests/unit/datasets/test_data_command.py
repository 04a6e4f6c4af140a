from __future__ import annotations

import argparse
import importlib.metadata
import json
from typing import TYPE_CHECKING

import pytest

from igd_core.cli import data
from igd_core.cli.main import main
from igd_core.datasets.movielens import read_movielens
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

NOON = 1_769_860_800  # 2026-01-31T12:00:00Z


def run(*args: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="igd")
    data.add_parser(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["data", "prepare", *map(str, args)])
    code: int = parsed.run(parsed)
    return code


@pytest.fixture
def files(tmp_path: Path) -> list[str | Path]:
    items, log = tmp_path / "items.csv", tmp_path / "shop.csv"
    items.write_text("item_id,title,tags\n" + "".join(f"i{i},Item {i},a;b\n" for i in range(10)) + "e,,\n")
    log.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u{i % 3},i{i % 10},{NOON + i}\n" for i in range(50)) + f"u,e,{NOON}\n"
    )
    return ["csv", "--items", items, "--interactions", log]


def test_files_become_a_folder_under_igd_home_named_after_the_interactions(
    tmp_path: Path, files: list[str | Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IGD_HOME", str(tmp_path / "home"))
    lenient = ["--on-empty-title", "skip", "--on-unknown-item", "drop"]
    assert run(*files, *lenient, "--multi", "tags=;", "--max-history", "3", "--json") == 0
    out = tmp_path / "home" / "data" / "shop"
    summary = json.loads(capsys.readouterr().out)
    assert summary == {
        "out": str(out), "split": "time", "max_history": 3, "items": 10, "items_never_in_training": 0,
        "items_never_chosen": 0, "items_of_a_shared_title": 0, "odd_titles": {}, "users": 3,
        "first": "2026-01-31T12:00:00.000Z", "last": "2026-01-31T12:00:49.000Z", "repeated_rows": 0, "chosen_again": 20,
        "interactions": {"train": 40, "valid": 5, "test": 5}, "rows": {"train": 37, "valid": 5, "test": 5},
        "attributes": {"tags": "list-of-text"}, "multi": {"tags": "|"},
        "items_skipped": 1, "interactions_dropped": 1, "bad_rows": 0,
    }  # fmt: skip
    assert (out / "items.csv").read_text().splitlines()[:2] == ["item_id,title,tags", "i0,Item 0,a|b"]
    assert (out / "test.csv").read_text().splitlines()[-1] == f"u1,i0 i3 i6,i9,{NOON + 49}"


def test_people_are_shown_the_same_counts(
    tmp_path: Path, files: list[str | Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files, "--out", tmp_path / "o", "--on-empty-title", "skip", "--on-unknown-item", "drop") == 0
    shown = capsys.readouterr().out.splitlines()
    assert "rows                    train 37, valid 5, test 5" in shown


def test_history_rows_and_strict_defaults_are_refused(tmp_path: Path, files: list[str | Path]) -> None:
    with pytest.raises(Exception, match=r"row 12: title of item 'e' is empty"):
        run(*files, "--out", tmp_path / "o")
    with pytest.raises(DataError, match=r"row 52: item_id 'e' is not in the catalogue"):
        run(*files, "--out", tmp_path / "o", "--on-empty-title", "skip")
    rows = tmp_path / "rows.csv"
    rows.write_text("history_item_ids,item_id\ni1,i2\n")
    with pytest.raises(DataError, match="history rows already"):
        run(*files[:3], "--interactions", rows, "--on-empty-title", "skip", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_multi_option_without_a_separator_is_a_usage_error(
    files: list[str | Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", *map(str, files), "--multi", "tags"]) == 2
    assert capsys.readouterr().err == "igd: multi: 'tags' is not NAME=SEPARATOR; --help has an example\n"


def test_what_is_prepared_is_what_the_flags_say(tmp_path: Path, files: list[str | Path]) -> None:
    flags = ["--on-empty-title", "skip", "--on-unknown-item", "drop", "--out", str(tmp_path / "o")]
    cases: list[tuple[list[str], str, int]] = [
        ([], "time", 10),
        (["--split", "leave-one-out", "--max-history", "2", "--force"], "leave-one-out", 2),
        (["--split", "leave-one-out", "--no-force", "--force", "--split", "time"], "time", 10),
    ]
    for more, split, most in cases:
        assert run(*files, *flags, *more) == 0
        made = json.loads((tmp_path / "o" / "dataset.json").read_text())
        assert (made["split"], made["max_history"]) == (split, most)
        rows = (tmp_path / "o" / "test.csv").read_text().splitlines()[1:]
        assert max(len(row.split(",")[1].split()) for row in rows) == most
    with pytest.raises(DataError, match="is not empty; igd data prepare --force replaces it"):
        run(*files, *flags)


def test_a_data_set_that_is_prepared_from_itself_is_not_replaced(
    tmp_path: Path, files: list[str | Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    flags = ["--on-empty-title", "skip", "--on-unknown-item", "drop", "--out", str(out), "--force"]
    assert run(*files, *flags) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    own = ["csv", "--items", str(out / "items.csv"), "--interactions", str(out / "train_interactions.csv")]
    assert main(["data", "prepare", *own, *flags]) == 2
    told = f"igd: out: {out} is or contains --items {out / 'items.csv'}, so --force leaves it alone\n"
    assert capsys.readouterr().err.endswith(told)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["ml-100k", "--max-history", "0"], "max_history: 0 is not in 1..2147483647"),
        (["amazon", "--core", "0"], "core: 0 is not in 1..2147483647"),
        (["amazon", "--begin", "2015-13-01"], "begin: '2015-13-01' is no day such as 2015-10-01"),
        (["amazon", "--end", "2015-10-01"], "begin: 2015-10-01 is not before end 2015-10-01"),
        (["amazon", "--end", "today", "--begin", ""], "end: 'today' is no day such as 2015-10-01"),
        (["csv", "--items", "x", "--delimiter", "ab"], "delimiter: 'ab' is not comma, semicolon, tab, pipe or one"),
    ],
)
def test_a_flag_that_means_nothing_is_one_line_before_a_file_is_read(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {"ml-100k": [], "amazon": ["--reviews", "none", "--metadata", "none"], "csv": ["--interactions", "none"]}
    assert main(["data", "prepare", *flags, *needed[flags[0]]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"igd: {told}")
    assert error.count("\n") == 1


def test_movielens_is_prepared_without_future_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        importlib.metadata.distribution("recbole")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("MovieLens-100K needs the wheel: pip install --no-deps recbole==1.2.1")
    assert run("ml-100k", "--out", tmp_path / "ml", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert sum(summary["interactions"].values()) == 100_000
    assert summary["multi"] == {"genres": "|"}

    def cells(name: str) -> list[list[str]]:
        return [line.split(",") for line in (tmp_path / "ml" / name).read_text().splitlines()[1:]]

    last_training = max(int(row[2]) for row in cells("train_interactions.csv"))
    times = {part: [int(row[3]) for row in cells(f"{part}.csv")] for part in ("valid", "test")}
    assert last_training < min(times["valid"])
    assert max(times["valid"]) < min(times["test"])
    raw = read_movielens()
    users = [raw.interactions.user_ids[code] for code in raw.interactions.user]
    items = [raw.catalogue.item_ids[index] for index in raw.interactions.item]
    when = dict(zip(zip(users, items, strict=True), raw.interactions.timestamp.tolist(), strict=True))
    for part in ("train", "valid", "test"):
        for user, history, item, time, _ in cells(f"{part}.csv"):
            assert when[user, item] == int(time)
            assert all(when[user, entry] < int(time) for entry in history.split())
