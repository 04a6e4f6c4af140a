import json
import subprocess
import sys
import time

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


# In a process of its own: in one that ran other tests, pages freed or dropped meanwhile hide what a stage took.
PEAKS = f"""
import json
from igd_core.stages import Stages
stages = Stages()
with stages.stage("small"):
    pass
with stages.stage("large"):
    b"x" * (256 * {MIB})
with stages.stage("after"):
    pass
print(json.dumps([cost.peak_mib for cost in stages.costs().values()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_the_peak_is_of_all_memory_until_the_stage_ended() -> None:
    ended = subprocess.run([sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True, timeout=60)
    small, large, after = json.loads(ended.stdout)
    assert small > 0
    assert small + 192 < large < small + 320
    assert after == large


def test_a_stage_that_fails_is_not_reported() -> None:
    stages = Stages()
    with pytest.raises(KeyError), stages.stage("broken"):
        raise KeyError("x")
    assert stages.costs() == {}
