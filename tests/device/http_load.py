"""`igd serve` under `igd bench serve`, on whatever device is there: `python tests/device/http_load.py -- FLAGS`.

FLAGS are those of `igd serve`, with `--artifact DIR`. The server starts on a free port and answers nothing twice
(`IGD_RESULT_TTL_S=0`). First the capacity is found (closed loop), then `--overload` times as many requests a second
arrive for `--seconds`, whatever the answers do. A server that ends while it starts ends this at once, with its log.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from server_process import ServerProcess  # noqa: E402 - from tests/, by the line above

from igd_core.bench.http_pool import Target  # noqa: E402
from igd_core.bench.serve import ServeBench, bench_rate, find_capacity  # noqa: E402
from igd_core.bench.traffic import Mix, made_up_histories  # noqa: E402

DEADLINE_S = 10.0
VLLM_METRICS = ("vllm:num_preemptions_total", "vllm:prefix_cache", "vllm:iteration_tokens_total_count")


def main() -> int:
    """Run, and print a JSON object for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-seconds", type=float, default=3.0, metavar="S", help="of each step to the capacity")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of the overload")
    parser.add_argument("--overload", type=float, default=3.0, metavar="X", help="times the capacity")
    parser.add_argument("--start-s", type=float, default=240.0, metavar="S", help="longest start")
    parser.add_argument("--running", default="48", metavar="N", help="IGD_MAX_RUNNING (default: %(default)s)")
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="-- FLAGS", help="of `igd serve`")
    args = parser.parse_args()
    flags = [flag for flag in args.flags if flag != "--"]
    artifact = Path(flags[flags.index("--artifact") + 1])
    began = time.perf_counter()
    server = ServerProcess.start(*flags, IGD_RESULT_TTL_S="0", IGD_MAX_RUNNING=args.running)
    try:
        url = str(server.event("listening", args.start_s)["url"]).rstrip("/")
        _tell(flags=flags, ready_s=_ready_s(server, url, began, args.start_s))
        bench = ServeBench(
            target=Target.of(url),
            histories=made_up_histories(artifact, seed=0),
            mix=Mix(body={"k": 10, "timeout_ms": int(1000 * DEADLINE_S)}),
            deadline_s=DEADLINE_S,
            seconds=args.step_seconds,
        )
        capacity = find_capacity(bench)
        _tell(capacity=capacity)
        if rate := args.overload * float(capacity["capacity_per_s"]):  # 0: too slow for any deadline
            overload = dataclasses.replace(bench, seconds=args.seconds)
            _tell(overload=dict(bench_rate(overload, rate=rate, even=False).report))
        _tell(vllm=[line for line in _get(_metrics(url, flags)).splitlines() if line.startswith(VLLM_METRICS)])
    finally:
        server.stop()
    return 0


def _tell(**part: Any) -> None:
    """Print one part of the report; what comes after it may be cut off."""
    sys.stdout.write(json.dumps(part) + "\n")
    sys.stdout.flush()


def _ready_s(server: ServerProcess, url: str, began: float, longest_s: float) -> float:
    """Seconds until ``/readyz`` answers 200."""
    while time.perf_counter() - began < longest_s:
        if server.process.poll() is not None:
            break
        try:
            _get(url + "/readyz")
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return round(time.perf_counter() - began, 1)
    said = server.stderr if len(server.stderr) < 8000 else f"{server.stderr[:4000]}\n[...]\n{server.stderr[-4000:]}"
    raise SystemExit(f"not ready after {time.perf_counter() - began:.0f} s:\n{said}")


def _metrics(url: str, flags: list[str]) -> str:
    """Where the metrics are: on the port of their own, which replicas need, if there is one."""
    if "--operations-port" in flags:
        url = f"http://127.0.0.1:{flags[flags.index('--operations-port') + 1]}"
    return url + "/metrics"


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - a server of our own
        return str(answer.read().decode())


if __name__ == "__main__":
    raise SystemExit(main())
