"""`igd precompute`: lists of a batch into the store, for servers to answer with when the model cannot."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Directory, Flag
from igd_core.cli.flags import add_flags, read
from igd_core.cli.given_store import open_given_store

if TYPE_CHECKING:
    import argparse

    from igd_core.batch.precompute import Precomputed

_HOUR_S = 3600


class PrecomputeFlags(CheckedSettings):
    """Which lists, for whom, and how long."""

    lists: Directory = Field(description="folder of a complete `igd batch`, its --out")
    catalogue: Annotated[str, Flag(metavar="NAME")] = Field(description="the name under which servers serve it")
    store: Annotated[str, Flag(metavar="URL")] | None = Field(
        default=None, repr=False, description="redis://HOST:PORT/0, file:///DIRECTORY ... (default: IGD_STORE)"
    )
    store_prefix: Annotated[str, Flag(metavar="TEXT")] | None = Field(
        default=None, description="begins every key (default: IGD_STORE_PREFIX, else igd)"
    )
    ttl_hours: Annotated[float, Field(gt=0, le=24 * 365)] = Field(
        default=48.0, description="hours after it was made for which a list may be given"
    )
    keep: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1, description="newest lists of a user that stay, of all catalogues together"
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "precompute", help="put the lists of a batch into a store, for servers to fall back to"
    )
    add_flags(parser, PrecomputeFlags)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_precompute)


def _precompute(args: argparse.Namespace) -> int:
    asked = read(args, PrecomputeFlags)
    found = asyncio.run(_run(asked))
    if args.json:
        print(json.dumps(dataclasses.asdict(found)))
        return 0
    print(f"{'lists':<14}{found.lists:,}, each for {asked.ttl_hours:g} hours after it was made")
    for number, what in (
        (found.popularity, "rows that popularity ranked, which servers do themselves"),
        (found.nameless, "rows without a user_id"),
        (found.refused, "rows whose user_id no request can have"),
    ):
        if number:
            print(f"{'left out':<14}{number:,} {what}")
    return 0


async def _run(asked: PrecomputeFlags) -> Precomputed:
    from igd_core.batch.precompute import Keeping, precompute
    from igd_core.progress import progress

    store = open_given_store(asked.store, asked.store_prefix)
    try:
        with progress(desc="lists", unit="part") as bar:

            def note(parts: int) -> None:
                bar.total = parts
                bar.update()

            keeping = Keeping(ttl_s=asked.ttl_hours * _HOUR_S, lists=asked.keep)
            return await precompute(asked.lists, store, asked.catalogue, keeping, note)
    finally:
        await store.close()
