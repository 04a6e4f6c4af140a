"""The first minute: `igd` without its extras, how long its help takes, and what its messages name."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.settings import Settings, read_settings

from igd_core import extras
from igd_core.cli.main import COMMANDS, main, make_parser
from igd_core.errors import InputError
from igd_core.release import RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[3]
SETTINGS = set(Settings.model_fields)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![\w-])")
OTHER_PROGRAMS = re.compile(r"pip install [^'\"\n]*")

# Runs commands where no extra is installed: their modules cannot be found, whatever this environment has.
BARE = """
import contextlib, io, json, sys
missing = set(json.loads(sys.argv[1]))
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
from igd_core.cli.main import main
ends = []
for argv in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    ends.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ends))
"""


def in_a_bare_environment(*commands: list[str], without: Iterable[str] = ()) -> list[tuple[Any, str, str]]:
    """Exit code, standard output and standard error of each; modules of ``without`` are not there either."""
    arguments = [json.dumps(sorted({*extras.EXTRA_OF_MODULE, *without})), json.dumps(commands)]
    done = subprocess.run([sys.executable, "-c", BARE, *arguments], capture_output=True, text=True, check=True)
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for each in parsers(parser) for action in each._actions for flag in action.option_strings}


def test_every_command_explains_itself_without_extras_and_without_what_computes() -> None:
    words = [
        *([name] for name in COMMANDS),
        *(["data", "prepare", source] for source in ("ml-100k", "amazon", "csv")),
        *(["bench", kind] for kind in ("decode", "serve", "vllm")),
        *(["tune", part] for part in ("lists", "merge", "tokenizer")),
    ]
    computing = ("numpy", "pyarrow", "safetensors", "tokenizers", "matplotlib")
    ends = in_a_bare_environment(["--help"], ["--version"], *([*each, "--help"] for each in words), without=computing)
    assert {code for code, _, _ in ends} == {0}, ends
    listed = ends[0][1]
    assert all(re.search(rf"^    {name}\b", listed, re.MULTILINE) for name in COMMANDS)
    assert ends[1][1] == f"igd {RELEASE}\n"


def test_a_command_that_needs_an_extra_names_it_in_one_line(pristine_bundle: Path, tmp_path: Path) -> None:
    bundle, model = ["--artifact", str(pristine_bundle)], ["--model", str(tmp_path)]
    rows = tmp_path / "rows.csv"
    rows.write_text("history_item_ids,item_id\nitem-1,item-2\n", encoding="utf-8")
    needing = {
        "core": [
            ["recommend", *bundle, *model],
            ["evaluate", *bundle, *model, "--rows", str(rows)],
            ["inspect", *bundle, "--checkpoint", str(tmp_path), "--rows", str(rows)],
            ["bench", "decode", *model],
        ],
        "server": [
            ["serve", *bundle, *model],
            ["publish", *bundle, "--store", "redis://127.0.0.1:1/0"],
            ["demo", "--no-serve"],
        ],
        "batch": [["batch", *bundle, *model, "--rows", str(rows), "--out", str(tmp_path / "batch")]],
        "train": [["tune", "--recipe", "small-llama", *bundle, "--out", str(tmp_path / "run")]],
    }
    asked = [(extra, argv) for extra, commands in needing.items() for argv in commands]
    for (extra, argv), (code, out, err) in zip(asked, in_a_bare_environment(*(argv for _, argv in asked)), strict=True):
        assert (code, out) == (2, ""), (argv, code, out, err)
        assert re.fullmatch(rf"igd: .* not installed: pip install 'igd-recommender\[{extra}\]'\n", err), (argv, err)


def test_what_needs_no_extra_works_without(pristine_bundle: Path, tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    keys = ["--keys-file", str(tmp_path / "keys.json"), "--json"]
    inspected, made, published = in_a_bare_environment(
        ["inspect", "--artifact", str(pristine_bundle), "--json"],
        ["keys", "create", "--name", "shop", "--scopes", "recommend", *keys],
        ["publish", "--artifact", str(pristine_bundle), "--store", store, "--json"],
    )
    assert (inspected[0], json.loads(inspected[1])["items"]) == (0, 24)
    assert (made[0], json.loads(made[1])["name"]) == (0, "shop")
    assert (published[0], json.loads(published[1])["catalogue"]) == (0, "small")


def test_help_imports_nothing_and_takes_a_moment() -> None:
    program = (
        "import sys; from igd_core.cli.main import main; sys.argv = ['igd', '--help']\ntry: main()\nexcept SystemExit: "
    )
    program += "print(*sys.modules, file=sys.stderr)"
    spent = []
    for _ in range(3):  # of the processor's time, which others on the machine lengthen, but not all three times
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        with process.stderr as lines:
            imported = set(lines.read().split())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        spent.append(used.ru_utime + used.ru_stime)
    assert process.returncode == 0
    outside = {
        "numpy",
        "pyarrow",
        "pydantic",
        "shtab",
        "tokenizers",
        "safetensors",
        "tqdm",
        "matplotlib",
        "asyncio",
        *extras.EXTRA_OF_MODULE,
    }
    assert not imported & outside
    assert min(spent) < 0.3


def test_the_list_says_of_a_command_what_the_command_says() -> None:
    (whole,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    said = {choice.dest: choice.help for choice in whole._choices_actions}
    assert said == {name: text for name, (_, text) in COMMANDS.items()}


def test_one_command_is_parsed_as_if_all_were_there(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        alone, together = (
            next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
            for parser in (make_parser(name), make_parser())
        )
        assert flags_of(alone) == flags_of(together)
    for argv in ([], ["no-such"], ["--no-such"]):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2
    assert "invalid choice: 'no-such'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("demo --prot 3", "igd demo: there is no flag --prot; is --port meant?; see igd demo --help"),
        ("recommend --config x", "igd recommend: there is no flag --config; see igd recommend --help"),
        ("build -x", "igd build: there is no flag -x; see igd build --help"),
        ("build --overwrite", "igd build: there is no flag --overwrite; see igd build --help"),
        (
            "data prepare csv --itens=1",
            "igd data prepare csv: there is no flag --itens; is --items meant?; see igd data",
        ),
        ("demo films", "igd demo: unrecognized arguments: films; see igd demo --help"),
        ("recommend --mod m", "igd recommend: the following arguments are required: --artifact; see igd recommend"),
        ("inspect -- --top", "igd inspect: the following arguments are required: --artifact; see igd inspect --help"),
    ],
)
def test_a_flag_that_there_is_not_is_named_first_with_the_help_of_its_command(
    command: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    error = capsys.readouterr().err
    assert error.startswith(told)
    assert error.count("\n") == 1


def test_what_is_a_fault_of_ours_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras.what_to_install(ModuleNotFoundError(name="igd_core.none"), "build") is None
    assert extras.what_to_install(ModuleNotFoundError(name="numpy"), "build") is None
    assert extras.what_to_install(ModuleNotFoundError("no name"), "build") is None
    # There, but of a release without that part.
    assert extras.what_to_install(ModuleNotFoundError(name="torch.none"), "build") is None
    build = importlib.import_module("igd_core.cli.build")

    def broken(_: object) -> None:
        raise ModuleNotFoundError(name="igd_core.none")

    monkeypatch.setattr(build, "add_parser", broken)
    with pytest.raises(ModuleNotFoundError):
        main(["build"])


@pytest.mark.parametrize("name", ["file/x", "x" * 300])
def test_a_path_that_the_system_refuses_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("item_id,title\n1,A\n")
    items, bad = str(tmp_path / "file"), str(tmp_path / name)
    usual = {"--items": items, "--interactions": items, "--tokenizer": items, "--out": str(tmp_path / "out")}
    for flag in usual:
        assert main(["build", *(word for pair in (usual | {flag: bad}).items() for word in pair)]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"igd: {tmp_path}/")
        assert told.count("\n") == 1


def test_messages_know_an_extra_of_every_module_that_the_code_imports() -> None:
    imported = set()
    for package in ("igd_core", "server"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(str(node.module).partition(".")[0])
    always = {
        "numpy",
        "pyarrow",
        "pydantic",
        "safetensors",
        "shtab",
        "tokenizers",
        "tqdm",
        "matplotlib",
        "huggingface_hub",
    }
    own_message = {"bitsandbytes", "scipy"}
    behind_another = {"typing_extensions"}
    known = {*extras.EXTRA_OF_MODULE, *always, *own_message, *behind_another, *sys.stdlib_module_names}
    assert imported - known == {"igd_core", "igd_server"}


def test_a_checkout_that_is_not_installed_knows_its_release() -> None:
    program = """
import importlib.metadata, sys
def no_metadata(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.distribution = importlib.metadata.version = no_metadata
import igd_server.process
from igd_server.observe.tracing import open_tracing
open_tracing("http://127.0.0.1:1/v1/traces").close()
from igd_core.cli.main import main
main(["--version"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"igd {RELEASE}\n"), done.stderr
    assert importlib.metadata.version("igd-recommender") == RELEASE  # what `pyproject.toml` makes of it


def test_the_extras_of_the_package_are_those_that_messages_name() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = importlib.metadata.packages_distributions()
    for module, extra in extras.EXTRA_OF_MODULE.items():
        if module in ("vllm", "ray"):
            continue
        brought = {re.split(r"[\[>=<]", requirement)[0] for requirement in declared[extra]}
        brought |= (
            {"starlette", "httptools", "uvloop"} if extra == "server" else set()
        )  # fastapi's, uvicorn[standard]'s
        assert {name.lower().replace("_", "-") for name in modules[module]} & brought, module
    named = set(",".join(extras._EXTRA_OF_COMMAND.values()).split(",")) | set(extras.EXTRA_OF_MODULE.values())
    assert named <= set(declared)


def _messages() -> Iterator[tuple[str, str]]:
    """Every text in the code but docstrings, with where it stands; what f-strings put in is left open."""
    for package in ("igd_core", "server"):
        for path in sorted((ROOT / package).rglob("*.py")):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            said_of_code = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if id(node) in said_of_code:
                    continue
                if isinstance(node, ast.JoinedStr):
                    parts = (str(at.value) if isinstance(at, ast.Constant) else "\0" for at in node.values)
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def test_every_flag_that_the_code_names_exists() -> None:
    known = flags_of(make_parser())
    unknown = {
        (where, flag)
        for where, text in _messages()
        for flag in FLAG.findall(OTHER_PROGRAMS.sub("", text).replace("--no-deps", ""))
        if flag not in known
    }
    assert not unknown


def test_every_flag_in_a_command_of_the_documents_is_one_of_that_command() -> None:
    """`igd NAME ... --flag` in blocks of code, lines that go on included."""
    by_command = {
        name: flags_of(parser)
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, parser in action.choices.items()
    }
    found = 0
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, rest in re.findall(r"(?<![\w/-])igd ([a-z]+)((?: [^\n`|#;&]*)?)", text):
            if name in by_command:
                for flag in FLAG.findall(rest):
                    found += 1
                    assert flag in by_command[name], (document.name, name, flag)
    assert found > 50


def test_complaints_of_settings_name_flags_only_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    (commands,) = (at for at in make_parser("serve")._actions if isinstance(at, argparse._SubParsersAction))
    given: dict[str, Any] = {at.dest: None for at in commands.choices["serve"]._actions if at.dest in SETTINGS}
    for name in SETTINGS - {"artifact", "model", "catalogues", "store", "host", "cache_dir", "keys_file"}:
        monkeypatch.setenv(f"IGD_{name.upper()}", "{no such value}")
    with pytest.raises(InputError) as refused:
        read_settings(**{**given, "artifact": "a", "model": "m"})
    complaints = str(refused.value).split("; ")
    assert len(complaints) > 20
    for complaint in complaints:
        name = complaint.partition(":")[0].partition(".")[0]
        named = [f"--{name.replace('_', '-')}"] if name in given else []
        assert FLAG.findall(complaint.rpartition("(")[2]) == named, complaint
