"""What a machine can do in the minutes that it is given: rows to tune on, and rows to choose and to judge by."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from igd_core.scorers.options import EASE_BYTES_A_PAIR, MAX_EASE_ITEMS

_SHARE = {"tune": 0.5, "choose": 0.2, "judge": 0.2}
"""Of the minutes; what is left is for the item scorers and the baselines, which nothing limits."""
_MOST_EPOCHS = 8
LEAST_ROWS, _MOST_ROWS = 100, 5_000
_GIB = 1 << 30
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the work runs on.

    Attributes:
        cores: that this process may use.
        threads: that it computes with: fewer where other work keeps cores busy, since threads that wait for each other
            are slower than one.
        free_bytes: of memory, now.
        gpu: its name; empty without one.
    """

    cores: int
    threads: int
    free_bytes: int
    gpu: str

    @staticmethod
    def here(device: str) -> Machine:
        """This machine; ``device`` is ``auto``, ``cpu`` or ``cuda``."""
        import torch

        gpu = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else ""
        cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        if _THREADS not in os.environ:
            threads = max(1, min(threads, round(cores - os.getloadavg()[0])))
        return Machine(cores=cores, threads=threads, free_bytes=_free_bytes(), gpu=gpu)

    def use(self) -> None:
        """Compute with so many threads from now on."""
        import torch

        torch.set_num_threads(self.threads)

    def told(self) -> str:
        """In words."""
        gpu = self.gpu or "no GPU"
        cores = f"{self.cores} core{'s' * (self.cores > 1)}"
        if self.threads < self.cores:
            cores += f" ({self.threads} thread{'s' * (self.threads > 1)}: other work runs; {_THREADS} sets it)"
        return f"{cores}, {self.free_bytes / _GIB:.0f} GiB of memory free, {gpu}"

    def has_room_for_ease(self, items: int) -> bool:
        """Whether the inverse that EASE needs fits into half of the free memory."""
        return items <= MAX_EASE_ITEMS and EASE_BYTES_A_PAIR * items * items < self.free_bytes / 2


def _free_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_gib() -> float:
    """The most memory that this process has held so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _GIB if sys.platform == "darwin" else peak * 1024 / _GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningPlan:
    """How much is tuned.

    Attributes:
        rows: of training that are used, about; all of them unless ``users`` are drawn.
        users: whose rows are used, with their neighbours, so that they share prompts; 0 for all.
        epochs: passes over them, at most.
        rows_per_second: that were measured.
    """

    rows: int
    users: int
    epochs: int
    rows_per_second: float

    @staticmethod
    def of(available: int, users: int, rows_per_second: float, minutes: float) -> TuningPlan:
        """As many of the ``available`` rows of ``users`` as fit into the tuning's share of ``minutes``.

        They are gone over several times if there is time.

        >>> TuningPlan.of(1_000, 50, 10.0, 30)
        TuningPlan(rows=1000, users=0, epochs=8, rows_per_second=10.0)
        >>> TuningPlan.of(1_000_000, 50_000, 10.0, 30)
        TuningPlan(rows=9000, users=450, epochs=1, rows_per_second=10.0)
        """
        fitting = max(1, int(rows_per_second * minutes * 60 * _SHARE["tune"]))
        rows = min(available, fitting)
        epochs = max(1, min(_MOST_EPOCHS, fitting // rows))
        drawn = users_of(rows, available, users) if rows < available else 0
        return TuningPlan(rows=rows, users=drawn, epochs=epochs, rows_per_second=rows_per_second)

    def steps(self, batch: int) -> int:
        """Optimiser steps, at most."""
        return max(1, self.epochs * -(-self.rows // batch))

    def told(self) -> str:
        """In words."""
        minutes = self.rows * self.epochs / self.rows_per_second / 60
        rows = f"about {self.rows:,} rows, of {self.users:,} users" if self.users else f"all {self.rows:,} rows"
        return (
            f"{self.rows_per_second:.1f} rows a second on the first batches; {rows}, {self.epochs} "
            f"time{'s' * (self.epochs > 1)} at most: about {_minutes(minutes)}, {peak_gib():.1f} GiB of memory"
        )


def users_of(rows: int, available: int, users: int) -> int:
    """How many of the users have about so many of the available rows."""
    return max(1, round(rows * users / max(1, available)))


def rows_within(stage: str, available: int, seconds_per_row: float, minutes: float) -> int:
    """How many rows a stage, ``choose`` or ``judge``, may decode; never fewer than a hundred where there are.

    >>> rows_within("judge", 10_000, 0.5, 30), rows_within("judge", 10_000, 50, 30), rows_within("judge", 40, 0.5, 30)
    (720, 100, 40)
    """
    fitting = int(minutes * 60 * _SHARE[stage] / seconds_per_row)
    return min(available, max(LEAST_ROWS, min(_MOST_ROWS, fitting)))


def told_rows(rows: int, available: int, seconds_per_row: float) -> str:
    """The same in words."""
    drawn = f"{rows:,} of {available:,} rows drawn" if rows < available else f"all {rows:,} rows"
    return (
        f"{seconds_per_row:.2f} s a row on the first ones; {drawn}: about {_minutes(rows * seconds_per_row / 60)}, "
        f"{peak_gib():.1f} GiB of memory"
    )


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 1.5 else f"{minutes * 60:.0f} s"
