"""Rows a second of `igd tune` on one and on several devices, in turns; on a CPU each process has one thread.

    .venv/bin/python tests/bench/tuning_devices.py --devices 1,2 -- --artifact DIR --model DIR --train FILE \\
      --valid FILE --epochs 1 ...

What follows ``--`` goes to `igd tune`. Rows a second are the record's: training alone, of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def rows_a_second(flags: list[str], devices: int) -> float:
    """Of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        subprocess.run(
            [sys.executable, "-m", "igd_core", "tune", *flags, "--devices", str(devices), "--out", str(out)],
            check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return float(json.loads((out / "run.json").read_text())["examples_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1,2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="of igd tune, after --")
    args = parser.parse_args()
    found: dict[int, list[float]] = {int(number): [] for number in args.devices.split(",")}
    for _ in range(args.repeats):
        for devices, runs in found.items():
            runs.append(rows_a_second(args.flags, devices))
    print(json.dumps({  # noqa: T201
        str(devices): {"median": round(statistics.median(runs), 2), "runs": runs} for devices, runs in found.items()
    }))  # fmt: skip


if __name__ == "__main__":
    main()
