"""The server on Ray Serve, without Ray: what arguments mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from igd_server.ray_serve import Placement, settings_of

from igd_core.errors import InputError

_MANIFEST = Path(__file__).parents[3] / "deploy/ray/rayservice.yaml"
_KNOWN = {"catalogues": "films", "model": "m", "open_access": "true"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, Placement()),
        ({"replicas": "3"}, Placement(least=3, most=3)),
        ({"replicas": 3, "cpus": "0.5", "gpus": 1}, Placement(least=3, most=3, cpus=0.5, gpus=1.0)),
        ({"replicas": "1:8"}, Placement(least=1, most=8)),
    ],
)
def test_placement_is_taken_and_settings_are_left(given: dict[str, Any], found: Placement) -> None:
    args = {**given, "catalogues": "films"}
    assert Placement.taken_from(args) == found
    assert args == {"catalogues": "films"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replicas": "0"}, "replicas: '0' is not N or MIN:MAX"),
        ({"replicas": "4:2"}, "replicas: '4:2' is not N or MIN:MAX"),
        ({"replicas": "many"}, "replicas: 'many' is not N or MIN:MAX"),
        ({"cpus": "two"}, "cpus: 'two' is no number"),
        ({"cpus": "0"}, "cpus: "),
        ({"gpus": "nan"}, "gpus: "),
    ],
)
def test_a_placement_that_cannot_be_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        Placement.taken_from(dict(given))
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**_KNOWN, "operations_port": "9000"}, "operations_port: means nothing under Ray Serve"),
        ({**_KNOWN, "catalogue": "films"}, "catalogue"),
        ({**_KNOWN, "max_running": "none"}, "max_running"),
        ({"catalogues": "films", "model": "m"}, "host: 0.0.0.0 can be reached by others: give API keys"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        settings_of(given)
    assert str(refused.value).startswith(words)


def test_the_machines_variables_hold_and_arguments_go_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGD_STORE", "redis://secret@host:1/0")
    monkeypatch.setenv("IGD_MAX_RUNNING", "3")
    found = settings_of({**_KNOWN, "max_running": "5"})
    assert (found.store, found.max_running, found.catalogues) == ("redis://secret@host:1/0", 5, ("films",))
    monkeypatch.setenv("IGD_REPLICAS", "2")
    monkeypatch.setenv("IGD_OPERATIONS_PORT", "9000")
    with pytest.raises(InputError, match=r"^replicas: means nothing"):
        settings_of(_KNOWN)


def test_the_manifests_arguments_are_settings(tmp_path: Path) -> None:
    manifest = yaml.safe_load(_MANIFEST.read_text(encoding="utf-8"))
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "igd_server.ray_serve:app"
    args = application["args"] | {"keys_file": str(tmp_path / "keys.json")}
    assert Placement.taken_from(args) == Placement(least=2, most=8, cpus=2.0)
    assert settings_of(args).catalogues == ("films",)
