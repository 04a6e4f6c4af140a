"""`igd data prepare store`: an export becomes rows, with propensities and negatives where answers are on record."""

from __future__ import annotations

import asyncio
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from patience import PATIENCE_S

from igd_core.cli.main import main
from igd_core.datasets.exposure import Exposure, propensity_at
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.rows import HistoryRows
from igd_core.export.folder import ExportFolder
from igd_core.export.run import export
from igd_core.locked_folders import locked_folder
from igd_core.store.base import StoreOptions
from igd_core.store.events import Event
from igd_core.store.impressions import Impression
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_MS = 1_769_860_800_000
ITEMS = [*(f"i{number}" for number in range(30)), "Über:2"]


def event(number: int, item_id: str, **said: Any) -> Event:
    return Event(event_id=f"e{number:04}", item_id=item_id, timestamp_ms=START_MS + 1000 * number, **said)


def shown(request_id: str, *item_ids: str) -> Impression:
    return Impression(
        request_id=request_id,
        timestamp_ms=START_MS,
        catalogue="films",
        version="0123456789abcdef",
        variant="",
        source="model",
        item_ids=item_ids,
        scores=tuple(-float(rank) for rank in range(len(item_ids))),
    )


def written(
    tmp_path: Path, events: Mapping[str, Sequence[Event]], impressions: Mapping[str, Sequence[Impression]]
) -> list[str]:
    """An export of these, and a file of items; returns the flags that name both."""

    async def run() -> None:
        store = open_store(f"file://{tmp_path}/store", options=StoreOptions(timeout_s=PATIENCE_S))
        for user_id, of_user in events.items():
            makes_history = [each for each in of_user if each.kind not in {"view", "skip"}]
            await store.append(user_id, makes_history)
            await store.append_others(user_id, [each for each in of_user if each not in makes_history])
        records = {user_id: [each.packed() for each in of_user] for user_id, of_user in impressions.items()}
        await store.add_records("impressions", records, keep=100, ttl_s=3600.0)
        folder = ExportFolder(tmp_path / "export")
        with locked_folder(folder.path):
            await export(store, folder, parts=2)
        await store.close()

    asyncio.run(run())
    with (tmp_path / "items.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *((item, f"Title of {item}") for item in ITEMS)])
    return ["--export", str(tmp_path / "export"), "--items", str(tmp_path / "items.csv")]


def prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["data", "prepare", "store", *flags, "--out", str(tmp_path / "data"), "--json", "--force"]) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return summary


def rows_of(tmp_path: Path, *parts: str) -> list[dict[str, str]]:
    found = []
    for part in parts or ("train", "valid", "test"):
        with (tmp_path / "data" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            found += list(csv.DictReader(file))
    return found


def background(first: int) -> list[Event]:
    """Enough events, of somebody else, for a split by time."""
    return [event(first + number, f"i{number}") for number in range(20)]


def test_events_of_one_time_stay_in_the_order_in_which_the_store_accepted_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_ann = [replace(event(1, f"i{number}"), event_id=f"e-{number}") for number in (9, 10, 8, 11)]
    prepared(tmp_path, capsys, *written(tmp_path, {"ann": [*of_ann, event(2, "i7")], "bob": background(100)}, {}))
    found = {row["item_id"]: row["history_item_ids"] for row in rows_of(tmp_path) if row["user_id"] == "ann"}
    assert found["i7"] == "i9 i10 i8 i11"


def test_choices_become_rows_with_what_was_shown_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_ann = [
        event(1, "i1"),
        event(2, "i4", kind="view", request_id="r1", position=1),
        # One step of three kinds, from an answer on record: i1 was chosen before, i6 is chosen from it later.
        event(3, "i5", request_id="r1"),
        event(4, "i5", kind="cart", request_id="r1"),
        event(5, "i5", kind="rating", value=4.5),
        event(6, "i6", request_id="r1"),
        event(7, "i7", position=4),  # no answer on record: the event's own position counts
        event(8, "i8", request_id="never on record"),
        event(9, "i9", request_id="r2", position=2),  # by a title's other id: the record does not name it
    ]
    answers = {"ann": [shown("r1", "i4", "i5", "i1", "i6", "gone", "i2"), shown("r2", "i10")]}
    flags = written(tmp_path, {"ann": of_ann, "bob": background(100)}, answers)
    summary = prepared(tmp_path, capsys, *flags)
    found = {row["item_id"]: row for row in rows_of(tmp_path) if row["user_id"] == "ann"}
    assert (summary["events"], summary["other_events"], summary["shown"]) == (28, 1, 4)
    assert {item: row["history_item_ids"] for item, row in found.items()} == {
        "i5": "i1",
        "i6": "i1 i5",
        "i7": "i1 i5 i6",
        "i8": "i1 i5 i6 i7",
        "i9": "i1 i5 i6 i7 i8",
    }
    assert {item: row["propensity"] for item, row in found.items()} == {
        "i5": "0.5",
        "i6": "0.25",
        "i7": "0.25",
        "i8": "",
        "i9": "0.5",
    }
    assert {item: row["negative_item_ids"] for item, row in found.items()} == {
        "i5": "i4 i2",
        "i6": "i4 i2",
        "i7": "",
        "i8": "",
        "i9": "i10",
    }
    assert found["i5"]["negative_propensities"] == f"1 {1 / 6:.6g}"
    assert (found["i5"]["rating"], found["i6"]["rating"]) == ("4.5", "")
    catalogue = read_items(tmp_path / "data" / "items.csv").catalogue
    read = read_interactions(tmp_path / "data" / "train.csv", catalogue).data
    assert isinstance(read, HistoryRows), "what reads prepared rows reads these"


def test_rows_are_split_by_time_and_the_kinds_and_the_power_are_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_ann = [event(1, "i1"), event(2, "i2", kind="view", position=3), event(3, "i3", position=3), *background(10)]
    flags = written(tmp_path, {"ann": of_ann}, {})
    prepared(tmp_path, capsys, *flags, "--position-power", "2")
    times = {part: [int(row["timestamp"]) for row in rows_of(tmp_path, part)] for part in ("train", "valid", "test")}
    assert max(times["train"]) < min(times["valid"]) <= max(times["valid"]) < min(times["test"])
    (row,) = (row for row in rows_of(tmp_path, "train") if row["item_id"] == "i3" and row["propensity"])
    assert float(row["propensity"]) == pytest.approx(1 / 9, rel=1e-5)
    summary = prepared(tmp_path, capsys, *flags, "--kinds", "view,click", "--position-power", "0")
    assert summary["other_events"] == 0
    assert {row["propensity"] for row in rows_of(tmp_path)} == {"", "1"}


def test_without_ranks_there_are_no_such_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = written(tmp_path, {"ann": background(0)}, {"ann": [shown("r1", "i1")]})
    assert prepared(tmp_path, capsys, *flags)["shown"] == 0
    assert list(rows_of(tmp_path)[0]) == ["user_id", "history_item_ids", "item_id", "timestamp"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "export: 1 events are on items that are not in the catalogue of 31 items: 'ghost'; --on-unknown-item"),
        (("--kinds", "sale", "--on-unknown-item", "drop"), "holds no event of the kinds sale"),
        (("--kinds", "Sale"), "kinds: 'Sale' is no name of a kind"),
        (("--position-power", "-1"), "position_power: -1"),
        (("--export", "/nowhere"), "export: /nowhere holds no manifest.json"),
    ],
)
def test_what_cannot_be_prepared_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], told: str
) -> None:
    named = written(tmp_path, {"ann": [*background(0), event(50, "ghost")]}, {})
    assert main(["data", "prepare", "store", *named, "--out", str(tmp_path / "data"), *flags]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_unknown_items_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = written(tmp_path, {"ann": [*background(0), event(50, "ghost")]}, {})
    assert prepared(tmp_path, capsys, *flags, "--on-unknown-item", "drop")["events_dropped"] == 1


def test_rows_taken_keep_their_own_negatives() -> None:
    made = Exposure(
        propensity=np.array([1.0, np.nan, 0.5]),
        negative_start=np.array([0, 2, 2, 5]),
        negative_item=np.array([1, 2, 3, 4, 5], np.int32),
        negative_propensity=propensity_at(np.array([1, 2, 3, 4, 5]), 1.0),
    )
    taken = made.take(np.array([2, 1, 0, 2]))
    assert taken.negative_item.tolist() == [3, 4, 5, 1, 2, 3, 4, 5]
    assert taken.negative_start.tolist() == [0, 3, 3, 5, 8]
    np.testing.assert_array_equal(taken.propensity, [0.5, np.nan, 1.0, 0.5])
    np.testing.assert_allclose(taken.negative_propensity[:3], [1 / 3, 1 / 4, 1 / 5])
    assert made.take(np.array([], np.intp)).negative_start.tolist() == [0]
