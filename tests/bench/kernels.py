"""What oneDNN's kernels cost: `python tests/bench/kernels.py`.

oneDNN makes a kernel for each number of rows of each layer, and keeps the 1,024 used last. Here the layers of a small
Llama multiply 2 to 256 rows: each number as it is, and filled up as the forward does it (`kernel_rows`). Each way has a
process of its own, three times over: the first makes the kernels, the others show whether they were kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.engines.embedded.packed_linear import PackedLinear, kernel_rows

LAYERS = ((160, 160), (160, 80), (160, 448), (448, 160))
ROWS = range(2, 257)


@torch.inference_mode()
def measure(*, each: bool) -> None:
    """A line of JSON for each time."""
    torch.set_num_threads(1)
    layers = [PackedLinear(nn.Linear(*shape, bias=False)) for shape in LAYERS]
    inputs = {rows: torch.randn(rows, max(LAYERS)[0]) for rows in {*ROWS, *map(kernel_rows, ROWS)}}
    for turn in range(3):
        began, calls = time.process_time(), 0
        for rows in ROWS:
            given = inputs[rows if each else kernel_rows(rows)]
            for layer in layers:
                layer(given[:, : layer.in_features].contiguous())
                calls += 1
        told = {
            "sizes": "each" if each else "filled up",
            "turn": turn,
            "product_us": round(1e6 * (time.process_time() - began) / calls),
            "resident_mib": round(psutil.Process().memory_info().rss / 2**20),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=["each", "filled"], help="in this process, one alone")
    given = parser.parse_args()
    if given.way:
        measure(each=given.way == "each")
        return
    for way in ("each", "filled"):
        subprocess.run([sys.executable, __file__, "--way", way], check=True)


if __name__ == "__main__":
    main()
