"""``--config FILE``: what flags may say, from a file; ``--print-config`` writes one that says the same."""

from __future__ import annotations

import json
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command makes of a file and of flags, as ``--print-config`` tells it."""

    def told(text: str, *flags: str, command: str = "tune", name: str = "run.toml") -> dict[str, Any]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert main([command, "--config", str(tmp_path / name), *flags, "--print-config"]) == 0
        return tomllib.loads(capsys.readouterr().out)

    return told


def test_a_flag_goes_before_the_file_and_the_file_before_the_recipe(printed: Any) -> None:
    told = printed('recipe = "ml-100k-smollm2-lora"\nbatch = 32\nlora_rank = 4\nresume = true\n', "--batch", "16")
    assert (told["batch"], told["lora_rank"], told["resume"]) == (16, 4, True)
    assert (told["lr"], told["lora_layers"], told["patience"]) == (6e-3, 15, 1)  # the recipe's; the recipe's; default
    assert printed("resume = true", "--no-resume")["resume"] is False
    assert printed("lora_rank = 8", "--lora-rank", "0").get("lora_rank") is None


def test_a_flag_that_may_be_repeated_replaces_what_the_file_says(printed: Any) -> None:
    told = printed('columns = {item_id = "sku", title = "name"}', "--columns", "item_id=id", "--columns", "title=t")
    assert told["columns"] == {"item_id": "id", "title": "t"}
    assert printed('columns = {item_id = "sku"}')["columns"] == {"item_id": "sku"}


def test_what_is_printed_says_the_same_again(printed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    odd = 'model = "a\\"b\\\\c\\u007f\\tü😀"\nfrom_config = {hidden_size = 32, rms_norm_eps = 1e-06}\nlr = 2e-05\n'
    first = printed(odd)
    assert first["model"] == 'a"b\\c\x7f\tü😀'
    assert (first["from_config"], first["lr"]) == ({"hidden_size": 32, "rms_norm_eps": 1e-6}, 2e-5)
    assert main(["tune", "--recipe", "ml-100k-smollm2-lora", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert printed(text) == tomllib.loads(text)
    assert printed(json.dumps(tomllib.loads(text)), name="run.json") == tomllib.loads(text)
    assert "# passes over the rows, at most\nepochs = 1\n" in text


def test_what_a_command_cannot_do_without_may_stand_in_the_file(
    printed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = printed('artifact = "art"\nrows = "r.csv"\nalphas = [0, 0.5, 0.5]\n', "--beams", "4,5", command="evaluate")
    assert (told["artifact"], told["rows"], told["alphas"], told["beams"]) == ("art", "r.csv", [0.0, 0.5], [4, 5])
    (tmp_path / "run.toml").write_text('rows = "r.csv"\n')
    assert main(["evaluate", "--config", str(tmp_path / "run.toml")]) == 2
    assert capsys.readouterr().err == "igd: artifact: is needed\n"
    (tmp_path / "run.toml").write_text("vllm = {max_len = 1}\n")
    assert main(["evaluate", "--config", str(tmp_path / "run.toml")]) == 2
    assert "vllm: 'max_len' is no option" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--rows", "r.csv"])
    assert "the following arguments are required: --artifact" in capsys.readouterr().err


def test_a_file_may_begin_with_a_byte_order_mark(printed: Any) -> None:
    assert printed("\ufeffbatch = 32\n")["batch"] == 32
    assert printed('\ufeff{"batch": 32}', name="run.json")["batch"] == 32


def test_printing_settings_loads_nothing_that_evaluates(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "igd_core.evaluation.job", None)  # an import of it fails
    assert printed('artifact = "art"\nrows = "r.csv"\n', command="evaluate")["rows"] == "r.csv"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epocs = 3", "there is no setting 'epocs'; is 'epochs' meant?"),
        ("lora-rank = 3", "there is no setting 'lora-rank'; is 'lora_rank' meant?"),
        ('epochs = "3"', "epochs: '3' is a str; a whole number in 1..2147483647 is needed (3 without quotes)"),
        ("epochs = 0", "epochs: 0 is not in 1..2147483647"),
        ("lr = inf", "lr: inf is not in 0..1e+09, 0 itself left out"),
        ("lora_rank = true", "lora_rank: True is a bool; a whole number in 0..2147483647 is needed"),
        ('schedule = "sine"', "schedule: 'sine' is not one of linear, cosine, constant"),
        ('columns = ["a"]', "columns: 'a' is not OURS=THEIRS, such as item_id=product_id"),
        ('timezone = "Mars"', "timezone 'Mars': no such zone; expected UTC, +01:00 or a name such as Europe/Berlin"),
        ("epochs = 3\nepochs = 4", "Cannot overwrite a value"),
        ("a = " + "[" * 100_000, "maximum recursion depth exceeded"),
        ("{}", "Invalid"),
    ],
)
def test_a_name_or_a_value_that_is_none_is_one_line_and_exit_code_2(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    assert main(["tune", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"igd: {path}: {told}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("run.json", b'{"epochs": 3, "epochs": 4}', "'epochs' stands twice"),
        ("run.json", b"[]", "holds a list, not names and values"),
        ("run.json", b'{"epochs": 3', "Expecting"),
        ("run.toml", b"\xff", "'utf-8' codec can't decode"),
        ("run.toml", b"#" * 1_048_577, "longer than 1,048,576 bytes, so it is no file of settings"),
    ],
)
def test_a_file_that_is_none_is_one_line_and_exit_code_2(
    name: str, data: bytes, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert main(["tune", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"igd: {path}: {told}")
    assert error.count("\n") == 1
    assert main(["tune", "--config", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == f"igd: {tmp_path / 'none.toml'}: No such file or directory\n"
