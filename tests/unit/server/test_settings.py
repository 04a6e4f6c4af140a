from __future__ import annotations

from pathlib import Path

import pytest

from igd_core.errors import InputError
from server.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("IGD_")]:
        monkeypatch.delenv(name)


def test_flags_go_before_variables_and_these_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGD_ARTIFACT", "/a")
    monkeypatch.setenv("IGD_PORT", "9000")
    monkeypatch.setenv("IGD_MAX_BATCH", "7")
    monkeypatch.setenv("IGD_HOME", "/somewhere")
    settings = read_settings(model="m", port="8100", host=None)
    assert (settings.artifact, settings.model, settings.port, settings.max_batch) == (Path("/a"), "m", 8100, 7)
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"IGD_PROT": "1"}, "IGD_PROT: no such setting; is IGD_PORT meant?"),
        ({"IGD_XYZZY": "1"}, "IGD_XYZZY: no such setting"),
        ({"igd_colour": "red"}, "igd_colour: no such setting"),
        ({"IGD_PORT": "99999"}, "port: .* not '99999' .*IGD_PORT"),
        ({"IGD_PORT": "http"}, "port: .* not 'http'"),
        ({"IGD_ENGINE": "turbo"}, "engine: .*'tree'.* not 'turbo'"),
        ({"IGD_DEVICE": "gpu"}, "device: .* not 'gpu'"),
        ({"IGD_DTYPE": "int3"}, "dtype: .* not 'int3'"),
        ({"IGD_MAX_BODY_BYTES": "-1"}, "max_body_bytes"),
        ({"IGD_DEFAULT_TIMEOUT_MS": "90000"}, "default_timeout_ms 90000 is above max_timeout_ms 60000"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=line) as caught:
        read_settings(artifact="a", model="m")
    assert "\n" not in str(caught.value)


def test_what_is_missing_says_how_to_give_it() -> None:
    with pytest.raises(InputError, match="artifact: give --artifact or IGD_ARTIFACT; model: give --model or IGD_MODEL"):
        read_settings()


def test_settings_do_not_change() -> None:
    settings = Settings(artifact=Path("a"), model="m")
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
