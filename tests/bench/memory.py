"""Memory of the embedded engine over many recommendations: `python tests/bench/memory.py --recommendations 5000`.

People who ask at once, each again as soon as answered, after made-up histories; one in seven gives up in the middle.
After each tenth nobody asks for a moment, and a line of JSON tells what the process holds: resident MiB, the same once
the allocator has given back what is free, and how many Python objects and tensors there are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.bench.datasets import load_dataset
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = Path(__file__).parents[2] / "igd_core" / "tuning" / "shipped" / "ml-100k-small-llama"
HISTORY_ITEMS, GIVES_UP, PARTS = 10, 7, 10


def tell(done: int) -> None:
    """A line of what the process holds now."""
    gc.collect()
    process = psutil.Process()
    resident = process.memory_info().rss
    ctypes.CDLL(None).malloc_trim(0)
    objects = gc.get_objects()
    told = {
        "recommendations": done,
        "resident_mib": round(resident / 2**20),
        "trimmed_mib": round(process.memory_info().rss / 2**20),
        "objects": len(objects),
        "tensors": sum(type(each) is torch.Tensor for each in objects),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


async def run(args: argparse.Namespace) -> None:
    """Ask, a tenth after the other."""
    opened = open_engine(EngineOptions(model=args.model, device="cpu", cache_bytes=args.cache_mib << 20))
    artifact = load_dataset("ml-100k", histories=1).artifact(opened.tokenizer)
    await opened.engine.load(artifact)
    recommender = Recommender(artifact, opened.engine)
    rng = np.random.default_rng(0)
    share = artifact.catalogue.frequency + 1.0

    async def person(waiting: Iterator[int]) -> None:
        for number in waiting:
            drawn = rng.choice(len(share), HISTORY_ITEMS, replace=False, p=share / share.sum()).tolist()
            asked = recommender.recommend(Query(history=tuple(map(ItemIndex, drawn)), explain=False))
            if number % GIVES_UP:
                await asked
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asked, float(rng.uniform(0.001, 0.2)))

    tell(0)
    for part in range(1, PARTS + 1):
        waiting = iter(range(args.recommendations // PARTS))
        await asyncio.gather(*(person(waiting) for _ in range(args.at_once)))
        tell(part * (args.recommendations // PARTS))
    await opened.engine.close()


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--recommendations", type=int, default=5000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--cache-mib", type=int, default=32, help="budget of cached prompts (default: %(default)s)")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
