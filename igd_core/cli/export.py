"""`igd export`: events, and what was shown, out of a store as Parquet."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Directory, Flag
from igd_core.cli.flags import add_flags, read
from igd_core.cli.given_store import open_given_store
from igd_core.locked_folders import locked_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_MOST_EVENTS = 10_000
"""That a server may be told to keep of a user."""


class ExportFlags(CheckedSettings):
    """What is exported, and where to."""

    out: Directory = Field(
        description="folder to write; one in which an export of the same store stopped, to go on with it"
    )
    store: Annotated[str, Flag(metavar="URL")] | None = Field(
        default=None, repr=False, description="redis://HOST:PORT/0, file:///DIRECTORY ... (default: IGD_STORE)"
    )
    store_prefix: Annotated[str, Flag(metavar="TEXT")] | None = Field(
        default=None, description="begins every key (default: IGD_STORE_PREFIX, else igd)"
    )
    parts: Annotated[int, Field(ge=1, le=256)] = Field(
        default=16, description="files of each table at most; what is lost when the command dies is one of them"
    )
    force: bool = Field(default=False, description="replace an export of the same store that is there already")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("export", help="write events and impressions of a store as Parquet")
    add_flags(parser, ExportFlags)
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    asked = read(args, ExportFlags)
    manifest = asyncio.run(_run(asked))
    if args.json:
        print(json.dumps(manifest))
        return 0
    events, shown = manifest["events"], manifest["impressions"]
    print(f"{'out':<14}{asked.out}")
    print(f"{'users':<14}{manifest['users']:,}")
    print(f"{'events':<14}{events['rows']:,}" + _span(events))
    for kind, number in events["kinds"].items():
        print(f"  {kind:<12}{number:,}")
    print(f"{'impressions':<14}{shown['rows']:,} items in {shown['answers']:,} answers" + _span(shown))
    return 0


def _span(table: Mapping[str, str | None]) -> str:
    return f", {table['first']} to {table['last']}" if table["first"] else ""


async def _run(asked: ExportFlags) -> Mapping[str, Any]:
    from igd_core.export.folder import ExportFolder
    from igd_core.export.run import export
    from igd_core.progress import progress
    from igd_core.store.base import HistoryLimits

    limits = HistoryLimits(max_events=_MOST_EVENTS)
    store = open_given_store(asked.store, asked.store_prefix, history=limits)
    folder = ExportFolder(asked.out)
    try:
        with locked_folder(folder.path), progress(desc="export", unit="part", total=asked.parts) as bar:

            def note(_: int) -> None:
                bar.update()

            return await export(store, folder, parts=asked.parts, force=asked.force, on_part=note)
    finally:
        await store.close()
