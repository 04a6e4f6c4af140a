"""What a recommendation costs beside the model's layers: `python tests/bench/host_cost.py --against main`.

The embedded engine as on a GPU (`pooled_llama`, kernel by kernel), by as many people at once as are told, who ask again
at once. A random Llama with SmolLM2's vocabulary and number of layers, of width 8, of which one is computed. What a GPU
would do (layers, output layer, softmax over the vocabulary) is timed and taken off. All times are CPU times of one
process with one thread of torch, so waiting for a core does not count. Compares this working tree with a commit of it,
each in a process of its own, turn by turn; if their answers differ it says so, and ends with 1. Needs SmolLM2's
tokenizer (`igd_core.models`) and MovieLens-100K's titles, as they are and recombined.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import hashlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.search.query import Query

HERE = Path(__file__).resolve().parents[2]
BEAMS, HISTORY_ITEMS, WARM_UP = 10, 10, 4
SYNTHETIC_ITEMS = 11_000
CACHED_TOKENS = 11_650  # of SmolLM2-135M in bf16 in the engine's 256 MiB
WIDTH, LAYERS = 8, 30
NORMALISATIONS = ("vocabulary", "children")
# Logits of a pass are larger than what glibc keeps, and giving them back to the system takes milliseconds of a CPU. A
# GPU's memory is kept.
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}

DEVICE = "device"
STAGES: dict[str, dict[str, tuple[str, ...]]] = {
    DEVICE: {
        "igd_core.engines.embedded.pooled_llama": ("PooledLlama._hidden", "_float_product"),
        "igd_core.search.scores": ("_log_softmax",),
    },
    "prompt": {"igd_core.engines.embedded.engine": ("TreeSession._start", "TreeSession._remember")},
    "plan": {
        "igd_core.engines.embedded.engine": ("TreeSession._round",),
        "igd_core.engines.embedded.token_tree": ("TokenTree._feed",),
    },
    "place": {"igd_core.engines.embedded.pooled_llama": ("PooledLlama.feed",)},
    "scores": {
        "igd_core.engines.embedded.engine": ("TreeEngine._read", "TreeSession._children"),
        "igd_core.engines.embedded.children": ("best_children",),
    },
    "search": {"igd_core.search.beam": ("BeamSearch.run",)},
    "request": {"igd_core.search.recommender": ("Recommender.recommend",)},
    "queue": {
        "igd_core.engines.embedded.engine": ("TreeSession.expand",),
        "igd_core.engines.embedded.worker": ("ModelThread._next", "ModelThread._pass"),
    },
}
"""Functions of each part of a recommendation; what they call of another part counts there. What is not here is "rest":
the event loop, and threads that change. Few functions, since Linux may take microseconds to tell a thread's time."""


class Stages:
    """CPU seconds of each stage, without those of stages below it, over all threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._threads = threading.local()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for a stage."""

        def call(*args: Any) -> Any:
            below = getattr(self._threads, "below", 0.0)
            self._threads.below = 0.0
            started = time.thread_time()
            try:
                return function(*args)
            finally:
                spent = time.thread_time() - started
                self.seconds[stage] += spent - self._threads.below
                self._threads.below = below + spent

        return call

    def timed_method(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `timed`, with any arguments; a coroutine's steps count, and not what it waits for."""
        if not inspect.iscoroutinefunction(function):
            return functools.wraps(function)(
                lambda *args, **kwargs: self.timed(stage, functools.partial(function, *args, **kwargs))()
            )

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            return await _Steps(self, stage, function(*args, **kwargs))

        return wrapped

    def install(self) -> None:
        """Time all functions of `STAGES` that this tree has."""
        import importlib

        for stage, modules in STAGES.items():
            for module, names in modules.items():
                for name in names:
                    owner: Any = importlib.import_module(module)
                    *outer, last = name.split(".")
                    for part in outer:
                        owner = getattr(owner, part, None)
                    if found := getattr(owner, last, None):
                        setattr(owner, last, self.timed_method(stage, found))


class _Steps:
    """A coroutine whose steps count for a stage."""

    def __init__(self, stages: Stages, stage: str, coroutine: Any) -> None:
        self._steps = coroutine.__await__()
        self._next = stages.timed(stage, self._steps.send)

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        while True:
            try:
                waits = self._next(value)
            except StopIteration as done:
                return done.value
            value = yield waits


def make_checkpoint() -> Checkpoint:
    """The random model, run as on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.engines.embedded.pooled_llama import PooledLlama
    from igd_core.models import smollm2_dir

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight.data)
    forward = PooledLlama(model)
    forward._layers = forward._layers[:1]  # the pool has room for all
    return Checkpoint(
        model=model,
        tokenizer=TitleTokenizer.from_directory(smollm2_dir()),
        model_id="random",
        forwards={None: forward},
    )


def make_artifacts(checkpoint: Checkpoint) -> dict[str, Artifact]:
    """MovieLens-100K's titles, and many more made of their words."""
    from igd_core.artifact import BuildOptions, build_artifact
    from igd_core.bench.datasets import load_dataset
    from igd_core.catalogue.items import Catalogue

    sys.path.append(str(HERE / "tests"))
    from bench.synthetic import real_titles, synthetic_titles, zipf_counts

    titles = synthetic_titles(real_titles(), n=SYNTHETIC_ITEMS)
    many = Catalogue.build(
        item_ids=[str(number) for number in range(len(titles))],
        titles=titles,
        frequency=zipf_counts(len(titles)),
    )
    catalogues = {"ml-100k": load_dataset("ml-100k", histories=1).catalogue, "synthetic": many}
    return {
        name: build_artifact(each, checkpoint.tokenizer, BuildOptions(name=name)) for name, each in catalogues.items()
    }


def histories_of(artifact: Artifact, count: int) -> list[tuple[Any, ...]]:
    """Random histories by popularity, all different."""
    import numpy as np

    rng = np.random.default_rng(0)
    share = artifact.catalogue.frequency + 1.0
    return [
        tuple(int(item) for item in rng.choice(len(share), HISTORY_ITEMS, replace=False, p=share / share.sum()))
        for _ in range(count)
    ]


async def measure(
    checkpoint: Checkpoint, artifact: Artifact, queries: Sequence[Query], people: int, stages: Stages
) -> dict[str, Any]:
    """CPU ms of each stage, means a recommendation; and a digest of the items of all answers."""
    from igd_core.engines.embedded.engine import TreeEngine
    from igd_core.search.recommender import Recommendation, Recommender

    engine = TreeEngine(checkpoint, cache_bytes=CACHED_TOKENS * LAYERS * 2 * WIDTH * 4)
    await engine.load(artifact)
    recommender = Recommender(artifact, engine)
    for query in queries[:WARM_UP]:
        await recommender.recommend(query)
    found: dict[int, Recommendation] = {}
    waiting = iter(enumerate(queries[WARM_UP:]))

    async def person() -> None:
        for number, query in waiting:
            found[number] = await recommender.recommend(query)

    before, seconds = engine.stats(), stages.seconds.copy()
    cpu = time.process_time()
    await asyncio.gather(*(person() for _ in range(people)))
    cpu, count = time.process_time() - cpu, len(found)
    spent = {stage: (stages.seconds[stage] - seconds[stage]) * 1e3 / count for stage in STAGES}
    after = engine.stats()
    await engine.close()
    host_ms = cpu * 1e3 / count - spent[DEVICE]
    answers = [[int(item.item) for item in found[number].items] for number in range(count)]
    return {
        "host_ms": host_ms,
        **{f"{stage}_ms": spent[stage] for stage in STAGES if stage != DEVICE},
        "rest_ms": cpu * 1e3 / count - sum(spent.values()),
        "device_ms": spent[DEVICE],
        "rounds": sum(each.stats.rounds for each in found.values()) / count,
        "tokens": sum(each.stats.model_tokens for each in found.values()) / count,
        "passes": (after.passes - before.passes) / count,
        "digest": hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:8],
    }


def child(histories: int) -> None:
    """Answer requests of the parent, one a line: catalogue, normalisation, people at once."""
    import torch

    from igd_core.search import scores
    from igd_core.search.query import Query

    torch.set_num_threads(1)
    scores._BLOCK_LOGITS_CPU = scores._BLOCK_LOGITS_CUDA  # one softmax for all rows, as on a GPU
    stages = Stages()
    stages.install()
    checkpoint = make_checkpoint()
    artifacts = make_artifacts(checkpoint)
    gc.collect()
    gc.freeze()  # as a server does once it has started
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        name, normalise, people = json.loads(line)
        queries = [
            Query(history=each, k=BEAMS, beams=BEAMS, normalise=normalise, explain=False)
            for each in histories_of(artifacts[name], histories + WARM_UP)
        ]
        found = asyncio.run(measure(checkpoint, artifacts[name], queries, people, stages))
        print(json.dumps(found), flush=True)  # noqa: T201


class Tree:
    """A tree's process, which measures when it is told."""

    def __init__(self, path: Path, histories: int) -> None:
        asked = [sys.executable, __file__, "--child", str(path), "--histories", str(histories)]
        self._process = subprocess.Popen(
            asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | KEEP_MEMORY
        )
        self._read()

    def run(self, name: str, normalise: str, people: int) -> dict[str, Any]:
        """One measurement."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, normalise, people]) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._read())
        return found

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the child ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def summary(legs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over turns, and how many recommendations a second keep one core busy."""
    medians = {
        name: round(statistics.median(leg[name] for leg in legs), 3)
        for name, value in legs[0].items()
        if not isinstance(value, str)
    }
    return {"a_second": round(1e3 / medians["host_ms"]), **medians, "digest": legs[0]["digest"]}


def main() -> None:
    """Print one line of JSON for each tree, catalogue, normalisation and number at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit to compare with; without it this tree alone")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--histories", type=int, default=96)
    parser.add_argument("--at-once", default="1,8,32")
    parser.add_argument("--normalise", default=",".join(NORMALISATIONS))
    parser.add_argument("--catalogues", default="ml-100k,synthetic")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.path.insert(0, str(given.child))
        child(given.histories)
        return
    sys.path.append(str(HERE / "tests"))
    from bench.commits import checked_out

    with contextlib.ExitStack() as stack:
        paths = {"here": HERE}
        if given.against:
            paths[given.against] = stack.enter_context(checked_out(given.against))
        trees = {name: Tree(path, given.histories) for name, path in paths.items()}
        for tree in trees.values():
            stack.callback(tree.close)
        kinds = [
            (name, normalise, int(people))
            for name in given.catalogues.split(",")
            for normalise in given.normalise.split(",")
            for people in given.at_once.split(",")
        ]
        digests: set[tuple[tuple[str, str, int], str]] = set()
        for kind in kinds:
            legs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
            for turn in range(given.turns):
                for name in sorted(trees, reverse=turn % 2 == 1):
                    legs[name].append(trees[name].run(*kind))
            for name, found in legs.items():
                print(json.dumps({"tree": name, "kind": kind, **summary(found)}), flush=True)  # noqa: T201
            digests |= {(kind, leg["digest"]) for found in legs.values() for leg in found}
    if len(digests) != len(kinds):
        sys.exit("the answers differ")


if __name__ == "__main__":
    main()
