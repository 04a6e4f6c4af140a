"""A real memory limit: a control group that kills what needs more, where this machine lets us make one."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """A control group of version 1 or 2."""

    folder: Path

    def take(self, pid: int) -> None:
        """Bring a process in; what it starts later comes with it."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """How many processes the kernel has killed in it."""
        for name in ("memory.oom_control", "memory.events"):
            if (self.folder / name).exists():
                lines = dict(line.split() for line in (self.folder / name).read_text().splitlines())
                return int(lines.get("oom_kill", 0))
        return 0


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit | None]:
    """A limit for the processes that are brought in; None where none can be made here, as in most containers."""
    of_version_1 = (_ROOT / "memory" / "cgroup.procs").exists()
    parent = _ROOT / "memory" if of_version_1 else _ROOT
    folder = parent / f"igd-test-{os.getpid()}-{time.monotonic_ns()}"
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if of_version_1 else ("memory.max",)
    try:
        folder.mkdir()
        for name in names:
            (folder / name).write_text(str(limit_bytes))
        if not of_version_1:
            (folder / "memory.swap.max").write_text("0")
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        yield None
        return
    try:
        yield MemoryLimit(folder=folder)
    finally:
        for _ in range(500):  # until the kernel has let go of the last process
            try:
                folder.rmdir()
            except OSError:
                time.sleep(0.01)
            else:
                break
