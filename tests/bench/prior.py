"""What an item scorer's prior costs a recommendation: ``python tests/bench/prior.py``.

Microseconds of CPU that it takes to make the prior of a history, and to mix it into the nodes that a search of 10 beams
asks for: all those on the way to 10 random titles, a round for each decision, as an engine does. Titles are made of
words of real ones, a token a word.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]

from bench.synthetic import real_titles, synthetic_titles, zipf_counts  # noqa: E402 - from tests/, by the line above

from igd_core.catalogue.trie import TokenTrie  # noqa: E402
from igd_core.ids import ROOT, ItemIndex, NodeId  # noqa: E402
from igd_core.scorers.network import NetworkPart, NetworkRecord  # noqa: E402
from igd_core.scorers.options import MIXTURES  # noqa: E402
from igd_core.scorers.rows import SparseRows  # noqa: E402
from igd_core.scorers.sasrec import SASRecScorer  # noqa: E402
from igd_core.scorers.sparse import SparseScorer  # noqa: E402
from igd_core.search.filters import LeafFilter  # noqa: E402
from igd_core.search.prior import HistoryPriors, LeafCounts, Mixing, PriorMixer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.scorers.options import Mixture

SIZES = (1_664, 11_758, 1_000_000)
MOST_OF_A_NETWORK = 100_000
NETWORK = NetworkRecord(width=64, layers=2, heads=2, length=20, temperature=1.0, background=0.05)
BEAMS = 10
HISTORY = 10
FOLLOWERS = 200
RUNS = 100
RECOMMENDATION_S = 0.6


def priors_of(titles: Sequence[str], rng: np.random.Generator) -> HistoryPriors:
    """A catalogue of titles, and a scorer with 200 random followers of each item."""
    words = {word: token for token, word in enumerate(dict.fromkeys(" ".join(titles).split(" ")), start=1)}
    paths = [[*(words[word] for word in title.split(" ")), 0] for title in titles]
    trie = TokenTrie.build(
        np.cumsum([0, *map(len, paths)]), np.fromiter(itertools.chain.from_iterable(paths), dtype=np.int32)
    )
    size = len(titles)
    counted = np.add.reduceat(zipf_counts(size)[trie.leaf_items] + 1, trie.leaf_start[:-1])
    counts = LeafCounts(trie=trie, leaf_of_item=trie.leaf_of_item(), below=np.append(0, np.cumsum(counted)))
    rows = SparseRows(
        scorer_start=np.arange(0, size * FOLLOWERS + 1, FOLLOWERS, dtype=np.int32),
        scorer_item=rng.integers(0, size, size * FOLLOWERS, dtype=np.int32),
        scorer_weight=np.ones(size * FOLLOWERS, np.float32),
    )
    return HistoryPriors(counts=counts, scorer=SparseScorer(rows=rows, decay=0.9, backoff=1.0, fingerprint=""))


def network_of(size: int, rng: np.random.Generator) -> SASRecScorer:
    """A network of random weights, as large as one that `igd build` trains."""
    tensors = {name: rng.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in NETWORK.shapes(size).items()}
    return SASRecScorer(part=NetworkPart(network=NETWORK, tensors=tensors), fingerprint="")


def asked(trie: TokenTrie, rng: np.random.Generator) -> list[list[NodeId]]:
    """Nodes with a choice on the way to ``BEAMS`` random leaves: the first of each way, the second, and so on."""
    rounds: dict[int, set[NodeId]] = defaultdict(set)
    for end in trie.leaf_node[rng.integers(0, trie.num_leaves, BEAMS)].tolist():
        way = [ROOT, *(NodeId(edge + 1) for edge in trie.edges_to(NodeId(end)))]
        for place, node in enumerate(node for node in way if len(trie.children(node)) > 1):
            rounds[place].add(node)
    return [sorted(rounds[place]) for place in sorted(rounds)]


def cost(priors: HistoryPriors, mixture: Mixture, rng: np.random.Generator) -> tuple[float, float, int]:
    """Seconds of CPU for the prior, and for mixing it in; and the nodes."""
    trie = priors.counts.trie
    history = [ItemIndex(int(item)) for item in rng.integers(0, trie.num_items, HISTORY)]
    barred = LeafFilter(leaves=np.unique(priors.counts.leaf_of_item[history]).astype(np.int64), barred=True)
    rounds = [np.array(nodes) for nodes in asked(trie, rng)]
    children = [[np.array(trie.children(node)) for node in nodes] for nodes in rounds]
    rows = [np.repeat(np.arange(len(each)), [len(edges) for edges in each]) for each in children]
    edges = [np.concatenate(each) for each in children]
    began = time.thread_time()
    mixer = PriorMixer(priors.after(history, barred), Mixing(gamma=0.3, mixture=mixture))
    between = time.thread_time()
    for nodes, row, all_edges in zip(rounds, rows, edges, strict=True):
        mixer.mixed_rows(nodes, row, all_edges, np.full(len(row), -1.0))
    return between - began, time.thread_time() - between, sum(map(len, rounds))


def main() -> None:
    """Print a line for each size and mixture."""
    source, rng = real_titles(), np.random.default_rng(0)
    for size in SIZES:
        sparse = priors_of(synthetic_titles(source, n=size), rng)
        kinds = {"sparse": sparse}
        if size <= MOST_OF_A_NETWORK:
            kinds["sasrec"] = replace(sparse, scorer=network_of(size, rng))
        for (kind, priors), mixture in itertools.product(kinds.items(), MIXTURES):
            made, mixed, nodes = (
                statistics.median(each) for each in zip(*(cost(priors, mixture, rng) for _ in range(RUNS)), strict=True)
            )
            share = 100 * (made + mixed) / RECOMMENDATION_S
            print(  # noqa: T201
                f"{size:>9,} items, {kind}, {mixture:<10}: prior {1e6 * made:5.0f} us, "
                f"{nodes:.0f} nodes {1e6 * mixed:5.0f} us: {share:.2f} % of {RECOMMENDATION_S} s"
            )


if __name__ == "__main__":
    main()
