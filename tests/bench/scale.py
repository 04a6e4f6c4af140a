"""What a catalogue of millions of items costs, end to end: `python tests/bench/scale.py --items 20000000`.

Titles are recombined words of real ones. Items and interactions are written a block at a time, the real `igd build`
makes the artifact, and every measurement of it runs in a process of its own. 20 million items take about half an hour
and 8 GB of disk in ``--directory``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from bench.isolation import Limits, run_apart  # noqa: E402 - from tests/, by the line above
from bench.synthetic import WordChain, real_titles, title_blocks  # noqa: E402

from igd_core.bench.names import VIDEO_GAMES_DIR  # noqa: E402
from igd_core.errors import IGDError  # noqa: E402
from igd_core.models import smollm2_dir  # noqa: E402
from igd_core.ranges import Whole  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BLOCK = 500_000
_LIMITS = Limits(seconds=1800.0, memory_mib=16384)
_KERNEL_ROWS = (10, 100)
_POLL_S = 0.05
_GENRES = ("action", "puzzle", "racing", "role-playing", "sport", "strategy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleBench:
    """What `bench_scale` measures.

    Attributes:
        num_items: of the catalogue; as many interactions are made, Zipf-distributed over the items.
        directory: for the input files and the artifact.
        source: an items file whose titles are recombined; None for MovieLens-100K.
        tokenizer_dir: a checkpoint's directory; only its tokenizer is read.
        file_format: of the input files, ``parquet`` or ``csv``.
        has_attributes: whether items have a genre and a year beside the title.
        threads: of the tokenizer and of torch.
        seed: of titles, interactions, logits and queries.
    """

    num_items: int
    directory: Path
    source: Path | None
    tokenizer_dir: Path
    file_format: str = "parquet"
    has_attributes: bool = False
    threads: int = 2
    seed: int = 0


def bench_scale(setup: ScaleBench) -> dict[str, Any]:
    """Make the files, build, and measure the artifact.

    Returns:
        A JSON-serialisable object, units in the names: ``build`` (`run_build`), ``artifact_bytes_per_item``, ``load``
        by whether it was verified, ``serving`` (`measure_serving`), ``kernel`` (`bench.timing:measure_kernel`) and
        ``recommend`` (the command with a random model of two layers).

    Raises:
        IGDError: a measurement failed; the message is that process's last line.
    """
    result: dict[str, Any] = {"items": setup.num_items}

    def note(**values: Any) -> None:
        result.update(values)
        (setup.directory / "result.json").write_text(json.dumps(result, indent=1))  # a step that fails takes no other

    made = time.perf_counter()
    write_inputs(setup)
    note(inputs_s=time.perf_counter() - made)
    artifact = setup.directory / "artifact"
    note(build=run_build(setup, artifact))
    sizes = {path.name: path.stat().st_size for path in sorted(artifact.iterdir())}
    each = {name: round(size / setup.num_items, 1) for name, size in sizes.items()}
    note(artifact_bytes_per_item={**each, "all": round(sum(sizes.values()) / setup.num_items, 1)})
    shared = {"artifact": str(artifact), "threads": setup.threads, "seed": setup.seed}
    for name in ("unverified", "verified"):
        load = _apart("bench.scale:measure_load", {**shared, "verify": name == "verified"})
        note(load={**result.get("load", {}), name: load})
    note(serving=_apart("bench.scale:measure_serving", shared))
    vocabulary = result["serving"]["vocab_size"]
    kernel = {**shared, "rows": list(_KERNEL_ROWS), "vocab_size": vocabulary, "device": "cpu", "seconds": 6.0}
    note(**_apart("bench.timing:measure_kernel", kernel))
    note(recommend=run_recommend(setup, artifact))
    return result


def write_inputs(setup: ScaleBench) -> None:
    """Write ``items`` and ``interactions`` into the directory, a block at a time; files that lie there are kept."""
    setup.directory.mkdir(parents=True, exist_ok=True)
    chain = WordChain.from_titles(real_titles(setup.source))
    rng = np.random.default_rng(setup.seed + 1)
    genres = np.array(_GENRES)

    def items() -> Iterator[pa.Table]:
        first = 0
        for titles in title_blocks(chain, n=setup.num_items, block=_BLOCK, seed=setup.seed):
            columns: dict[str, Any] = {"item_id": _ids(np.arange(first, first + len(titles))), "title": titles}
            if setup.has_attributes:
                columns["genre"] = genres[rng.integers(0, len(genres), len(titles))]
                columns["year"] = rng.integers(1980, 2026, len(titles))
            yield pa.table(columns)
            first += len(titles)

    def interactions() -> Iterator[pa.Table]:
        share = np.arange(1, setup.num_items + 1, dtype=np.float64) ** -1.0
        up_to = np.cumsum(share, out=share)
        row_of_rank = rng.permutation(setup.num_items).astype(np.int32)
        for first in range(0, setup.num_items, _BLOCK):
            count = min(_BLOCK, setup.num_items - first)
            ranks = np.searchsorted(up_to, rng.random(count) * up_to[-1])
            yield pa.table({"item_id": _ids(row_of_rank[np.minimum(ranks, setup.num_items - 1)])})

    _write(setup, "items", items())
    _write(setup, "interactions", interactions())


def _ids(rows: np.ndarray) -> pa.Array:
    """Ten characters each, as of a shop."""
    return pa.array(np.char.add("B", np.char.zfill(rows.astype(np.int64).astype("U9"), 9)), pa.string())


def _path(setup: ScaleBench, name: str) -> Path:
    return setup.directory / f"{name}.{setup.file_format}"


def _write(setup: ScaleBench, name: str, tables: Iterator[pa.Table]) -> None:
    path = _path(setup, name)
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    with ExitStack() as stack:
        writer: Any = None
        for table in tables:
            if writer is None:
                make = pq.ParquetWriter if setup.file_format == "parquet" else pyarrow.csv.CSVWriter
                writer = stack.enter_context(make(partial, table.schema))
            writer.write_table(table)
    partial.rename(path)


def run_build(setup: ScaleBench, artifact: Path) -> dict[str, Any]:
    """Run `igd build` in a process of its own.

    Returns:
        ``wall_s``, ``cpu_s``, ``peak_rss_mib``, ``trie_nodes``, ``longest_path``, ``stages`` as the command reports
        them.
    """
    command = [sys.executable, "-m", "igd_core", "build", "--items", str(_path(setup, "items")), "--interactions"]
    command += [str(_path(setup, "interactions")), "--tokenizer", str(setup.tokenizer_dir), "--out", str(artifact)]
    command += ["--no-usual-scorer", "--smoothing", "1", "--force", "--json"]
    told, used = _watched(command, setup)
    report = json.loads(told)
    return {**used, **{name: report.get(name) for name in ("trie_nodes", "longest_path", "stages")}}


def run_recommend(setup: ScaleBench, artifact: Path) -> dict[str, Any]:
    """Run `igd recommend` with a random Llama of two layers; ``items`` is how many came back."""
    model = setup.directory / "model"
    _write_random_model(setup.tokenizer_dir, model)
    history = ",".join(_ids(np.arange(3)).to_pylist())
    command = [sys.executable, "-m", "igd_core", "recommend", "--artifact", str(artifact), "--model", str(model)]
    told, used = _watched([*command, "--history", history, "--json"], setup)
    return {**used, "items": len(json.loads(told)["items"])}


def _write_random_model(tokenizer_dir: Path, out: Path) -> None:
    from checkpoints import random_model
    from transformers import LlamaConfig

    from igd_core.catalogue.tokenization import TitleTokenizer

    tokenizer = TitleTokenizer.from_directory(tokenizer_dir)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_id,
        tie_word_embeddings=True,
    )
    random_model(config).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((tokenizer_dir / name).read_bytes())


def _watched(command: list[str], setup: ScaleBench) -> tuple[str, dict[str, float]]:
    """What a command printed, its seconds, its CPU seconds, and its peak resident set (its own children's apart)."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[2]),
        "RAYON_NUM_THREADS": str(setup.threads),
        "OMP_NUM_THREADS": str(setup.threads),
    }
    started, peak_kib = time.perf_counter(), 0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            peak_kib = max(peak_kib, _memory_kib(process.pid).get("VmHWM", 0))
            time.sleep(_POLL_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            lines = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise IGDError(f"{' '.join(command[:4])}: {process.returncode}: {lines[-1]}")
        used = {
            "wall_s": round(time.perf_counter() - started, 1),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_rss_mib": round(peak_kib / 1024),
        }
        return out.read().decode(), used


def _memory_kib(pid: int | str) -> dict[str, int]:
    """``VmHWM`` (peak), ``VmRSS``, ``RssAnon`` (private) and ``RssFile`` (mapped) of a process."""
    with suppress(OSError):
        pairs = (line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {name: int(value.split()[0]) for name, value in pairs if name.startswith(("VmHWM", "VmRSS", "Rss"))}
    return {}


def _apart(task: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    outcome = run_apart(task, arguments, _LIMITS)
    if outcome.failure is not None:
        raise IGDError(f"{task}: {outcome.failure}")
    return outcome.values


class _Step:
    """Seconds, CPU seconds and private memory of one step."""

    def __init__(self) -> None:
        self._anon = _memory_kib("self").get("RssAnon", 0)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def done(self) -> dict[str, float]:
        memory = _memory_kib("self")
        return {
            "wall_s": round(time.perf_counter() - self._wall, 3),
            "cpu_s": round(time.process_time() - self._cpu, 3),
            "private_mib": round((memory.get("RssAnon", 0) - self._anon) / 1024, 1),
            "peak_rss_mib": round(memory.get("VmHWM", 0) / 1024),
        }


def measure_load(arguments: Mapping[str, Any], report: Any) -> None:
    """Open the artifact once.

    Args:
        arguments: ``artifact`` (directory), ``verify``.
        report: receives ``wall_s``, ``cpu_s``, ``private_mib`` and ``peak_rss_mib``.
    """
    from igd_core.artifact import load_artifact

    step = _Step()
    artifact = load_artifact(arguments["artifact"], verify=arguments["verify"])
    report(**step.done(), nodes=artifact.trie.num_nodes)


def measure_serving(arguments: Mapping[str, Any], report: Any) -> None:
    """Make what a server makes of a loaded version, step by step, and use it.

    Args:
        arguments: ``artifact`` (directory), ``seed``.
        report: receives ``load``, ``recommender`` (item ids, attributes, popularity) and ``titles`` as `_Step` measures
            them, ``item_lookup_us``, ``popularity_ms`` (ten items), ``title_queries_ms`` by query, ``all_private_mib``.
    """
    import asyncio

    from igd_server.catalogues.titles import TitleSearch

    from igd_core.artifact import load_artifact
    from igd_core.engines.fake import FakeEngine
    from igd_core.search.query import Query
    from igd_core.search.recommender import Recommender

    before = _Step()
    step = _Step()
    artifact = load_artifact(arguments["artifact"], verify=False)
    report(load=step.done(), vocab_size=artifact.manifest.vocab_size)
    step = _Step()
    recommender = Recommender(artifact, FakeEngine())
    report(recommender=step.done())
    step = _Step()
    titles = TitleSearch(artifact.catalogue)
    report(titles=step.done(), all_private_mib=before.done()["private_mib"])
    rng = np.random.default_rng(arguments["seed"])
    ids = [artifact.catalogue.item_ids[row] for row in rng.integers(0, len(artifact.catalogue), 2000).tolist()]
    started = time.perf_counter()
    found = [artifact.catalogue.index_of(item_id) for item_id in ids]
    report(item_lookup_us=round((time.perf_counter() - started) / len(ids) * 1e6, 2), found=len(set(found) - {None}))
    query = recommender.resolve(Query(history=[], k=10))
    started = time.perf_counter()
    asyncio.run(recommender.popularity(query))
    report(popularity_ms=round((time.perf_counter() - started) * 1e3, 2))
    popular, rare = artifact.catalogue.titles[0].split()[0], artifact.catalogue.titles[len(artifact.catalogue) // 2]
    timed = {}
    for name, text in (("common word", popular), ("a title", rare), ("no match", "zzqx")):
        started = time.perf_counter()
        titles.find(text, limit=20)
        timed[name] = round((time.perf_counter() - started) * 1e3, 2)
    report(title_queries_ms=timed)


def main() -> None:
    """Measure one size and print a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=Whole("items", least=10), default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="kept afterwards (default: a temporary one)")
    parser.add_argument("--source", type=Path, metavar="FILE", help="titles to recombine (default: Video Games)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: SmolLM2's")
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--attributes", action="store_true", help="items have a genre and a year")
    parser.add_argument("--threads", type=Whole("threads", least=1), default=2)
    args = parser.parse_args()
    source = args.source or (VIDEO_GAMES_DIR / "items.csv" if (VIDEO_GAMES_DIR / "items.csv").is_file() else None)
    try:
        with ExitStack() as stack:
            directory = args.directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="igd-scale-")))
            setup = ScaleBench(
                num_items=args.items,
                directory=directory,
                source=source,
                tokenizer_dir=args.tokenizer or smollm2_dir(),
                file_format=args.format,
                has_attributes=args.attributes,
                threads=args.threads,
            )
            result = bench_scale(setup)
    except IGDError as error:
        parser.error(str(error))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
