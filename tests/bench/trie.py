"""`igd bench trie`: what a catalogue costs to build, keep, load and score with, beside what one would otherwise take.

Every measurement runs in a fresh process, so that no peak hides behind an earlier one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from igd_core.bench.isolation import Limits, PeakMemory, run_apart
from igd_core.bench.workload import PathArrays, PathWorkload
from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of
from igd_core.catalogue.trie import TokenTrie
from igd_core.errors import IGDError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.bench.isolation import Report

SIZES = (10_000, 100_000, 1_000_000)
RIVALS = ("transformers", "llguidance", "xgrammar-text", "xgrammar-token")

_OWN_LIMITS = Limits(seconds=1800.0, memory_mib=16384)
_LOADS = 3
_LONGEST_PATH = 512  # nothing is cut: a cut path would not be its title's


@dataclass(frozen=True, slots=True, kw_only=True)
class TrieBench:
    """What `bench_trie` measures with.

    Attributes:
        tokenizer_dir: a checkpoint's directory; only its tokenizer is read.
        items: an items file whose titles are recombined; None for MovieLens-100K.
        rivals: names, of `RIVALS`.
        limits: time and memory of one rival at one size.
        threads: of torch and of the libraries.
        seed: of titles, logits and prefixes.
        device: where the score kernel's logits are.
    """

    tokenizer_dir: Path
    items: Path | None = None
    rivals: Sequence[str] = RIVALS
    limits: Limits = field(default_factory=Limits)
    threads: int = 2
    seed: int = 0
    device: str = "cpu"


# Rows of a mask batch (10 beams) and of the score kernel; prefixes per rival.
_BEAMS = 10
_KERNEL_ROWS = (10, 100, 1000)
_PROBES = 60


def bench_trie(setup: TrieBench, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Measure each size in turn.

    Returns:
        One JSON-serialisable object per size, with units in the names: ``items``, ``tokens_per_path``, ``tokenise``,
        ``build``, ``artifact``, ``load`` (what `prepare`, `measure_build` and `measure_load` report), ``kernel`` (a
        list, see `measure_kernel`) and ``rivals`` (a list, see `measure_rival`; ``failure`` is None, or says why there
        is no result).

    Raises:
        IGDError: one of our own measurements failed; the message is that process's last line.
    """
    results = []
    gave_up: dict[str, int] = {}
    with tqdm(total=len(sizes) * (4 + len(setup.rivals)), file=sys.stderr, unit="step") as progress:
        for n in sizes:
            with tempfile.TemporaryDirectory(prefix="igd-bench-trie-") as scratch:
                result = _bench_ours(setup, n, Path(scratch), progress)
                result["rivals"] = []
                for name in setup.rivals:
                    progress.set_description(f"{n:,} items: {name}")
                    measured = _bench_rival(setup, name, Path(scratch), gave_up.get(name))
                    if "build_s" not in measured:
                        gave_up.setdefault(name, n)
                    result["rivals"].append(measured)
                    progress.update()
            results.append(result)
    return results


def _bench_ours(setup: TrieBench, n: int, scratch: Path, progress: tqdm[Any]) -> dict[str, Any]:
    places = {"workload": str(scratch / "workload"), "artifact": str(scratch / "artifact")}
    shared = {**places, "threads": setup.threads, "seed": setup.seed}
    source = {"items": str(setup.items) if setup.items else None, "tokenizer_dir": str(setup.tokenizer_dir), "n": n}
    vocab_size = 0
    result: dict[str, Any] = {"items": n, "threads": setup.threads}
    for label, task, arguments in (
        ("tokenise, build and save", "igd_core.bench.trie:prepare", source),
        ("build", "igd_core.bench.trie:measure_build", {}),
        ("load", "igd_core.bench.trie:measure_load", {}),
        ("score kernel", "igd_core.bench.timing:measure_kernel", {"rows": list(_KERNEL_ROWS), "device": setup.device}),
    ):
        progress.set_description(f"{n:,} items: {label}")
        outcome = run_apart(task, {**shared, **arguments, "vocab_size": vocab_size}, _OWN_LIMITS)
        if outcome.failure is not None:
            raise IGDError(f"{label}, {n} items: {outcome.failure}")
        result.update(outcome.values)
        vocab_size = result["vocab_size"]
        progress.update()
    return result


def _bench_rival(setup: TrieBench, name: str, scratch: Path, gave_up: int | None) -> dict[str, Any]:
    if gave_up is not None:
        return {"name": name, "failure": f"not tried: none at {gave_up} items"}
    arguments = {
        "workload": str(scratch / "workload"),
        "rival": name,
        "rows": _BEAMS,
        "probes": _PROBES,
        "seconds": setup.limits.seconds / 4,
        "threads": setup.threads,
        "seed": setup.seed,
    }
    outcome = run_apart("igd_core.bench.timing:measure_rival", arguments, setup.limits)
    return {"name": name, **outcome.values, "failure": outcome.failure}


def prepare(arguments: Mapping[str, Any], report: Report) -> None:
    """Make titles and counts, tokenise them, save the workload, and build and save an artefact from the text.

    Args:
        arguments: ``n``, ``seed``, ``items`` (file or None), ``tokenizer_dir``, ``workload`` and ``artifact``
            (directories to write).
        report: receives ``tokens_per_path``, ``vocab_size``, ``tokenise`` and ``artifact``.
    """
    from igd_core.artifact import BuildOptions, build_artifact, save_artifact
    from igd_core.bench.synthetic import real_titles, synthetic_titles, zipf_counts
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
    """Open the artefact, with its files in the page cache.

    Args:
        arguments: ``artifact`` (directory).
        report: receives ``load``: medians with and without verification, and the memory that one opened artefact added.
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


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """Results as plain text for people."""
    lines = []
    for result in results:
        build, artifact, load = result["build"], result["artifact"], result["load"]
        header = f"{result['items']:,} items, {result['tokens_per_path']:.1f} tokens a path, {build['nodes']:,} nodes"
        memory = f"peak {build['peak_mib']:,.0f} MiB, {build['grown_mib']:,.0f} MiB over imports"
        lines += [
            f"{header}, {result['threads']} threads",
            f"  tokenise           {result['tokenise']['seconds']:9.2f} s    (apart)",
            f"  trie and IG        {build['seconds']:9.2f} s    {memory}",
            f"  artefact           {artifact['bytes_per_item']:9.1f} bytes an item",
            f"  load               {load['verified_s']:9.3f} s    {load['unverified_s']:.3f} s unverified",
        ]
        lines += [
            f"  kernel {row['rows']:>5} rows  {row['child_scores_us']:9.0f} us   {row['child_scores_ratio']:.2f} of a "
            f"log-softmax ({row['log_softmax_us']:.0f} us); in place {row['constrain_logits_us']:.0f} us"
            for row in result["kernel"]
        ]
        lines.append(f"  {'rival':<16}{'build s':>9}{'MiB':>8}{'us/row':>10}{'us/10 rows':>12}{'again':>10}  allows")
        lines += [_rival_line(rival) for rival in result["rivals"]]
    return "\n".join(lines)


def _rival_line(rival: Mapping[str, Any]) -> str:
    line = f"  {rival['name']:<16}"
    if "build_s" in rival:
        line += f"{rival['build_s']:>9.2f}{rival['build_mib']:>8,.0f}"
    if "row_us" in rival:
        line += f"{rival['row_us'][0]:>10,.0f}{rival['batch_us'][0]:>12,.0f}{rival['batch_again_us'][0]:>10,.0f}"
        exact = not (rival["rows_with_barred"] or rival["rows_with_foreign"])
        off = f"other tokens in {rival['rows_with_foreign']} of {rival['checked_rows']} rows"
        line += "  the token paths" if exact else f"  {off}"
    return line if rival["failure"] is None else f"{line}  {rival['failure']}"
