"""The folder of a start: it goes on with the same exports and flags, and names what is not the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.errors import InputError
from igd_core.locked_folders import LOCK_FILE
from igd_core.start.folder import LAYOUT_FILE, START_FILE, StartFolder, alone

if TYPE_CHECKING:
    from pathlib import Path

ASKED: dict[str, Any] = {"items": {"file": "a.csv", "sha256": "1"}, "minutes": 5.0, "layout": {"items": {}}}


def opened(path: Path, *, again: bool = False, edited: dict[str, Any] | None = None, **changes: object) -> StartFolder:
    return StartFolder.opened(path, ASKED | changes, again=again, edited=edited)


def test_a_stage_that_is_done_is_known_to_the_next_run_of_the_same(tmp_path: Path) -> None:
    opened(tmp_path / "out").keep("data", {"items": 3}, 1.25)
    assert opened(tmp_path / "out").done == {"data": {"seconds": 1.2, "result": {"items": 3}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 30.0}, "minutes: was 5.0 when this run began, now 30.0; --again does anew"),
        ({"items": {"file": "a.csv", "sha256": "2"}}, "items: a.csv has changed since this run began"),
        ({"items": {"file": "b.csv", "sha256": "1"}}, "items: was 'a.csv' when this run began, now 'b.csv'"),
        ({"layout": {"items": {"delimiter": ";"}}}, 'layout.items.delimiter: was null when this run began, now ";"'),
        ({"device": "cpu"}, 'device: was null when this run began, now "cpu"'),
    ],
)
def test_what_is_not_the_same_is_named_and_nothing_is_lost(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = opened(tmp_path / "out")
    for stage in ("data", "scorer ease", "speed", "tune"):
        folder.keep(stage, {}, 1)
    (tmp_path / "out" / "run").mkdir()
    before = (tmp_path / "out" / START_FILE).read_bytes()
    with pytest.raises(InputError) as refused:
        opened(tmp_path / "out", **changes)
    assert words in str(refused.value)
    assert (tmp_path / "out" / START_FILE).read_bytes() == before
    (tmp_path / "out" / "mine.txt").touch()
    kept = list(opened(tmp_path / "out", again=True, **changes).done)
    left = {"minutes": ["data", "scorer ease", "speed"], "device": ["data", "scorer ease"]}
    assert kept == left.get(next(iter(changes)), [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine.txt", START_FILE]


def test_what_no_stage_that_is_done_depends_on_may_change(tmp_path: Path) -> None:
    folder = opened(tmp_path / "out")
    for stage in ("data", "tokens", "scorer ease", "speed"):
        folder.keep(stage, {}, 1)
    (tmp_path / "out" / "data").mkdir()
    changed = opened(tmp_path / "out", minutes=60.0, baselines=["popular"])
    assert list(changed.done) == ["data", "tokens", "scorer ease", "speed"]
    assert changed.asked["minutes"] == 60.0
    assert (tmp_path / "out" / "data").is_dir()
    (tmp_path / "out" / "run").mkdir()  # of a tuning that was cut off
    with pytest.raises(InputError, match=r"minutes: was 60\.0 when this run began, now 90\.0"):
        opened(tmp_path / "out", minutes=90.0, baselines=["popular"])
    with pytest.raises(InputError, match='model: was null when this run began, now "other"'):
        opened(tmp_path / "out", minutes=60.0, baselines=["popular"], model="other")


def test_before_any_stage_is_done_anything_may_change(tmp_path: Path) -> None:
    opened(tmp_path / "out")
    assert opened(tmp_path / "out", minutes=7.0).asked["minutes"] == 7.0


def test_a_layout_that_was_edited_is_not_written_over(tmp_path: Path) -> None:
    opened(tmp_path / "out")
    assert opened(tmp_path / "out", edited=ASKED["layout"], layout={"items": {"x": 1}}).done == {}  # as it was written
    with pytest.raises(InputError, match=f"{LAYOUT_FILE} was edited; give it back with --layout, or remove it"):
        opened(tmp_path / "out", edited={"items": {"x": 2}})


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        opened(tmp_path, again=True)
    for content in ("{", json.dumps({"format": "other"})):
        (tmp_path / START_FILE).write_text(content)
        with pytest.raises(InputError, match=START_FILE):
            opened(tmp_path, again=True)
    with pytest.raises(InputError, match="is a file"):
        opened(tmp_path / "notes.txt")


def test_two_starts_are_not_at_work_in_one_folder(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "out"),
        pytest.raises(InputError, match="another process is writing it"),
        alone(tmp_path / "out"),
    ):
        pass
    with alone(tmp_path / "out"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"), alone(tmp_path / "file"):
        pass
    assert [each.name for each in (tmp_path / "out").iterdir()] == [LOCK_FILE]
    StartFolder.opened(tmp_path / "out", ASKED, again=False)


def test_nothing_is_left_in_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds something else"), alone(tmp_path):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]
