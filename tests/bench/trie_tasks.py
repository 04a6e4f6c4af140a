"""What `bench.trie` runs in processes of their own: make a catalogue, build its trie, open its artifact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench.isolation import PeakMemory
from bench.workload import PathArrays, PathWorkload

from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of
from igd_core.catalogue.trie import TokenTrie

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.isolation import Report

_LOADS = 3
_LONGEST_PATH = 512  # nothing is cut: a cut path would not be its title's


def prepare(arguments: Mapping[str, Any], report: Report) -> None:
    """Make titles and counts, tokenise them, save the workload, and build and save an artifact from the text.

    Args:
        arguments: ``n``, ``seed``, ``items`` (file or None), ``tokenizer_dir``, ``workload`` and ``artifact``
            (directories to write).
        report: receives ``tokens_per_path``, ``vocab_size``, ``tokenise`` and ``artifact``.
    """
    from bench.synthetic import real_titles, synthetic_titles, zipf_counts

    from igd_core.artifact import BuildOptions, build_artifact, save_artifact
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import TitleTokenizer

    n, seed = arguments["n"], arguments["seed"]
    titles = synthetic_titles(real_titles(arguments["items"] and Path(arguments["items"])), n=n, seed=seed)
    frequency = zipf_counts(n, seed=seed)
    tokenizer = TitleTokenizer.from_directory(arguments["tokenizer_dir"])
    memory = PeakMemory()
    started = time.perf_counter()
    paths = tokenizer.encode_paths(titles, max_tokens=_LONGEST_PATH)
    tokenise = {"seconds": time.perf_counter() - started, "peak_mib": memory.peak_mib()}
    report(tokens_per_path=len(paths.tokens) / n, vocab_size=tokenizer.vocab_size, tokenise=tokenise)
    PathWorkload(
        titles=titles,
        offsets=paths.offsets,
        tokens=paths.tokens,
        frequency=frequency,
        tokenizer_dir=Path(arguments["tokenizer_dir"]),
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
    ).save(Path(arguments["workload"]))
    catalogue = Catalogue.build(item_ids=[str(i) for i in range(n)], titles=titles, frequency=frequency)
    started = time.perf_counter()
    artifact = build_artifact(catalogue, tokenizer, BuildOptions(max_path_tokens=_LONGEST_PATH))
    built = time.perf_counter()
    save_artifact(artifact, Path(arguments["artifact"]))
    saved = time.perf_counter()
    sizes = {part.name: part.stat().st_size for part in sorted(Path(arguments["artifact"]).iterdir())}
    report(
        artifact={
            "build_with_tokenisation_s": built - started,
            "save_s": saved - built,
            "bytes": sum(sizes.values()),
            "bytes_per_item": sum(sizes.values()) / n,
            "parts_bytes_per_item": {name: size / n for name, size in sizes.items()},
        }
    )


def measure_build(arguments: Mapping[str, Any], report: Report) -> None:
    """Build trie and information gain from tokenised paths; the process has imported numpy and no more.

    Args:
        arguments: ``workload`` (directory).
        report: receives ``build``: seconds, the trie's size, ``before_mib`` (with imports, before the paths are read),
            ``peak_mib`` and their difference ``grown_mib``.
    """
    memory = PeakMemory()
    arrays = PathArrays.load(Path(arguments["workload"]))
    started = time.perf_counter()
    trie = TokenTrie.build(arrays.offsets, arrays.tokens)
    sorted_at = time.perf_counter()
    InfoGainTable.build(trie, leaf_prior_of(trie, arrays.frequency / arrays.frequency.sum()))
    ended = time.perf_counter()
    peak = memory.peak_mib()
    report(
        build={
            "seconds": ended - started,
            "trie_s": sorted_at - started,
            "infogain_s": ended - sorted_at,
            "before_mib": memory.before_mib,
            "peak_mib": peak,
            "grown_mib": peak - memory.before_mib,
            "nodes": trie.num_nodes,
            "leaves": trie.num_leaves,
            "depth": trie.depth,
        }
    )


def measure_load(arguments: Mapping[str, Any], report: Report) -> None:
    """Open the artifact, with its files in the page cache.

    Args:
        arguments: ``artifact`` (directory).
        report: receives ``load``: medians with and without verification, and the memory that one opened artifact added.
    """
    from igd_core.artifact import load_artifact

    directory = arguments["artifact"]
    memory = PeakMemory()
    opened = [load_artifact(directory)]
    grown = memory.peak_mib() - memory.before_mib
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(_LOADS):
        for verify, taken in seconds.items():
            opened.clear()  # one at a time, and its release is not timed
            started = time.perf_counter()
            opened.append(load_artifact(directory, verify=verify))
            taken.append(time.perf_counter() - started)
    report(
        load={
            "verified_s": float(np.median(seconds[True])),
            "unverified_s": float(np.median(seconds[False])),
            "grown_mib": grown,
        }
    )
