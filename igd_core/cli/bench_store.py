"""`igd bench store`: what the store takes of Redis's memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """What `igd bench store` takes."""
    parser.add_argument(
        "--store", required=True, metavar="URL", help="an empty Redis, which is filled: redis://HOST:PORT"
    )
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR", help="a catalogue to publish there")
    parser.add_argument("--json", action="store_true", help="one object a line for each measurement")
    parser.set_defaults(run=_store)


def _store(args: argparse.Namespace) -> int:
    from igd_core.bench.store import bench_memory

    results = asyncio.run(bench_memory(args.store, args.artifact))
    for result in results:
        if args.json:
            print(json.dumps(result))
        else:
            print(f"{result['of']:<24}{result['bytes']:>12,.0f} bytes{result['mib_per_million']:>12,} MiB a million")
    return 0
