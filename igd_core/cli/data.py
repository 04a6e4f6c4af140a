"""`igd data prepare`: raw data to a folder of items, training interactions and (history, target) rows."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Directory, File, Words
from igd_core.cli.attributes import AttributeFlags, ItemsFlags, add_attribute_arguments, attribute_rules
from igd_core.cli.flags import add_flags, read
from igd_core.cli.layout import EventsFlags
from igd_core.cli.reading import add_reading_arguments, reading_of, tell
from igd_core.datasets.options import AmazonOptions, Preparation
from igd_core.errors import DataError
from igd_core.event_kinds import HISTORY_KINDS, is_kind
from igd_core.models import igd_home
from igd_core.replaced_outputs import paths_in, require_apart

if TYPE_CHECKING:
    from pathlib import Path


class PrepareFlags(Preparation):
    """What is prepared of every source."""

    force: bool = Field(
        default=False,
        description="replace the prepared data set that --out holds; a folder with anything else in it is left alone",
    )


class MovieLensFlags(PrepareFlags):
    """What is prepared of MovieLens-100K."""

    out: Directory | None = Field(default=None, description="default: IGD_HOME/data/ml-100k")
    year: bool = Field(default=True, description='"Sabrina (1954)", not "Sabrina"')


class AmazonFlags(PrepareFlags, AmazonOptions):
    """What is prepared of Amazon's reviews."""

    reviews: File = Field(description="one JSON object a line, or gzip")
    metadata: File = Field(description="likewise; asin and title")
    out: Directory | None = Field(default=None, description="default: IGD_HOME/data/ and the reviews file's name")


class FilesFlags(PrepareFlags, EventsFlags, ItemsFlags):
    """What is prepared of other files."""

    layout: File | None = Field(
        default=None, description="how each of the two files is read, as `igd start` writes it; flags go before it"
    )

    interactions: File = Field(description="user_id, item_id, timestamp and maybe rating")
    out: Directory | None = Field(default=None, description="default: IGD_HOME/data/ and the interactions file's name")


class StoreFlags(PrepareFlags, ItemsFlags):
    """What is prepared of an export of a store."""

    export: Directory = Field(description="what `igd export` wrote")
    kinds: Words[str] = Field(default=HISTORY_KINDS, description="kinds of events that make a history")
    position_power: Annotated[float, Field(ge=0, le=10)] = Field(
        default=1.0, description="an item shown at rank r is looked at with probability r ** -N"
    )
    out: Directory | None = Field(default=None, description="default: IGD_HOME/data/ and the export's name")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd data`; each leaf sets ``run``, a function of the parsed arguments that returns the exit code."""
    data = subparsers.add_parser("data", help="turn raw data into items and (history, target) rows")
    prepare = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "prepare", help="split by time and write items.csv, train_interactions.csv, train.csv, valid.csv, test.csv"
    )
    sources = prepare.add_subparsers(required=True, metavar="SOURCE")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print what was made as JSON")

    movielens = sources.add_parser("ml-100k", parents=[shared], help="MovieLens-100K, from the installed recbole wheel")
    add_flags(movielens, MovieLensFlags)
    movielens.set_defaults(run=_prepare_movielens)

    amazon = sources.add_parser("amazon", parents=[shared], help="Amazon reviews (2018 release), from the raw files")
    add_flags(amazon, AmazonFlags)
    amazon.set_defaults(run=_prepare_amazon)

    files = sources.add_parser("csv", parents=[shared], help="your own files: csv, JSON lines or Parquet")
    add_flags(files, FilesFlags)
    add_attribute_arguments(files)
    add_reading_arguments(files)
    files.set_defaults(run=_prepare_files)

    store = sources.add_parser("store", parents=[shared], help="events and impressions that `igd export` wrote")
    add_flags(store, StoreFlags)
    add_attribute_arguments(store)
    add_reading_arguments(store)
    store.set_defaults(run=_prepare_store)


def _prepare_movielens(args: argparse.Namespace) -> int:
    from igd_core.datasets.movielens import read_movielens
    from igd_core.datasets.prepared import write_prepared

    asked = read(args, MovieLensFlags)
    movielens = read_movielens(year_in_title=asked.year)
    out = asked.out or igd_home() / "data" / "ml-100k"
    summary = write_prepared(out, movielens.catalogue, movielens.interactions, asked, force=asked.force)
    return _report(out, summary, as_json=args.json)


def _prepare_amazon(args: argparse.Namespace) -> int:
    from igd_core.datasets.amazon import read_amazon
    from igd_core.datasets.prepared import write_prepared

    asked = read(args, AmazonFlags)
    amazon = read_amazon(asked.reviews, asked.metadata, asked)
    out = asked.out or igd_home() / "data" / asked.reviews.name.partition(".")[0]
    _keep_inputs(out, asked)
    summary = write_prepared(out, amazon.catalogue, amazon.interactions, asked, force=asked.force)
    return _report(out, summary | {"reviews": amazon.reviews, "untitled": amazon.untitled}, as_json=args.json)


def _prepare_files(args: argparse.Namespace) -> int:
    from igd_core.cli.layout import layout_of, rules_of, with_rules
    from igd_core.datasets.export_reading import EventsExport, ItemsExport, read_exports
    from igd_core.datasets.prepared import LEFT_OUT, write_prepared
    from igd_core.datasets.sources import STANDARD_INPUT, opened

    asked = read(args, FilesFlags)
    layout = layout_of(args, asked.layout)
    items_reading = with_rules(layout.items_reading, rules_of(args, layout, asked.items))
    with opened([asked.items, asked.interactions]) as (items_file, interactions_file):
        exports = read_exports(
            ItemsExport(
                file=items_file,
                title_column=asked.title_column,
                on_empty=layout.items.on_empty_title,
                reading=items_reading,
            ),
            EventsExport(
                file=interactions_file,
                on_unknown=layout.events.on_unknown_item,
                reading=layout.events_reading,
            ),
        )
    items, found = exports.items, exports.events
    notes = exports.notes
    tell(notes)
    name = "stdin" if str(asked.interactions) == STANDARD_INPUT else asked.interactions.name.partition(".")[0]
    out = asked.out or igd_home() / "data" / (name or "data")
    rows = list(exports.left_out)
    _keep_inputs(out, asked, read(args, AttributeFlags))
    summary = write_prepared(out, items.catalogue, exports.interactions, asked, force=asked.force, left_out=rows)
    if rows:
        tell([f"{out / LEFT_OUT} lists the {len(rows):,} rows that are left out, with the reason of each"])
    left_out = {"items_skipped": len(items.skipped), "interactions_dropped": found.dropped}
    left_out["bad_rows"] = items.bad_rows + found.bad_rows
    if layout.events.kinds:
        left_out["other_kinds"] = found.other_kinds
    shown = {"notes": notes} if args.json and notes else {}
    return _report(out, summary | left_out | shown, as_json=args.json)


def _prepare_store(args: argparse.Namespace) -> int:
    from igd_core.datasets.export_format import StoreExport
    from igd_core.datasets.items_file import read_items
    from igd_core.datasets.prepared import write_prepared
    from igd_core.datasets.store_export import read_export

    asked = read(args, StoreFlags)
    if wrong := [kind for kind in asked.kinds if not is_kind(kind)]:
        raise DataError(f"kinds: {wrong[0]!r} is no name of a kind")
    reading = replace(reading_of(args), attributes=attribute_rules(args, asked.items))
    items = read_items(asked.items, title_column=asked.title_column, on_empty=asked.on_empty_title, reading=reading)
    tell(items.notes)
    export = StoreExport.open(asked.export)
    found = read_export(
        export,
        items.catalogue,
        kinds=asked.kinds,
        power=asked.position_power,
        drop_unknown=asked.on_unknown_item == "drop",
    )
    out = asked.out or igd_home() / "data" / (asked.export.resolve().name or "store")
    _keep_inputs(out, asked, read(args, AttributeFlags))
    summary = write_prepared(out, items.catalogue, found.interactions, asked, force=asked.force)
    of_store: dict[str, object] = {
        "store": export.manifest["store"],
        "exported": export.manifest["finished_at"],
        "events": found.events,
        "other_events": found.other_events,
        "events_dropped": found.dropped,
        "shown": found.shown,
        "items_skipped": len(items.skipped),
    }
    return _report(out, summary | of_store, as_json=args.json)


def _keep_inputs(out: Path, asked: PrepareFlags, *others: CheckedSettings) -> None:
    """Refuse to replace what is being prepared."""
    if asked.force:
        require_apart(out, paths_in(asked, *others))


def _report(out: Path, summary: dict[str, object], *, as_json: bool) -> int:
    summary = {"out": str(out)} | summary
    if as_json:
        print(json.dumps(summary))
        return 0
    for name, value in summary.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):<24}{shown}")
    return 0
