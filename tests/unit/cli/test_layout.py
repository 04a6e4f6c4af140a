"""A layout says how each of two exports is read; `igd data prepare csv` takes it, and tells what is wrong with both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from factories import EOS

from igd_core.cli.layout import Layout, layout_text, read_layout
from igd_core.cli.main import main
from igd_core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = """
[items]
columns = {item_id = "SKU", title = "Bezeichnung"}
delimiter = "semicolon"
[items.attributes]
Preis = {decimal = "comma"}
Tags = {type = "list-of-text", separator = "|"}
[events]
columns = {user_id = "Kunde", item_id = "Artikel", timestamp = "Zeit", kind = "Art"}
timezone = "UTC"
"""
ITEMS = ["SKU;Bezeichnung;Preis;Tags", *(f"A{at};Item number {at};{at},50;a|b" for at in range(10))]
EVENTS = [
    "Kunde,Artikel,Zeit,Art",
    *(f"k{at % 4},A{at % 10},2024-01-01 00:{at:02}:00,{'buy' if at % 3 else 'view'}" for at in range(60)),
]


def prepare(tmp_path: Path, items: list[str], events: list[str], *flags: str, layout: str = LAYOUT) -> int:
    for name, lines in (("items.txt", items), ("log.txt", events)):
        (tmp_path / name).write_text("\n".join(lines) + "\n", "utf-8", errors="surrogateescape")
    (tmp_path / "layout.toml").write_text(layout)
    files = ["--items", str(tmp_path / "items.txt"), "--interactions", str(tmp_path / "log.txt")]
    given = ["--layout", str(tmp_path / "layout.toml"), "--out", str(tmp_path / "out"), "--json"]
    return main(["data", "prepare", "csv", *files, *given, *flags])


def test_each_file_is_read_by_its_own_part_of_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, ITEMS, EVENTS) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (made["items"], made["users"], made["interactions"]["train"]) == (10, 4, 48)
    assert made["attributes"] == {"Preis": "number", "Tags": "list-of-text"}
    assert made["first"] == "2024-01-01T00:00:00.000Z"
    assert (made["repeated_rows"], made["chosen_again"], made["items_never_chosen"]) == (0, 40, 0)
    assert (tmp_path / "out" / "items.csv").read_text().splitlines()[1] == "A0,Item number 0,0.5,a|b"


def test_events_of_some_kinds_alone_count_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, ITEMS, EVENTS, "--kinds", "buy") == 0
    made = json.loads(capsys.readouterr().out)
    assert (sum(made["interactions"].values()), made["other_kinds"]) == (40, 20)
    assert prepare(tmp_path, ITEMS, EVENTS, "--force", layout=LAYOUT + 'kinds = ["view"]\n') == 0
    assert sum(json.loads(capsys.readouterr().out)["interactions"].values()) == 20
    assert prepare(tmp_path, ITEMS, EVENTS, "--force", "--kinds", "bought") == 2
    assert "no row is of kind bought; there are buy, view" in capsys.readouterr().err


def test_a_flag_goes_before_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, ITEMS, EVENTS, "--timezone", "+02:00", "--type", "Preis=text") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["first"] == "2023-12-31T22:00:00.000Z"
    assert made["attributes"]["Preis"] == "text"


def test_what_is_wrong_with_both_exports_is_told_at_once_by_row_and_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = ["B1;;1,50;a", "A1;Another title;1,50;a", "B3;Item B3;many;a", "B4;Item B4", 'B5;"Item" B5;5,50;a']
    items, events = [*ITEMS, *faulty], list(EVENTS)
    events[3] = "k1,GONE,2024-01-01 00:02:00,buy"
    events[4] = ",A1,2024-01-01 00:03:00,buy"
    events[5] = "k1,A1,yesterday,buy"
    events[6] = "k1,A1,1704067200,buy"
    events[7] = "k1,A1,2024-01-01 00:06:00"
    assert prepare(tmp_path, items, events) == 2
    told = capsys.readouterr().err
    for words in (
        "items.txt: 5 faults of 5 kinds",
        "title of item is empty: 1 row: row 12 'B1' (--on-empty-title skip",
        "item_id stands on an earlier row too, with another title: 1 row: row 13 'A1'",
        "Preis is no number, as ", "row 14 'many' (--missing Preis=many",
        "where the header has 4 columns: 1 row: row 15 has 2 cells",
        "has a quote in the wrong place: 1 row: row 16 (--quoting",
        "log.txt: 5 faults of 5 kinds",
        "item_id is not in the catalogue of 12 items: 1 row: row 4 'GONE' (--on-unknown-item drop",
        "user_id is empty: 1 row: row 5 ''",
        "or a number since 1970: 1 row: row 6 'yesterday'",
        "timestamp is seconds since 1970, where 57 rows are text without a zone: 1 row: row 7",
        "where the header has 4 columns: 1 row: row 8 has 3 cells",
    ):  # fmt: skip
        assert words in told
    assert not (tmp_path / "out").exists()
    lenient = ["--on-bad-row", "skip", "--on-empty-title", "skip", "--on-unknown-item", "drop"]
    assert prepare(tmp_path, items, events, *lenient) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["items"], made["bad_rows"], made["items_skipped"]) == (10, 8, 1)


def test_rows_that_a_broken_quote_swallowed_do_not_make_all_events_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [*ITEMS[:3], 'B1;"never closed;1,50;a', *ITEMS[3:], 'B2;clo"sed;1,50;a']
    assert prepare(tmp_path, items, [*EVENTS, "k1,A1,never,buy"]) == 2
    told = capsys.readouterr().err
    assert "items.txt: row 4: has a quote in the wrong place" in told
    assert "log.txt: row 62: timestamp 'never' is no time" in told
    assert "is not in the catalogue" not in told


def test_odd_titles_are_counted_and_shown_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [EOS, "<b>Bold</b>", "https://shop.example/x", "CafÃ© au lait", "???", "n/a", "A7", "x" * 201]
    items = [ITEMS[0], *(f"A{at};{title};1,50;a" for at, title in enumerate(odd)), *ITEMS[9:]]
    assert prepare(tmp_path, items, EVENTS, "--on-unknown-item", "drop", layout=LAYOUT.replace("A7", "A6")) == 0
    out, err = capsys.readouterr()
    assert sum(json.loads(out)["odd_titles"].values()) == 7  # "A7" is the title of A6, and so no id of its own
    assert f"title spells a control token, and is read as plain text: 1 row: row 2 '{EOS}'" in err
    for row, words in (
        (3, "markup"),
        (4, "web address"),
        (5, "encoding"),
        (6, "letter"),
        (7, "placeholder"),
        (9, "200"),
    ):
        assert any(words in line and f"row {row} " in line for line in err.splitlines())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[item]\n", "there is no setting 'item'"),
        ('[items]\ndelimter = ";"\n', "delimter"),
        ('[events]\ntimezone = "Mars"\n', "timezone 'Mars'"),
        ('[items.attributes]\nx = {kind = "text"}\n', "no key 'kind'"),
        ("[items\n", "layout.toml: "),
    ],
)
def test_a_layout_that_is_none_is_refused_by_entry(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        read_layout(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_layout_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(LAYOUT)
    layout = read_layout(path)
    path.write_text(layout_text(layout, ["a note"]))
    assert read_layout(path) == layout
    assert path.read_text().startswith("# a note\n")
    path.write_text(layout_text(Layout()))
    assert read_layout(path) == Layout()
