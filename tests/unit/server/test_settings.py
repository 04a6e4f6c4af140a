from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from igd_server.settings import Settings, read_settings

from igd_core.cli.main import main
from igd_core.errors import InputError


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
        ({"IGD_ADAPTERS": "tuned"}, "adapters: .*'tuned' is not NAME=DIR.*IGD_ADAPTERS"),
        ({"IGD_ADAPTERS": "a=/x,a=/y"}, "adapters: .*'a' is named twice"),
        ({"IGD_ADAPTERS": ",".join(f"a{n}=/x" for n in range(17))}, "adapters: .*16"),
        ({"IGD_ENGINE": "vllm", "IGD_VLLM": "{"}, "vllm: "),
        ({"IGD_ENGINE": "vllm", "IGD_VLLM": '{"model": "other"}'}, "vllm: .*model"),
        ({"IGD_VLLM": '{"max_model_len": 2048}'}, "vllm: given, with engine 'tree'"),
        ({"IGD_ENGINE": "vllm", "IGD_DEVICE": "cpu"}, "device: 'cpu' with engine 'vllm'"),
        ({"IGD_VARIANTS": "{"}, "variants: .*expected a JSON array"),
        ({"IGD_VARIANTS": '[{"name": "a b"}]'}, "variants"),
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


def test_adapters_and_vllms_options_are_read_from_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGD_ADAPTERS", "tuned=/a, other=/b")
    monkeypatch.setenv("IGD_ENGINE", "vllm")
    monkeypatch.setenv("IGD_VLLM", '{"max_model_len": 2048}')
    settings = read_settings(artifact="a", model="m")
    assert settings.adapters == (("tuned", Path("/a")), ("other", Path("/b")))
    assert settings.vllm == {"max_model_len": 2048}


def test_what_is_missing_says_how_to_give_it() -> None:
    with pytest.raises(InputError, match=r"^model: give --model or IGD_MODEL$"):
        read_settings(artifact="a", model=None)
    with pytest.raises(InputError, match=r"^model: give IGD_MODEL$"):
        read_settings(artifact="a")
    with pytest.raises(InputError, match="artifact or catalogues: give one of them"):
        read_settings(model="m")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"artifact": "a", "catalogues": "films"}, "artifact or catalogues: give one of them"),
        ({"catalogues": "films, films"}, r"catalogues: \['films', 'films'\] names one twice"),
        ({"catalogues": "films,../etc"}, r"catalogues\.1: .*'../etc'"),
        ({"artifact": "a", "variants": '[{"name": "a"}, {"name": "a"}]'}, "variants: .* names one twice"),
        ({"artifact": "a", "variants": '[{"name": "a", "weight": 0}]'}, "variants: all weights are 0"),
        ({"artifact": "a", "variants": '[{"name": "a", "alpha": 7}]'}, r"variants\.0\.alpha: .* not 7"),
        ({"artifact": "a", "variants": "[{"}, "variants: .*expected a JSON array"),
        ({"artifact": "a", "rate_limit": "fast"}, "rate_limit: .* not 'fast'"),
        ({"artifact": "a", "rate_limit": "0/minute"}, "rate_limit: .* not '0/minute'"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(flags: dict[str, str], line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        read_settings(model="m", **flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104 - that is the point
def test_an_address_that_others_reach_needs_keys_or_a_word(host: str) -> None:
    with pytest.raises(InputError, match=f"host: {host} can be reached by others"):
        read_settings(artifact="a", model="m", host=host)
    assert read_settings(artifact="a", model="m", host=host, open_access="true").open_access
    assert read_settings(artifact="a", model="m", host=host, keys_file="keys.json").keys_file == Path("keys.json")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_open_without_a_word(host: str) -> None:
    assert read_settings(artifact="a", model="m", host=host).keys_file is None


def test_lists_read_the_same_from_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = '[{"name": "control"}, {"name": "bold", "alpha": 0.4}]'
    by_flag = read_settings(model="m", catalogues="films,books", variants=variants)
    monkeypatch.setenv("IGD_CATALOGUES", "films,books")
    monkeypatch.setenv("IGD_VARIANTS", variants)
    assert read_settings(model="m") == by_flag
    assert by_flag.catalogues == ("films", "books")
    assert [variant.alpha for variant in by_flag.variants] == [None, 0.4]


def test_settings_do_not_change() -> None:
    settings = Settings(artifact=Path("a"), model="m")
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_a_file_goes_before_defaults_alone_and_its_values_have_types(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IGD_POLL_S", "9")
    monkeypatch.setenv("IGD_CANARY", "")
    path = tmp_path / "server.toml"
    path.write_text(
        'catalogues = ["films", "books"]\nmodel = "m"\nport = 1\npoll_s = 3\ncanary = false\nmax_running = 3\n'
        'adapters = {tuned = "/a"}\nvariants = [{name = "bold", alpha = 1}]\nstore = "redis://:secret@db/0"\n'
    )
    assert main(["serve", "--config", str(path), "--port", "8100", "--no-canary", "--print-config"]) == 0
    printed = capsys.readouterr().out
    told = tomllib.loads(printed)
    assert (told["port"], told["poll_s"], told["canary"], told["max_running"]) == (8100, 9.0, False, 3)
    assert (told["catalogues"], told["variants"][0]["alpha"]) == (["films", "books"], 1.0)
    assert "secret" not in printed
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert main(["serve", "--config", str(again), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    for text, line in (
        ('port = "8100"', "port: '8100' is a str; a whole number in 0..65535 is needed (8100 without quotes)"),
        ("prot = 1", "there is no setting 'prot'; is 'port' meant?"),
        ("store = 5", "store: input should be a valid string (the value is not shown)"),
        ('variants = [{name = "a", alpha = 7}]', "variants"),
        ('adapters = "tuned"', "adapters: 'tuned' is not NAME=DIR"),
    ):
        path.write_text(text)
        assert main(["serve", "--config", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"igd: {path}: {line}")
