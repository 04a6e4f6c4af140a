from pathlib import Path

import pytest
from bench.isolation import Limits, PeakMemory, run_apart

TASKS = """
import os, signal, sys, time

def add(arguments, report):
    report(sum=arguments["a"] + arguments["b"])
    report(done=True)

def stall(arguments, report):
    report(started=True)
    time.sleep(60)

def grow(arguments, report):
    report(started=True)
    held = bytearray(600 << 20)
    time.sleep(60)

def refuse(arguments, report):
    raise ValueError("catalogue too odd")

def crash(arguments, report):
    report(started=True)
    print("assertion failed: len < 65535", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGABRT)

def own_peak(arguments, report):
    from bench.isolation import PeakMemory
    memory = PeakMemory()
    bytearray(100 << 20)
    report(before=memory.before_mib, peak=memory.peak_mib())
"""


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apart_tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_results_of_a_child_come_back() -> None:
    outcome = run_apart("apart_tasks:add", {"a": 2, "b": 3})
    assert outcome.failure is None
    assert outcome.values == {"sum": 5, "done": True}


@pytest.mark.parametrize(
    ("task", "limits", "failure"),
    [
        ("stall", Limits(seconds=1.0), "no result within 1 s"),
        ("grow", Limits(memory_mib=300), "stopped above 300 MiB"),
        ("crash", Limits(), "ended by SIGABRT: assertion failed: len < 65535"),
    ],
)
def test_child_that_cannot_finish_is_ended_and_says_why_and_how_far_it_came(
    task: str, limits: Limits, failure: str
) -> None:
    outcome = run_apart(f"apart_tasks:{task}", {}, limits)
    assert outcome.failure == failure
    assert outcome.values == {"started": True}


def test_error_of_a_child_is_its_last_line() -> None:
    outcome = run_apart("apart_tasks:refuse", {})
    assert outcome.failure == "ValueError: catalogue too odd"
    assert outcome.values == {}


def test_peak_of_a_child_leaves_out_what_its_parent_held() -> None:
    held = bytearray(b"x" * (400 << 20))
    outcome = run_apart("apart_tasks:own_peak", {})
    assert len(held) == 400 << 20
    assert outcome.values["before"] < 100
    assert outcome.values["peak"] < 250


def test_peak_counts_what_was_released_again() -> None:
    memory = PeakMemory()
    held = bytearray(b"x" * (200 << 20))
    del held
    assert 190 <= memory.peak_mib() - memory.before_mib < 450
