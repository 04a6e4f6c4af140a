from __future__ import annotations

import json
from pathlib import Path

import pytest

from igd_core.errors import InputError
from igd_core.locked_folders import locked_folder
from igd_core.retune.folder import STATE_FILE, RetuneFolder

ASKED = {"catalogue": "films", "rule": "certainly-better"}


def test_a_round_goes_on_and_the_next_one_begins_when_it_has_ended(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        folder = RetuneFolder.opened(tmp_path, ASKED)
        assert (folder.number, folder.at.name, folder.last_export) == (1, "round-0001", None)
        folder.keep("export", {"users": 3})
        for name in ("export", "data", "run"):
            (folder.at / name).mkdir(parents=True)
        again = RetuneFolder.opened(tmp_path, ASKED)
        assert (again.number, again.done) == (1, {"export": {"users": 3}})
        again.end({"export": {"events": 7}, "version": None})
        assert [path.name for path in (tmp_path / "round-0001").iterdir()] == ["run"]  # nothing of people is kept
        second = RetuneFolder.opened(tmp_path, ASKED)
        assert (second.number, second.done, second.last_export) == (2, {}, {"events": 7})
        second.at.mkdir()
        second.end({"export": {}, "version": "v"})
        assert sorted(path.name for path in tmp_path.glob("round-*")) == ["round-0002"]
        assert [each["round"] for each in RetuneFolder.opened(tmp_path, ASKED).ended] == [1, 2]


def test_an_unfinished_round_of_other_settings_begins_anew(tmp_path: Path) -> None:
    folder = RetuneFolder.opened(tmp_path, ASKED)
    folder.keep("tune", {})
    (folder.at / "run").mkdir(parents=True)
    other = RetuneFolder.opened(tmp_path, ASKED | {"rule": "not-certainly-worse"})
    assert (other.dropped, other.number, other.done, other.at.exists()) == (True, 1, {}, False)
    assert not RetuneFolder.opened(tmp_path, ASKED | {"rule": "not-certainly-worse"}).dropped


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    RetuneFolder.opened(tmp_path, ASKED)
    with pytest.raises(InputError, match="holds rounds of catalogue 'films'; choose another folder"):
        RetuneFolder.opened(tmp_path, {"catalogue": "books"})
    (tmp_path / STATE_FILE).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        RetuneFolder.opened(tmp_path, ASKED)
    (tmp_path / STATE_FILE).write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="was not written by igd retune"):
        RetuneFolder.opened(tmp_path, ASKED)
    (tmp_path / STATE_FILE).rename(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="holds something else"):
        RetuneFolder.opened(tmp_path, ASKED)
