"""What filters cost a server: ``python tests/bench/filters.py --items 1000000``.

Makes a catalogue of made-up paths in memory. For each filter the milliseconds of: its check; an answer by
popularity whose filter was not asked for before, and again; an answer of a model that computes nothing; and after each
the longest time for which the event loop did nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.artifact import Artifact
from igd_core.artifact.counts import Counts
from igd_core.artifact.manifest import Manifest
from igd_core.catalogue.conditions import conditions_of
from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of
from igd_core.catalogue.items import Catalogue, prior
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.catalogue.trie import TokenTrie
from igd_core.engines.fake import FakeEngine
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TOKENS, VOCABULARY = 6, 30_000
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "one value (5 %)": {"genre": "genre 7"},
    "a range (half)": {"price": {"lt": 500}},
    "all but one (95 %)": {"genre": {"none_of": ["genre 7"]}},
    "four attributes (40 %)": {
        "genre": {"none_of": ["genre 7"]},
        "price": {"gte": 100, "lt": 900},
        "year": {"gte": 1995, "lt": 2015},
        "maker": {"exists": True},
    },
    "a hundred makers (0.2 %)": {"maker": [f"maker {number:05d}" for number in range(100)]},
    "sixteen bounds of every kind": {
        "genre": [f"genre {number}" for number in range(19)],
        "maker": {"none_of": [f"maker {number:05d}" for number in range(0, 50_000, 500)]},
        "price": [float(number) for number in range(100)],
        "year": list(range(1900, 2000)),
    },
}


def make(items: int) -> Artifact:
    """A catalogue of so many items, in no order that its leaves have."""
    rng = np.random.default_rng(0)
    paths = rng.zipf(1.3, (items, TOKENS)) % (VOCABULARY - 2) + 1
    paths[:, -3] = rng.permutation(items) % (VOCABULARY - 2) + 1
    paths[:, -1] = 0
    catalogue = Catalogue.build(
        item_ids=[f"{number:010d}" for number in range(items)],
        titles=[f"title {number}" for number in range(items)],
        frequency=rng.integers(0, 100, items),
        metadata={
            "genre": [f"genre {number}" for number in rng.integers(0, 20, items)],
            "year": (1990 + rng.integers(0, 30, items)).tolist(),
            "price": (rng.integers(0, 100_000, items) / 100).tolist(),
            "maker": [f"maker {number:05d}" for number in rng.integers(0, 50_000, items)],
        },
    )
    trie = TokenTrie.build(np.arange(items + 1, dtype=np.int64) * TOKENS, paths.astype(np.int32).ravel())
    gains = InfoGainTable.build(trie, leaf_prior_of(trie, prior(catalogue.frequency)))
    counts = Counts(
        items=items, leaves=trie.num_leaves, nodes=trie.num_nodes, edges=trie.num_edges, depth=trie.depth, cold=0,
        truncated=0,
    )  # fmt: skip
    manifest = Manifest(
        name="bench", tokenizer_sha256="0" * 64, vocab_size=VOCABULARY, eos_id=0, model_id="", alpha=0.2, smoothing=0.0,
        path_column="title", entropy_nats=1.0, counts=counts, parts={},
        template=PromptTemplate(prefix_ids=(1,), bullet_ids=(), suffix_ids=(), max_history=10, drop_block=5),
    )  # fmt: skip
    return Artifact.assemble(manifest, catalogue, trie, gains)


class Stalls:
    """How long a task that always wants to run has had to wait at most."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._over = False

    async def watch(self) -> None:
        """Run until `end`."""
        before = time.perf_counter()
        while not self._over:
            await asyncio.sleep(0)
            now = time.perf_counter()
            self.longest_s, before = max(self.longest_s, now - before), now

    def end(self) -> None:
        """Let `watch` return."""
        self._over = True


async def watched(work: Callable[[], Awaitable[object]], repeats: int) -> dict[str, float]:
    """Medians, in milliseconds, of the time that ``work`` takes and of the longest stall meanwhile."""
    took, stalls = [], []
    for _ in range(repeats):
        watch = Stalls()
        watching = asyncio.create_task(watch.watch())
        await asyncio.sleep(0.001)
        watch.longest_s, began = 0.0, time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
        watch.end()
        await watching
        stalls.append(watch.longest_s)
    return {"ms": statistics.median(took) * 1000, "stall_ms": statistics.median(stalls) * 1000}


async def measure(artifact: Artifact, repeats: int) -> dict[str, Any]:
    """Of each filter."""
    engine = FakeEngine()
    await engine.load(artifact)
    recommender = Recommender(artifact, engine)
    found = {}
    for name, written in FILTERS.items():
        began = time.perf_counter()
        conditions = conditions_of(written, recommender.attributes.types)
        recommender.attributes.unknown_values(conditions)
        checked_ms = (time.perf_counter() - began) * 1000
        history = [ItemIndex(row) for row in range(10)]
        query = Query(history=history, attributes=conditions)
        unseen = Query(history=[], attributes=conditions)

        async def first(query: Query = unseen) -> None:
            recommender._kept.clear()
            await recommender.recommend(query)

        async def popular(query: Query = unseen) -> None:
            await recommender.recommend(query)

        async def decoded(query: Query = query) -> None:
            await recommender.recommend(query)

        kinds = {"first": first, "again": popular, "model": decoded}
        found[name] = {"check": {"ms": checked_ms}}
        for kind, work in kinds.items():
            found[name][kind] = await watched(work, repeats)
    return found


def main() -> None:
    """Print a row a filter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = asyncio.run(measure(make(args.items), args.repeats))
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    lines = [
        f"{'milliseconds':<32}{'check':>10}" + "".join(f"{name:>10}   stall" for name in ("first", "again", "model"))
    ]
    for name, row in found.items():
        cells = (f"{row[kind]['ms']:>10.2f}{row[kind]['stall_ms']:>8.2f}" for kind in ("first", "again", "model"))
        lines.append(f"{name:<32}{row['check']['ms']:>10.2f}" + "".join(cells))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
