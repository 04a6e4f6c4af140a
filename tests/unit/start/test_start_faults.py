"""Every planted fault of two exports is told by file, row and line; what is left out is listed, and nothing else is."""

from __future__ import annotations

import csv
import random
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from planted_faults import EVENTS, ITEMS, LAST_FAULT, ODDITIES, ROW_FAULTS, Fault, Records, joined_records

from igd_core.cli.main import main
from igd_core.start.prepared import have_two_sequences
from igd_core.start.run import tuning_flags
from igd_core.tuning.recipes import read_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

NUM_ITEMS, NUM_EVENTS = 120, 400
WORDS = ("Nord", "See", "Licht", "Wald", "Berg", "Stern", "Haus", "Garten", "Mühle", "Kanal", "Brot", "Salz")
LEAVE_OUT = ("--on-bad-row", "skip", "--on-empty-title", "skip", "--on-unknown-item", "drop")


def exports() -> dict[str, Records]:
    """A shop's files, whose descriptions go over three lines each, so that rows and lines differ."""
    rng = random.Random(1)
    items = [["Artikelnr", "Bezeichnung", "Abteilungen", "Beschreibung", "EAN"]]
    for at in range(NUM_ITEMS):
        about = f'Kurz gesagt;\n"{at}" steht hier\nin vielen Worten und Zeilen'
        title = f"{WORDS[at % 12]} und {WORDS[at // 12]}"
        items.append([f"A-{at:03}", title, ("Neu|Alt", "Neu")[at % 2], about, ""])
    events, when = [["Bestellung", "Kunde", "Artikel", "Zeitpunkt", "Bewertung"]], datetime(2017, 1, 1).astimezone()
    for at in range(NUM_EVENTS):
        when += timedelta(hours=1)
        item = f"A-{rng.randrange(NUM_ITEMS // 2 - 5):03}"  # none that a fault is planted into
        events.append([f"B{at:05}", f"K-{at % 30}", item, when.isoformat(), str(1 + at % 5)])
    return {ITEMS: Records(joined_records(items)), EVENTS: Records(joined_records(events))}


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`igd start --look` on exports: the exit code, and all that it says."""

    def look(files: Mapping[str, Records], *more: str) -> tuple[int, str]:
        for name, records in files.items():
            (tmp_path / name).write_bytes(records.content())
        paths = ["--items", str(tmp_path / ITEMS), "--events", str(tmp_path / EVENTS), "--out", str(tmp_path / "out")]
        code = main(["start", *paths, "--look", "--again", *more])
        out, err = capsys.readouterr()
        return code, out + err

    return look


def planted(faults: Sequence[Fault]) -> tuple[dict[str, Records], dict[str, str]]:
    """Exports with these faults in rows of their own, from the middle on; where an editor shows each."""
    files = exports()
    at = {ITEMS: NUM_ITEMS // 2, EVENTS: NUM_EVENTS // 2}
    where = dict[str, tuple[Fault, int]]()
    for fault in faults:
        fault.plant(files[fault.file], at[fault.file])
        where[fault.name] = fault, at[fault.file]
        at[fault.file] += 7
    told = {}
    for name, (fault, row) in where.items():
        line = files[fault.file].line(row) + fault.below
        told[name] = f"(line {line})" if fault.file == ITEMS else f"row {line}"
    return files, told


def lines_about(said: str, file: str) -> str:
    """The lines of a message about one file."""
    parts = re.split(rf"(?=^(?:igd: |igd: note: )?\S*/(?:{ITEMS}|{EVENTS}):)", said, flags=re.MULTILINE)
    return "\n".join(part for part in parts if re.match(rf"(?:igd: |igd: note: )?\S*/{file}:", part))


@pytest.mark.parametrize("fault", [*ROW_FAULTS, LAST_FAULT, *ODDITIES], ids=lambda fault: fault.name)
def test_a_fault_is_told_by_file_row_line_and_value(fault: Fault, look: Callable[..., tuple[int, str]]) -> None:
    files, told = planted([fault])
    code, said = look(files)
    assert code == (0 if fault in ODDITIES else 2)
    about = lines_about(said, fault.file)
    assert told[fault.name] in about
    assert re.search(fault.says, about)


def test_all_faults_at_once_are_told_together(look: Callable[..., tuple[int, str]]) -> None:
    files, told = planted([*ROW_FAULTS, *ODDITIES, LAST_FAULT])
    first = files[EVENTS]
    for row in range(1, 12):  # of an item that is lost to the stray quote: they must not hide the unknown one
        first.set(row, "Artikel", "A-080")
    code, said = look(files)
    assert code == 2
    for fault in (*ROW_FAULTS, LAST_FAULT):
        assert told[fault.name] in lines_about(said, fault.file), fault.name


def test_rows_left_out_are_listed_and_all_others_count(look: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    files, told = planted([*ROW_FAULTS, *ODDITIES])
    code, said = look(files, *LEAVE_OUT)
    assert code == 0, said
    for fault in ODDITIES:
        assert told[fault.name] in lines_about(said, fault.file), fault.name
    with (tmp_path / "out" / "data" / "left_out.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert f"left_out.csv lists the {len(listed)} rows" in said
    lines = {(row["file"].rpartition("/")[2], int(row["line"])) for row in listed}
    for fault in ROW_FAULTS:
        assert (fault.file, int(re.sub(r"\D", "", told[fault.name]))) in lines, fault.name
    found = re.search(r"interactions +(\d+) train, (\d+) valid, (\d+) test", said)
    assert found is not None
    lost = {name: sum(each == name for each, _ in lines) for name in files}
    assert sum(map(int, found.groups())) == NUM_EVENTS + 1 - lost[EVENTS]  # one event stands there twice
    items = re.search(r"^ +items +(\d+)$", said, re.MULTILINE)
    assert items is not None
    assert int(items[1]) == NUM_ITEMS + 2 - lost[ITEMS]  # the row of the stray quote falls into three


def test_looking_makes_no_model(
    look: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGD_HOME", str(tmp_path / "home"))
    assert look(exports())[0] == 0
    assert not (tmp_path / "home").exists()


def test_sasrec_needs_two_people_who_chose_two_items(tmp_path: Path) -> None:
    for number, (users, enough) in enumerate([("aab", False), ("aaa", False), ("ab", False), ("aabb", True)]):
        events = tmp_path / f"{number}.csv"
        events.write_text("user_id,item_id\n" + "".join(f"{user},{at}\n" for at, user in enumerate(users)))
        assert have_two_sequences(events) == enough


def test_a_start_tunes_over_children_unless_a_recipe_of_ones_own_says_otherwise() -> None:
    assert read_recipe("ml-100k-small-llama").tuning["normalise"] == "vocabulary", "as the demo was"
    assert tuning_flags({}) == ["--normalise", "children", "--valid-targets", "trained"]
    assert tuning_flags({"normalise": "vocabulary", "beta": 1}) == ["--valid-targets", "trained"]
