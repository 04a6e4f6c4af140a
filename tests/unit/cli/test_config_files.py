"""``--config FILE``: what flags may say, from a file; ``--print-config`` writes one that says the same."""

from __future__ import annotations

import json
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.artifact.options import BuildOptions
from igd_core.checked_settings import settings_in
from igd_core.cli.attributes import AttributeFlags
from igd_core.cli.build import BuildFlags
from igd_core.cli.build_scorer import ScorerFlags
from igd_core.cli.main import main
from igd_core.cli.reading import ReadingFlags
from igd_core.scorers.gamma_file import ChosenGamma

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


BUILD = 'items = "i.csv"\ninteractions = "x.csv"\ntokenizer = "t"\nout = "o"\n'


def test_settings_of_a_build_and_of_its_scorer_stand_in_one_file(
    printed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = 'scorer = "sasrec"\nscorer_seed = 3\ngamma = [[0, 0.8], [5, 0.5]]\n'
    said = 'title_column = "name"\nmissing = ["price=n/a"]\n' + scorer
    told = printed(BUILD + said, "--alpha", "0.4", "--missing", "price=-", command="build")
    assert (told["alpha"], told["path_column"], told["missing"]) == (0.4, "name", ["price=-"])
    assert (told["scorer"], told["scorer_seed"], told["gamma"]) == ("sasrec", 3, [[0, 0.8], [5, 0.5]])
    assert "scorer" not in printed(BUILD, command="build")
    assert printed(BUILD + 'path_column = ""\ntitle_column = "name"', command="build")["path_column"] == "name"
    needed = [f"--{name}=x" for name in ("items", "interactions", "tokenizer", "out")]
    assert main(["build", *needed, "--print-config"]) == 0
    text = capsys.readouterr().out
    assert printed(text, command="build") == tomllib.loads(text)
    for kind in ("sasrec", "ease"):
        first = printed(BUILD + f'scorer = "{kind}"\n', command="build")
        assert printed(json.dumps(first), command="build", name="b.json") == first


def test_gamma_of_a_file_is_printed_as_the_number_it_names(printed: Any, tmp_path: Path) -> None:
    chosen = ChosenGamma(gamma=0.25, mixture="linear", scorer="ease")
    (tmp_path / "gamma.json").write_text(json.dumps(chosen.to_json()))
    told = printed(BUILD + f'scorer = "ease"\ngamma_from = "{tmp_path / "gamma.json"}"\n', command="build")
    assert (told["gamma"], told["mixture"], told.get("gamma_from")) == (0.25, "linear", None)
    assert printed(json.dumps(told), command="build", name="b.json") == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('scorer = "eas"', "scorer: 'eas' is not one of transitions, neighbours, ease, sasrec, given"),
        ('scorer = "ease"\nscorer_ridge = 0', "scorer_ridge: 0 is not in 0.001..1e+06"),
        ("gamma = 2", "gamma: is 2; 0 to 1 can be"),
        ('maker = "mine"', "there is no setting 'maker'"),
        ('type = ["price"]', "type: 'price' is not NAME=TYPE; --help has an example"),
        ("allow_added_tokens = true", "there is no setting 'allow_added_tokens'"),
    ],
)
def test_a_wrong_setting_of_a_build_is_called_by_its_flag(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "build.toml"
    path.write_text(BUILD + text, encoding="utf-8")
    assert main(["build", "--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"igd: {path}: {told}")


def test_every_setting_of_a_build_comes_back_from_the_file_that_is_printed(printed: Any) -> None:
    said = {
        "items": "i.csv", "title_column": "name", "on_empty_title": "skip", "on_unknown_item": "drop",
        "interactions": "x.csv", "tokenizer": "t", "out": "o", "extend_tokenizer": "e", "force": True,
        "name": 'a "b"', "model_id": "m", "path_column": "code", "allow_special_tokens": True, "max_path_tokens": 5,
        "alpha": 0.25, "smoothing": 1e-7, "instruction": "one\ntwo\t\u2028", "bullet": "", "suffix": " \\ ",
        "max_history": 7, "drop_block": 2, "beams": 4, "on_unspellable": "spell", "scorer": "given",
        "scorer_also": ["ease"], "scorer_share": 0.5, "usual_scorer": False,
        "scorer_decay": 0.5, "scorer_backoff": 2.0, "scorer_entries": 9, "gamma": [[0, 1], [5, 0.5]],
        "mixture": "linear", "scorer_file": "w.csv", "schema": "s.json", "type": ["year=text"], "multi": ["genres=|"],
        "missing": ["price=n/a", "price=-"], "columns": {"item_id": "sku"}, "delimiter": ";", "quoting": "none",
        "encoding": "latin-1", "decimal": "comma", "timezone": "UTC", "on_bad_row": "skip",
    }  # fmt: skip
    told = printed(json.dumps(said), command="build", name="b.json")
    assert {name: told.get(name) for name in said} == said
    models = (BuildFlags, BuildOptions, ScorerFlags, AttributeFlags, ReadingFlags)
    left = {each.name for model in models for each in settings_in(model)} - set(said)
    assert left == {"scorer_ridge", "scorer_epochs", "scorer_seed", "gamma_from"}, "which do not go with the others"
    assert printed(json.dumps(told), command="build", name="b.json") == told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--scorer", "sasrec"], "scorer_entries: sasrec has none; it learns what counts"),
        (["--scorer-ridge", "5"], "scorer_ridge: transitions has none; --scorer ease has"),
        (["--gamma-from", "g.json"], "gamma_from: g.json says gamma too; give one of them"),
    ],
)
def test_a_flag_that_does_not_go_with_the_file_is_refused_by_its_name(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "build.toml"
    path.write_text(BUILD + 'scorer = "transitions"\nscorer_entries = 5\ngamma = 0.5\n')
    assert main(["build", "--config", str(path), *flags]) == 2
    assert capsys.readouterr().err == f"igd: {told}\n"


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
        ("run.toml", b"#" * 1_048_577, "longer than 1,048,576 bytes"),
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
