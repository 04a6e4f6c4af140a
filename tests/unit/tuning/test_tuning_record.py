"""What a resumed run is compared with: the settings of its record, read as any file's are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.errors import InputError
from igd_core.tuning.record import going_on, require_same
from igd_core.tuning.settings import LoraSettings, TuningSettings

if TYPE_CHECKING:
    from pathlib import Path

NOW = TuningSettings(epochs=2, lora=LoraSettings(rank=4))


def record(settings: dict[str, Any]) -> dict[str, Any]:
    same: dict[str, Any] = {
        "data": {},
        "artifact": {},
        "model": "m",
        "model_sha256": None,
        "adapter": None,
        "on_unknown": "error",
    }
    return {**same, "settings": settings}


def older(**changes: Any) -> dict[str, Any]:
    """A record of a release that knew neither ``rows_per_user`` nor the adapter's ``layers``."""
    settings = NOW.to_json()
    del settings["rows_per_user"], settings["lora"]["layers"]
    return record(settings | changes)


def test_a_setting_that_is_younger_than_the_run_has_its_default() -> None:
    require_same(older(), record(NOW.to_json()))
    with pytest.raises(InputError, match="settings: rows_per_user was 0 in the run to resume, now 3"):
        require_same(older(), record(NOW.replaced(rows_per_user=3).to_json()))
    with pytest.raises(InputError, match=r"settings: lora was .*'layers': 0.* in the run to resume, now .*'layers': 1"):
        require_same(older(), record(NOW.replaced(lora=LoraSettings(rank=4, layers=1)).to_json()))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epoch": 3}, "settings of the run to resume: there is no setting 'epoch'; is 'epochs' meant?"),
        (
            {"epochs": "3"},
            "settings of the run to resume: epochs: '3' is a str; a whole number in 1..2147483647 is needed",
        ),
    ],
)
def test_a_record_that_is_none_of_this_release_is_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        require_same(older(**changes), record(NOW.to_json()))
    assert str(refused.value).startswith(told)


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    """Before validation rows could be left out all counted, and `igd start` tuned over the vocabulary."""
    assert going_on(tmp_path) == []
    said: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["all", "vocabulary"]),
        ({"valid_targets": "trained", "normalise": "children"}, ["trained", "children"]),
        ({"valid_targets": "all", "normalise": "vocabulary"}, ["all", "vocabulary"]),
    ]
    for settings, (counted, over) in said:
        (tmp_path / "run.json").write_text(json.dumps({"format": "igd-run", "settings": settings}))
        assert going_on(tmp_path) == ["--resume", "--valid-targets", counted, "--normalise", over]
