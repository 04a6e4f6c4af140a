import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from igd_core.stages import Stages

MIB = 1 << 20


def test_a_stage_that_is_entered_again_adds_up_and_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = iter([1.0, 3.0, 3.0, 3.5, 10.0, 14.0]), iter([0.0, 1.5, 1.5, 1.75, 2.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", wall.__next__)
    monkeypatch.setattr(time, "process_time", cpu.__next__)
    stages = Stages()
    for name in ("read", "count", "read"):
        with stages.stage(name):
            pass
    told = stages.report()
    assert [(name, each["seconds"], each["cpu_seconds"]) for name, each in told.items()] == [
        ("read", 6.0, 3.5),
        ("count", 0.5, 0.25),
    ]


def memory_mib(name: str) -> int:
    """``VmHWM``, the peak so far, or ``VmRSS``, of this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_the_peak_is_of_all_memory_until_the_stage_ended() -> None:
    stages = Stages()
    with stages.stage("small"):
        pass
    with stages.stage("large"):
        np.ones((memory_mib("VmHWM") - memory_mib("VmRSS") + 64) * MIB, np.uint8)
    with stages.stage("after"):
        pass
    small, large, after = (cost.peak_mib or 0 for cost in stages.costs().values())
    assert small > 0
    assert small + 32 < large < small + 128
    assert after == large


def test_a_stage_that_fails_is_not_reported() -> None:
    stages = Stages()
    with pytest.raises(KeyError), stages.stage("broken"):
        raise KeyError("x")
    assert stages.costs() == {}
