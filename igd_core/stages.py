"""What each stage of a long job took: seconds, CPU seconds, and the peak of memory by its end."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage took.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of all threads of this process.
        peak_mib: the process's largest resident set until the end of this stage, MiB, mapped files included; None where
            the system does not tell.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: int | None


class Stages:
    """The stages of a job, in order; a stage that is entered again adds to its times."""

    def __init__(self) -> None:
        self._costs: dict[str, StageCost] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as (a part of) the stage ``name``."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if (before := self._costs.get(name)) is not None:
            wall, cpu = wall + before.seconds, cpu + before.cpu_seconds
        self._costs[name] = StageCost(seconds=wall, cpu_seconds=cpu, peak_mib=_peak_mib())

    def costs(self) -> dict[str, StageCost]:
        """Each stage's cost by name, in the order in which they were first entered."""
        return dict(self._costs)

    def report(self) -> dict[str, dict[str, float | None]]:
        """As `costs`, for JSON; seconds to a millisecond."""
        return {
            name: {**asdict(cost), "seconds": round(cost.seconds, 3), "cpu_seconds": round(cost.cpu_seconds, 3)}
            for name, cost in self._costs.items()
        }


def _peak_mib() -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:  # no Linux
        return None
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return peaks[0] // 1024 if peaks else None
