"""Recommendations by models of other shapes, with random weights: `python tests/bench/shapes.py --shape qwen2.5-1.5b`.

Speed asks for no tuned weights, so a checkpoint of the shape is made up, with SmolLM2's tokenizer, and recommends
films of MovieLens-100K after made-up histories: by people who ask again as soon as they are answered, for `--seconds`
a row. Prompts are as long as `--prompt` says, within a title's tokens. A line of JSON a row, as soon as it is measured.

`--paper` runs nothing, and prints what cannot be beaten on a card: a pass reads every weight once, for however many
people; every token costs two operations a weight; a prompt's keys and values are read once a pass.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.bench.datasets import _movielens
from igd_core.engines.embedded.checkpoint import device_of
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.ids import ItemIndex
from igd_core.models import smollm2_dir
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig

    from igd_core.artifact import Artifact
    from igd_core.engines.open import OpenEngine

_MOST_ITEMS = 400  # of a prompt
_SHARED: dict[str, Any] = {"max_position_embeddings": 4096, "tie_word_embeddings": True}
# From each model's config.json on its hub: what decides how much there is to compute.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("llama", {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "num_key_value_heads": 1}),
    "smollm2-135m": ("llama", {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                               "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "qwen2.5-1.5b": ("qwen2", {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
                               "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2}),
    "qwen3-1.7b": ("qwen3", {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
                             "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}),
    "llama-3-8b": ("llama", {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
                             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                             "tie_word_embeddings": False}),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What its maker publishes: bytes a second from memory, dense bf16 operations a second, GB."""

    bandwidth: float
    operations: float
    memory_gb: float


CARDS = {
    "L4": Card(bandwidth=0.3e12, operations=121e12, memory_gb=24),
    "A100": Card(bandwidth=2.04e12, operations=312e12, memory_gb=80),
    "H100": Card(bandwidth=3.35e12, operations=989e12, memory_gb=80),
    "H200": Card(bandwidth=4.8e12, operations=989e12, memory_gb=141),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one row of figures is about."""

    prompt: int
    beams: int
    at_once: int


def rows(people: list[int], *, brief: bool) -> list[Row]:
    """By people at once; then longer prompts and wider searches, and 303 tokens with 50 beams, which a peer tells."""
    ends = sorted({1, max(people)})
    found = [Row(prompt=150, beams=10, at_once=each) for each in people]
    if not brief:
        found += [Row(prompt=prompt, beams=10, at_once=each) for prompt in (300, 1000) for each in ends]
        found += [Row(prompt=150, beams=beams, at_once=each) for beams in (20, 50) for each in ends]
        found += [Row(prompt=303, beams=50, at_once=each) for each in ends]
    return found


def config_of(shape: str) -> PretrainedConfig:
    """The configuration of a shape."""
    from transformers import AutoConfig

    kind, sizes = SHAPES[shape]
    config: PretrainedConfig = AutoConfig.for_model(kind, **{**_SHARED, **sizes}, bos_token_id=1, eos_token_id=2)
    return config


def make_checkpoint(shape: str, directory: Path, device: str) -> Path:
    """Random bf16 weights on disk, made on the device, with SmolLM2's tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device_of(device)):
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source := smollm2_dir() / name).is_file():
            shutil.copy(source, directory / name)
    return directory


def histories(artifact: Artifact, prompt: int) -> Iterator[tuple[ItemIndex, ...]]:
    """Made-up histories, without end, whose prompts have ``prompt`` tokens within a title's."""
    rng = np.random.default_rng(0)
    while True:
        drawn = [ItemIndex(int(item)) for item in rng.permutation(artifact.trie.num_items)]
        low, high = 1, min(len(drawn), _MOST_ITEMS)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if len(artifact.prompt(drawn[:middle])) < prompt else (low, middle)
        yield tuple(drawn[:low])


async def measure(opened: OpenEngine, recommender: Recommender, row: Row, seconds: float) -> dict[str, Any]:
    """One row."""
    drawn = histories(recommender.artifact, row.prompt)
    taken_s: list[float] = []
    rounds: list[int] = []

    async def ask() -> None:
        query = Query(history=next(drawn), k=10, beams=row.beams, exclude_seen=False, explain=False)
        began = time.perf_counter()
        stats = (await recommender.recommend(query)).stats
        taken_s.append(time.perf_counter() - began)
        rounds.append(stats.rounds)

    await asyncio.gather(*(ask() for _ in range(row.at_once)))  # sizes of passes that are new are recorded now
    taken_s.clear()
    rounds.clear()
    before, began = opened.engine.stats(), time.perf_counter()

    async def person() -> None:
        while time.perf_counter() - began < seconds:
            await ask()

    await asyncio.gather(*(person() for _ in range(row.at_once)))
    wall_s, after = time.perf_counter() - began, opened.engine.stats()
    passes = after.passes - before.passes
    return {
        "prompt": len(recommender.artifact.prompt(next(drawn))),
        "beams": row.beams,
        "at_once": row.at_once,
        "recommendations": len(taken_s),
        "per_second": round(len(taken_s) / wall_s, 2),
        "p50_ms": round(1e3 * statistics.median(taken_s), 1),
        "p95_ms": round(1e3 * float(np.percentile(taken_s, 95)), 1),
        "rounds": statistics.median(rounds),
        "passes": round(passes / len(taken_s), 2),
        "tokens_a_pass": round((after.pass_tokens - before.pass_tokens) / passes, 1) if passes else None,
    }


async def run(args: argparse.Namespace, shape: str, directory: Path) -> None:
    """All rows of a shape, a line each."""
    options = EngineOptions(
        model=make_checkpoint(shape, directory, args.device),
        engine=args.engine,
        device=args.device if args.engine == "tree" else "auto",
        vllm=json.loads(args.vllm) if args.engine == "vllm" else {},
    )
    opened = open_engine(options)
    artifact = build_artifact(
        _movielens()[0], opened.tokenizer, BuildOptions(name="ml-100k", max_history=_MOST_ITEMS, alpha=0.0)
    )
    await opened.engine.load(artifact)
    recommender = Recommender(artifact, opened.engine)
    stats = opened.engine.stats()
    for row in rows(args.at_once, brief=args.brief):
        told = {"shape": shape, "engine": args.engine, "forward": stats.forward, "why_forward": stats.why_forward}
        _say({**told, **await measure(opened, recommender, row, args.seconds)})
    await opened.engine.close()


def paper(shape: str, card: Card, row: Row, *, rounds: int, tokens: int) -> dict[str, Any]:
    """The least milliseconds of a recommendation alone, and the most recommendations a second at once.

    Args:
        shape: of the model, in bf16.
        card: which reads and computes.
        row: of the recommendation; ``at_once`` people share every pass.
        rounds: passes after that over the prompt.
        tokens: fed in all of them.
    """
    from transformers import AutoModelForCausalLM

    config = config_of(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = sum(each.numel() for each in model.parameters())
    embedding = config.vocab_size * config.hidden_size
    multiplied = weights - embedding  # the layers, and the output layer where it is not tied
    output = embedding  # of every token whose children are scored
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2
    if not config.tie_word_embeddings:
        multiplied -= embedding
    context = row.prompt + tokens

    def pass_s(fed: float, scored: float, people: int, keys: int) -> float:
        read = 2 * (multiplied + embedding) + people * keys * kept
        computed = 2 * (fed * multiplied + scored * output)
        return float(max(read / card.bandwidth, people * computed / card.operations))

    def recommendation_s(people: int) -> float:
        prompt = pass_s(row.prompt, 1, people, 0)
        return prompt + rounds * pass_s(tokens / rounds, tokens / rounds, people, context)

    room = card.memory_gb * 0.9e9 - 2 * weights
    return {
        "shape": shape,
        "weights_gb": round(2 * weights / 1e9, 2),
        "kib_a_token": round(kept / 1024, 1),
        "prompt": row.prompt,
        "beams": row.beams,
        "people_in_memory": math.floor(room / (kept * context)) if room > 0 else 0,
        "alone_ms": round(1e3 * recommendation_s(1), 2),
        **{f"per_second_at_{people}": round(people / recommendation_s(people)) for people in (1, 32, 128)},
    }


def _say(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure or compute, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=["smollm2-135m", "qwen2.5-1.5b"])
    parser.add_argument("--engine", choices=["tree", "vllm"], default="tree")
    parser.add_argument("--vllm", default="{}", metavar="JSON", help="as `igd serve` takes it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", nargs="+", type=int, default=[1, 8, 32, 128], metavar="N")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a row (default: %(default)s)")
    parser.add_argument("--brief", action="store_true", help="prompts of 150 tokens and ten beams alone")
    parser.add_argument("--paper", choices=sorted(CARDS), metavar="CARD", help=f"one of {', '.join(CARDS)}")
    parser.add_argument("--rounds", type=int, default=6, help="with --paper")
    parser.add_argument("--tokens", type=int, default=12, help="with --paper: fed in all rounds, a beam")
    args = parser.parse_args()
    for shape in args.shape:
        if args.paper:
            for row in (Row(prompt=150, beams=10, at_once=1), Row(prompt=303, beams=50, at_once=1)):
                tokens = args.tokens * row.beams
                _say(paper(shape, CARDS[args.paper], row, rounds=args.rounds, tokens=tokens))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                asyncio.run(run(args, shape, Path(scratch)))


if __name__ == "__main__":
    main()
