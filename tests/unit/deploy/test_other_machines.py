"""`tests/other_machines.sh`, with which the gate runs as another machine each day."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "other_machines.sh"
HERE = {name: value for name, value in os.environ.items() if name not in ("TZ", "LC_ALL", "ATEN_CPU_CAPABILITY")}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), *words], env=HERE, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ("openblas-haswell", "OPENBLAS_CORETYPE=Haswell"),
        ("aten-default", "ATEN_CPU_CAPABILITY=default"),
        ("onednn-avx2", "ONEDNN_MAX_CPU_ISA=AVX2"),
        ("one-thread", "OMP_NUM_THREADS=1"),
        ("time-zone", "TZ=Asia/Kathmandu"),
        ("locale", "LC_ALL=C"),
    ],
)
def test_a_setting_reaches_the_command(setting: str, variable: str) -> None:
    found = run(setting, "env")
    assert variable in found.stdout.splitlines()
    assert setting in found.stderr


def test_a_umask_a_home_and_a_busy_core_reach_the_command_whose_status_is_returned() -> None:
    assert run("umask", "sh", "-c", "umask").stdout.strip() == "0077"
    assert " " in run("home-with-a-space", "sh", "-c", 'cd "$HOME" && pwd').stdout.strip()
    assert run("busy-core", "sh", "-c", "exit 3").returncode == 3
    assert run("time-zone", "sh", "-c", "exit 4").returncode == 4


def test_the_day_chooses_among_those_that_this_processor_can_run() -> None:
    daily = run("list").stdout.split()[:-1]
    day = datetime.datetime.now(datetime.UTC).timestamp() // 86400
    chosen = run("today", "true").stderr.split()[-1]
    assert chosen in {daily[int(when) % len(daily)] for when in (day, day + 1)}  # midnight may pass meanwhile


def test_an_unknown_setting_names_those_that_there_are() -> None:
    found = run("another-planet", "true")
    assert found.returncode == 2
    assert "no such setting: another-planet; there are: " in found.stderr
    assert "aten-default" in found.stderr
