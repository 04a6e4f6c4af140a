"""What a recommendation takes over the vocabulary, by decisions alone, and over children; in turns.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/normalised_decoding.py --artifact DIR --model DIR --rows FILE

Every history is asked in all three ways, one after another, on the embedded engine without a cache of past prompts.
Medians of seconds by the clock and of the CPU (steadier on a busy machine), of calls of the model and of tokens in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from igd_core.artifact import load_artifact
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.evaluation.rows import read_rows
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

WAYS: dict[str, dict[str, Any]] = {
    "vocabulary": {"normalise": "vocabulary"},
    "decisions": {"normalise": "vocabulary", "forced_weight": 0.0},
    "children": {"normalise": "children"},
}


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over histories."""
    artifact = load_artifact(args.artifact)
    rows = read_rows(args.rows, artifact, limit=args.histories, seed=0, on_unknown="miss")
    engine = open_engine(EngineOptions(model=args.model, device="cpu", cache_bytes=0)).engine
    await engine.load(artifact)
    recommender = Recommender(artifact, engine)
    found: dict[str, list[tuple[float, float, int, int]]] = {name: [] for name in WAYS}
    for at, history in enumerate(rows.histories):
        for name in [*WAYS, *WAYS][at % len(WAYS) :][: len(WAYS)]:
            started, cpu_started = time.perf_counter(), time.process_time()
            answer = await recommender.recommend(Query(history=history, explain=False, **WAYS[name]))
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
            if at >= args.warm_up:
                found[name].append((seconds, cpu_s, answer.stats.rounds, answer.stats.model_tokens))
    await engine.close()
    measures = ("seconds", "cpu_s", "rounds", "tokens")
    medians = {
        name: dict(zip(measures, map(statistics.median, zip(*each, strict=True)), strict=True))
        for name, each in found.items()
    }
    return {"histories": len(found["children"]), "threads": torch.get_num_threads(), **medians}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--histories", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=2, help="histories that are not counted")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))  # noqa: T201


if __name__ == "__main__":
    main()
