"""`igd batch`: recommendations for every row of a dataset, by a pool of engines on Ray Data."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from igd_core.checked_settings import Amount, Directory, File, Flag, PositiveAmount
from igd_core.cli.config_files import add_config_flags, print_config
from igd_core.cli.engine import Concurrency
from igd_core.cli.flags import add_flags, read
from igd_core.cli.query import DEFAULT_K, QueryFlags, check
from igd_core.cli.reading import ReadingFlags, add_reading_arguments, reading_of, tell

if TYPE_CHECKING:
    import argparse

    from igd_core.artifact import Artifact
    from igd_core.batch.run import BatchRequest, BatchResult, BatchRun
    from igd_core.datasets.sources import Reading, Source

_MOST_ACTORS = 100_000
_CONCURRENCY = {"tree": 2, "vllm": 16}
_HOW_ASKED = (
    *("k", "beams", "alpha", "normalise", "temperature", "length_penalty", "forced_weight", "gamma", "mixture"),
    *("filter", "exclude_seen", "exclude_seen_titles"),
)
"""Flags that decide what each row gets, besides files and model."""


def bounds_of(text: str) -> tuple[int, int]:
    """``4`` or ``2:8``, the least and the most.

    Raises:
        ValueError: not of this form.
    """
    found = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not N or MIN:MAX")
    least, most = int(found[1]), int(found[2] or found[1])
    if not 1 <= least <= most <= _MOST_ACTORS:
        raise ValueError(f"{text!r} is not in 1..{_MOST_ACTORS}, MIN before MAX")
    return least, most


def _actors(text: str) -> str:
    bounds_of(text)
    return text


class BatchFlags(QueryFlags):
    """The rows, where answers go, and what answers them."""

    rows: File = Field(
        description="a file or a folder of files: user_id (may be missing) and history_item_ids, oldest first"
    )
    out: Directory = Field(description="folder of the run; the same command goes on with what it holds")
    on_unknown_item: Literal["error", "drop"] = Field(
        default="error",
        description="an item of a history that the catalogue lacks makes the row a bad one, or is left out",
    )
    actors: Annotated[str, AfterValidator(_actors), Flag(metavar="N|MIN:MAX")] = Field(
        default="1", description="engines at once; with MIN:MAX the cluster decides"
    )
    cpus: PositiveAmount = Field(default=1.0, description="CPUs of an actor; 0.5 shares one")
    gpus: Amount = Field(default=0.0, description="GPUs of an actor; 0.5 shares one")
    address: Annotated[str, Flag(metavar="ADDRESS")] | None = Field(
        default=None, description="Ray cluster: auto, ray://HOST:PORT, HOST:PORT (default: one here, for this run)"
    )
    chunk_rows: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1000, description="rows that are written together, one part of the answers"
    )
    concurrency: Concurrency | None = Field(
        default=None, description="rows at once in an actor (default: 2; with vllm 16)"
    )


class BatchReadingFlags(ReadingFlags):
    """How the rows are read."""

    on_bad_row: Literal["error", "skip"] = Field(
        default="skip",
        description="a row that cannot be used refuses the input, or goes to rejected.jsonl with the reason",
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd batch`."""
    parser = subparsers.add_parser("batch", help="recommend for every row of a dataset, on Ray")
    add_flags(parser, BatchFlags)
    parser.add_argument("--json", action="store_true", help="print what the run came to as JSON")
    add_reading_arguments(parser, BatchReadingFlags)
    add_config_flags(parser, BatchFlags, BatchReadingFlags)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the settings, or answer the rows."""
    asked = read(args, BatchFlags)
    if args.print_config:
        print_config(asked, read(args, BatchReadingFlags))
        return 0
    return _batch(args, asked)


def _batch(args: argparse.Namespace, asked: BatchFlags) -> int:
    """Check everything, then have Ray answer what is left."""
    from igd_core.extras import require_modules

    require_modules("ray", "torch")
    from igd_core.artifact import load_artifact
    from igd_core.batch.on_ray import Cluster, RayAnswering
    from igd_core.batch.run import BatchRun
    from igd_core.batch.run_folder import RunFolder
    from igd_core.datasets.sources import opened

    least, most = bounds_of(asked.actors)
    cluster = Cluster(address=asked.address, least=least, most=most, cpus=asked.cpus, gpus=asked.gpus)
    cluster.check()
    reading = reading_of(args, model=BatchReadingFlags)
    artifact = load_artifact(asked.artifact)
    with opened([asked.rows]) as (rows,):
        job = BatchRun(_request(asked, artifact, rows, reading), artifact, RunFolder(asked.out))
        result = job.run(RayAnswering(cluster, lambda note: tell([note])))
    tell(job.notes)
    _print(job, result, as_json=args.json)
    return 0


def _request(asked: BatchFlags, artifact: Artifact, rows: Source, reading: Reading) -> BatchRequest:
    from dataclasses import replace

    from igd_core.batch.run import BatchRequest

    query, _ = asked.query(artifact, ())
    if asked.k is None:
        query = replace(query, k=min(DEFAULT_K, len(artifact.catalogue)))
    query = replace(query, explain=False)
    check(query, artifact)
    return BatchRequest(
        rows=rows,
        reading=reading,
        on_unknown=asked.on_unknown_item,
        artifact=asked.artifact,
        options=asked.engine_options(),
        adapter=asked.adapter,
        query=query,
        asked={**asked.model_dump(mode="json", include=set(_HOW_ASKED)), "k": query.k},
        chunk_rows=asked.chunk_rows,
        concurrency=asked.concurrency or _CONCURRENCY[asked.engine],
    )


def _print(job: BatchRun, result: BatchResult, *, as_json: bool) -> None:
    from dataclasses import asdict

    rate = job.answered_now / job.seconds if job.seconds else None
    told: dict[str, Any] = {
        **asdict(result),
        "out": str(job.folder.path),
        "answered_now": job.answered_now,
        "seconds": round(job.seconds, 3),
    }
    if as_json:
        print(json.dumps(told))
        return
    print(
        f"{result.answered:,} of {result.rows:,} rows have recommendations ({result.lines:,} lines in "
        f"{result.chunks:,} parts; popularity answered {result.popularity:,})"
        + ("" if rate is None else f"; {job.answered_now:,} rows in {job.seconds:.1f} s, {rate:.1f} a second")
    )
    if result.rejected:
        print(f"{result.rejected:,} rows got none: {job.folder.side_file} says why")
    if result.dropped:
        print(f"{result.dropped:,} entries of histories are not in the catalogue and were left out")
    print(job.folder.recommendations)
