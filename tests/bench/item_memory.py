"""Bytes an item of a catalogue version in a server's process: ``python tests/bench/item_memory.py --items 200000``.

Makes a catalogue of made-up titles (about 45 characters, 14 tokens), saves it, and loads it in a process of its own as
a server does, step by step. Private memory is counted (``RssAnon``); trie and gains are mapped files, and shared.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from igd_core.artifact import Artifact, load_artifact, save_artifact
from igd_core.artifact.counts import Counts
from igd_core.artifact.files import encode_parts
from igd_core.artifact.manifest import Manifest
from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of
from igd_core.catalogue.items import Catalogue, prior
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.catalogue.trie import TokenTrie

TOKENS, VOCABULARY = 14, 30_000


def make(items: int, directory: Path) -> None:
    """Save a catalogue of so many items."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number:03d}" for number in range(500)])
    paths = rng.zipf(1.3, (items, TOKENS)) % (VOCABULARY - 2) + 1
    paths[:, -2] = np.arange(items) % (VOCABULARY - 2) + 1
    paths[:, -1] = 0
    titles = [f"{' '.join(row)} {number}" for number, row in enumerate(words[rng.integers(0, 500, (items, 5))])]
    catalogue = Catalogue.build(
        item_ids=[f"{number:010d}" for number in range(items)],
        titles=titles,
        frequency=rng.integers(0, 100, items),
        metadata={
            "genre": [f"genre {number % 20}" for number in range(items)],
            "year": [1990 + i % 30 for i in range(items)],
        },
    )
    trie = TokenTrie.build(np.arange(items + 1, dtype=np.int64) * TOKENS, paths.astype(np.int32).ravel())
    gains = InfoGainTable.build(trie, leaf_prior_of(trie, prior(catalogue.frequency)))
    counts = Counts(
        items=items,
        leaves=trie.num_leaves,
        nodes=trie.num_nodes,
        edges=trie.num_edges,
        depth=trie.depth,
        cold=0,
        truncated=0,
    )
    manifest = Manifest(
        name="bench", tokenizer_sha256="0" * 64, vocab_size=VOCABULARY, eos_id=0, model_id="", alpha=0.2, smoothing=0.0,
        path_column="title", entropy_nats=1.0, counts=counts,
        template=PromptTemplate(prefix_ids=(1,), bullet_ids=(), suffix_ids=(), max_history=10, drop_block=5),
        parts={name: part.record() for name, part in encode_parts(catalogue, trie, gains).items()},
    )  # fmt: skip
    save_artifact(Artifact.assemble(manifest, catalogue, trie, gains), directory)


def private_bytes() -> int:
    """Of this process, after what is free has been given back."""
    from igd_server.catalogues.heap import give_back_free_memory

    pa.default_memory_pool().release_unused()
    give_back_free_memory()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(directory: Path) -> dict[str, float]:
    """Private bytes an item of each step, of one more version in the same process, and files' bytes."""
    with contextlib.suppress(ImportError):  # pyarrow would import it at first use and it would count; servers have none
        importlib.import_module("pandas")
    from igd_server.catalogues.titles import TitleSearch

    from igd_core.engines.fake import FakeEngine
    from igd_core.search.recommender import Recommender

    kept: list[object] = []

    def load() -> dict[str, float]:
        before = private_bytes()
        artifact = load_artifact(directory)
        steps: dict[str, float] = {}
        for name, step in (
            ("load", lambda: artifact),
            ("item ids", artifact.catalogue.build_index),
            ("attributes and popularity", lambda: Recommender(artifact, FakeEngine())),
            ("titles", lambda: TitleSearch(artifact.catalogue)),
        ):
            kept.append(step())
            steps[name], before = (private_bytes() - before) / len(artifact.catalogue), private_bytes()
        return {**steps, "all private": sum(steps.values())}

    steps = load()
    steps["all private, of one more version"] = load()["all private"]
    items = len(load_artifact(directory, verify=False).catalogue)
    for path in directory.iterdir():
        steps[path.name] = path.stat().st_size / items
    return {name: round(value, 1) for name, value in steps.items()}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--directory", type=Path)
    args = parser.parse_args()
    if args.directory is not None:
        sys.stdout.write(json.dumps(measure(args.directory)) + "\n")
        return
    with tempfile.TemporaryDirectory() as root:
        make(args.items, Path(root) / "made")
        subprocess.run([sys.executable, __file__, "--directory", f"{root}/made"], check=True)


if __name__ == "__main__":
    main()
