"""`igd data prepare`: raw data to a folder of items, training interactions and (history, target) rows."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from igd_core.cli.attributes import add_attribute_arguments, attribute_rules
from igd_core.cli.numbers import Whole
from igd_core.cli.reading import add_reading_arguments, reading_of, tell
from igd_core.datasets.amazon import AmazonOptions, read_amazon
from igd_core.datasets.interactions import Interactions
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.movielens import read_movielens
from igd_core.datasets.prepared import Preparation, write_prepared
from igd_core.datasets.sources import STANDARD_INPUT, opened
from igd_core.errors import DataError
from igd_core.models import igd_home


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd data`; each leaf sets ``run``, a function of the parsed arguments that returns the exit code."""
    data = subparsers.add_parser("data", help="turn raw data into items and (history, target) rows")
    prepare = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "prepare", help="split by time and write items.csv, train_interactions.csv, train.csv, valid.csv, test.csv"
    )
    sources = prepare.add_subparsers(required=True, metavar="SOURCE")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--split", choices=("time", "leave-one-out"), default="time", help="default: %(default)s, 8:1:1"
    )
    shared.add_argument(
        "--max-history", type=Whole("max_history", least=1), default=10, metavar="N", help="default: %(default)s"
    )
    shared.add_argument("--force", action="store_true", help="replace a prepared data set that is there already")
    shared.add_argument("--json", action="store_true", help="print what was made as JSON")

    movielens = sources.add_parser("ml-100k", parents=[shared], help="MovieLens-100K, from the installed recbole wheel")
    movielens.add_argument("--out", type=Path, metavar="DIR", help="default: IGD_HOME/data/ml-100k")
    movielens.add_argument("--no-year", action="store_true", help='"Sabrina", not "Sabrina (1954)"')
    movielens.set_defaults(run=_prepare_movielens)

    amazon = sources.add_parser("amazon", parents=[shared], help="Amazon reviews (2018 release), from the raw files")
    amazon.add_argument("--reviews", type=Path, required=True, metavar="FILE", help="one JSON object a line, or gzip")
    amazon.add_argument("--metadata", type=Path, required=True, metavar="FILE", help="likewise; asin and title")
    amazon.add_argument("--out", type=Path, metavar="DIR", help="default: IGD_HOME/data/ and the reviews file's name")
    window = AmazonOptions()
    amazon.add_argument("--begin", default=window.begin, metavar="DAY", help="first day (default: %(default)s)")
    amazon.add_argument("--end", default=window.end, metavar="DAY", help="first day after (default: %(default)s)")
    amazon.add_argument(
        "--core",
        type=Whole("core", least=1),
        default=window.core,
        metavar="N",
        help="least reviews of a user, an item (default: 5)",
    )
    amazon.set_defaults(run=_prepare_amazon)

    files = sources.add_parser("csv", parents=[shared], help="your own files: csv, JSON lines or Parquet")
    files.add_argument("--items", type=Path, required=True, metavar="FILE", help="item_id, title, any other columns")
    files.add_argument(
        "--interactions",
        type=Path,
        required=True,
        metavar="FILE",
        help="user_id, item_id, timestamp and maybe rating",
    )
    files.add_argument(
        "--out", type=Path, metavar="DIR", help="default: IGD_HOME/data/ and the interactions file's name"
    )
    files.add_argument("--title-column", default="title", metavar="NAME", help="default: %(default)s")
    add_attribute_arguments(files)
    files.add_argument("--on-empty-title", choices=("error", "skip"), default="error", help="default: %(default)s")
    files.add_argument("--on-unknown-item", choices=("error", "drop"), default="error", help="default: %(default)s")
    add_reading_arguments(files)
    files.set_defaults(run=_prepare_files)


def _prepare_movielens(args: argparse.Namespace) -> int:
    movielens = read_movielens(year_in_title=not args.no_year)
    out = args.out or igd_home() / "data" / "ml-100k"
    summary = write_prepared(out, movielens.catalogue, movielens.interactions, _preparation(args), force=args.force)
    return _report(out, summary, as_json=args.json)


def _prepare_amazon(args: argparse.Namespace) -> int:
    options = AmazonOptions(begin=args.begin, end=args.end, core=args.core)
    amazon = read_amazon(args.reviews, args.metadata, options)
    out = args.out or igd_home() / "data" / args.reviews.name.partition(".")[0]
    summary = write_prepared(out, amazon.catalogue, amazon.interactions, _preparation(args), force=args.force)
    return _report(out, summary | {"reviews": amazon.reviews, "untitled": amazon.untitled}, as_json=args.json)


def _prepare_files(args: argparse.Namespace) -> int:
    reading = replace(reading_of(args), attributes=attribute_rules(args))
    with opened([args.items, args.interactions]) as (items_file, interactions_file):
        items = read_items(
            items_file,
            title_column=args.title_column,
            on_empty=args.on_empty_title,
            reading=reading,
        )
        read = read_interactions(
            interactions_file, items.catalogue, on_unknown=args.on_unknown_item, wanted="interactions", reading=reading
        )
    tell([*items.notes, *read.notes])
    if not isinstance(read.data, Interactions):  # for the type checker: refused before it was read
        raise DataError(f"{args.interactions}: history rows")
    name = "stdin" if str(args.interactions) == STANDARD_INPUT else args.interactions.name.partition(".")[0]
    out = args.out or igd_home() / "data" / (name or "data")
    summary = write_prepared(out, items.catalogue, read.data, _preparation(args), force=args.force)
    left_out = {"items_skipped": len(items.skipped), "interactions_dropped": read.dropped}
    left_out["bad_rows"] = items.bad_rows + read.bad_rows
    return _report(out, summary | left_out, as_json=args.json)


def _preparation(args: argparse.Namespace) -> Preparation:
    return Preparation(split=args.split, max_history=args.max_history)


def _report(out: Path, summary: dict[str, object], *, as_json: bool) -> int:
    summary = {"out": str(out)} | summary
    if as_json:
        print(json.dumps(summary))
        return 0
    for name, value in summary.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):<24}{shown}")
    return 0
