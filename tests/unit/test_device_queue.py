"""The queue of runs that want a GPU: each command can start, and `tests/device/all.py` keeps its budget and results."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from device.all import Plan, execute
from device.device_runs import ROOT, RUNS, Run

from igd_core.cli.main import make_parser
from igd_core.engines.vllm.options import parse_tuning

if TYPE_CHECKING:
    from collections.abc import Mapping

README = (ROOT / "tests" / "device" / "README.md").read_text(encoding="utf-8")


def python(code: str, **fields: Any) -> Run:
    return Run(
        **{
            "name": "one",
            "what": "a test",
            "seconds": 30,
            "least": 1,
            "command": (sys.executable, "-c", code),
            **fields,
        }
    )


def results(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (plan.out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(out=tmp_path / "out", work=tmp_path / "work", seconds=60.0)


def words(run: Run, *, dry: bool) -> list[str]:
    """A run's command with its placeholders filled in, from the program on."""
    filled = [re.sub(r"\{(work|fresh|out|model)\}", "/x", word) for word in (*run.command, *(run.dry if dry else ()))]
    assert all(json.loads(word) for word in filled if "{" in word)
    return filled[1:]


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_command_of_the_queue_can_start(run: Run, dry: bool) -> None:
    given = words(run, dry=dry)
    if "igd_core" in given:
        parsed = make_parser(given[given.index("igd_core") + 1]).parse_args(given[given.index("igd_core") + 1 :])
        if getattr(parsed, "vllm", None):
            parse_tuning(parsed.vllm)
    elif "pytest" in given:
        targets = [ROOT / word for word in given if word.startswith("tests/")]
        texts = [
            path.read_text()
            for target in targets
            for path in ([target] if target.is_file() else target.rglob("test_*.py"))
        ]
        assert texts
        for expression in (given[at + 1] for at, word in enumerate(given) if word == "-k"):
            for part in expression.split(" or "):  # of a test's name, a parameter's or a file's
                assert any(part in text for text in [*texts, *map(str, targets)]), part
    else:
        assert (ROOT / given[0]).is_file()
        if "--" in given:
            make_parser("serve").parse_args(["serve", *given[given.index("--") + 1 :]])
    for name, value in run.environment:
        if name == "TEST_VLLM_OPTIONS":
            options = json.loads(value)
            parse_tuning(json.dumps({key: options[key] for key in options.keys() - {"dtype"}}))


def test_the_page_names_the_runs_of_the_queue_in_its_order_with_their_limits() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| .* \| (\d+) \|$", README, re.MULTILINE)
    assert rows == [(run.name, str(run.seconds)) for run in RUNS]


def test_a_run_brings_its_objects_its_output_and_its_code(plan: Plan) -> None:
    said = "import sys; print('{\"per_second\": 3}\\nno object'); print('why', file=sys.stderr)"
    assert execute(plan, (python(said), python("raise SystemExit(3)", name="two"))) == 1
    first, second = results(plan)
    assert (first["state"], first["code"], first["found"]) == ("done", 0, [{"per_second": 3}])
    assert (second["state"], second["code"]) == ("failed", 3)
    assert "why" in (plan.out / "log.txt").read_text()
    assert re.findall(r"^(one|two) +(\w+)", (plan.out / "summary.txt").read_text(), re.MULTILINE) == [
        ("one", "done"),
        ("two", "failed"),
    ]
    assert {path.name for path in plan.out.iterdir()} == {"results.jsonl", "log.txt", "summary.txt"}


def test_a_run_may_leave_files_beside_the_results(plan: Plan) -> None:
    said = "import pathlib, sys; pathlib.Path(sys.argv[1], 'kept').mkdir()"
    run = python(said)
    assert execute(plan, (replace(run, command=(*run.command, "{out}")),)) == 0
    assert (plan.out / "kept").is_dir()


def test_a_run_past_its_limit_is_ended_with_all_that_it_started_and_what_it_said_is_kept(
    plan: Plan, tmp_path: Path
) -> None:
    child = "import time; time.sleep(60)"
    code = (
        "import pathlib, subprocess, sys, time; print('{\"half\": 1}', flush=True);"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    began = time.monotonic()
    assert execute(plan, (python(code, seconds=2),)) == 1
    assert time.monotonic() - began < 20
    (result,) = results(plan)
    assert (result["state"], result["found"]) == ("cut off", [{"half": 1}])
    assert not _alive(int((tmp_path / "pid").read_text()))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_that_no_longer_fits_is_left_out_and_a_shorter_one_behind_it_is_not(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path / "out", work=tmp_path / "work", seconds=40.0)
    assert execute(plan, (python("", least=100), python("", name="two"))) == 0
    long, short = results(plan)
    assert (long["state"], short["state"]) == ("skipped", "done")
    assert "100" in long["why"]


def test_the_same_call_again_goes_on_with_what_has_not_ended(plan: Plan, tmp_path: Path) -> None:
    def counted(name: str, code: str = "") -> Run:
        return python(f"open({str(tmp_path / name)!r}, 'a').write('x'); {code}", name=name, seconds=2)

    runs = (counted("good"), counted("bad", "raise SystemExit(1)"), counted("long", "import time; time.sleep(60)"))
    assert execute(plan, runs) == 1
    with (plan.out / "results.jsonl").open("a") as lines:
        lines.write('{"run": "long", "sta')  # the machine went away while it wrote
    assert execute(plan, (runs[0], runs[1], counted("long"))) == 1  # bad has failed, and is not tried again unasked
    assert {run.name: len((tmp_path / run.name).read_text()) for run in runs} == {"good": 1, "bad": 1, "long": 2}
    assert execute(plan, runs, again={"bad"}) == 1
    assert len((tmp_path / "bad").read_text()) == 2


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"modules": ("no_such_module",)}, "no_such_module is not installed"),
        ({"gpus": 99}, "99 GPUs"),
        ({"commit": "0" * 40}, "history"),
        ({"after": "files"}, "files"),
    ],
)
def test_a_run_that_cannot_be_made_here_says_why(plan: Plan, fields: Mapping[str, Any], why: str) -> None:
    assert execute(plan, (python("", **fields),)) == 0
    (result,) = results(plan)
    assert result["state"] == "skipped"
    assert why in result["why"]


def test_runs_that_measure_have_the_machine_to_themselves_and_others_run_side_by_side(tmp_path: Path) -> None:
    stamps = tmp_path / "stamps"

    def stamped(name: str, alone: bool) -> Run:
        write = f"open({str(stamps)!r}, 'a').write"
        return python(f"import time; {write}('+{name} '); time.sleep(1.5); {write}('-{name} ')", name=name, alone=alone)

    plan = Plan(out=tmp_path / "out", work=tmp_path / "work", seconds=60.0, at_once=2)
    runs = (stamped("a", True), stamped("b", False), stamped("c", False), stamped("d", False), stamped("e", True))
    assert execute(plan, runs) == 0
    inside, most = set[str](), 0
    for stamp in stamps.read_text().split():
        (inside.add if stamp[0] == "+" else inside.discard)(stamp[1])
        assert len(inside) == 1 or not inside & {"a", "e"}
        most = max(most, len(inside))
    assert most == 2
