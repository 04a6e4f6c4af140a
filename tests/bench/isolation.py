"""One measurement in one fresh process, with a time and a memory limit: what it cannot finish is a result too."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIB = 1 << 20
_POLL_S = 0.05
# Spinning OpenMP threads stall by whole scheduler ticks once anything else runs: a log-softmax of 10 x 49k then takes
# 8 ms on two busy cores instead of 0.6.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
_TESTS = Path(__file__).parents[1]
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Report(Protocol):
    """Hands results to the parent; what was reported before a failure is kept."""

    def __call__(self, **values: Any) -> None:
        """Add ``values``, which must be JSON-serialisable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child process may use before it is stopped.

    Attributes:
        seconds: wall clock, the start of the interpreter and imports included.
        memory_mib: resident set, MiB; enforced where there is ``/proc``.
    """

    seconds: float = 120.0
    memory_mib: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a child process.

    Attributes:
        values: everything it reported, also before a failure.
        failure: None, or why it did not finish, in words.
    """

    values: dict[str, Any]
    failure: str | None


@dataclass(slots=True)
class PeakMemory:
    """Resident set at creation and its peak since then, MiB.

    Read from ``VmHWM``, which belongs to the address space. ``ru_maxrss`` does not do for a child process: across exec
    it keeps the peak of the process that started it (Linux adds the old address space's high-water mark).
    """

    before_mib: float = field(init=False)

    def __post_init__(self) -> None:
        with suppress(OSError):  # where the mark cannot be reset, an earlier peak counts as the baseline
            _CLEAR_REFS.write_text("5")
        self.before_mib = _high_water_mib()

    def peak_mib(self) -> float:
        """Highest resident set since creation."""
        return _high_water_mib()


def _high_water_mib() -> float:
    try:
        status = _STATUS.read_text()
    except OSError:  # macOS: bytes, and exec starts afresh there
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def run_apart(task: str, arguments: Mapping[str, Any], limits: Limits | None = None) -> Outcome:
    """Call ``task`` in a new interpreter and wait.

    Args:
        task: ``"module:function"``, as `bench.trie_tasks:prepare`; called as ``function(arguments, report)``.
        arguments: JSON-serialisable.
        limits: time and memory; the defaults of `Limits` if None.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="igd-bench-") as scratch:
        result, errors = Path(scratch, "result.json"), Path(scratch, "stderr")
        command = [sys.executable, "-m", "bench.isolation", task, json.dumps(dict(arguments)), str(result)]
        command.append(str(math.ceil(limits.seconds) + 1))
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, env=_environment()
            )
            try:
                failure = _wait(process, limits)
            finally:
                process.kill()
                process.wait()
        if failure is None and process.returncode:
            failure = _why_it_ended(process.returncode, errors.read_text(errors="replace"))
        values = json.loads(result.read_text()) if result.is_file() else {}
    return Outcome(values=values, failure=failure)


def _environment() -> dict[str, str]:
    """Ours, with what lets a child import this module as `bench.isolation`, and the package beside it."""
    places = [str(_TESTS), str(_TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(places)}


def _wait(process: subprocess.Popen[bytes], limits: Limits) -> str | None:
    deadline = time.monotonic() + limits.seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            return f"no result within {limits.seconds:g} s"
        if _resident_mib(process.pid) > limits.memory_mib:
            return f"stopped above {limits.memory_mib} MiB"
        time.sleep(_POLL_S)
    return None


def _resident_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def _why_it_ended(code: int, stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = lines[-1].strip()[:300] if lines else "no message"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}: {last}"
    return last


def _main(task: str, arguments: str, result: str, seconds: str) -> None:
    signal.alarm(int(seconds))  # nothing is left running if the parent is killed
    values: dict[str, Any] = {}
    target = Path(result)

    def report(**new: Any) -> None:
        values.update(new)
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(values))
        partial.replace(target)  # the parent may stop this process at any moment

    module, _, function = task.partition(":")
    getattr(importlib.import_module(module), function)(json.loads(arguments), report)


if __name__ == "__main__":
    _main(*sys.argv[1:])
