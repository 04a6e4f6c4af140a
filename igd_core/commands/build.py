"""`igd build`: items and interactions to an artefact."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from igd_core.artifact import Artifact, BuildOptions, build_artifact, save_artifact
from igd_core.commands.attributes import add_attribute_arguments, attribute_rules
from igd_core.commands.reading import add_reading_arguments, reading_of, tell
from igd_core.data.readers import count_items, read_items
from igd_core.data.sources import opened
from igd_core.prompts import DEFAULT_BULLET, DEFAULT_INSTRUCTION
from igd_core.tokenization import TitleTokenizer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd build`."""
    defaults = BuildOptions()
    parser = subparsers.add_parser("build", help="make an artefact: trie, information-gain table, items")
    parser.add_argument("--items", type=Path, required=True, metavar="FILE", help="item_id, title, any other columns")
    parser.add_argument(
        "--interactions",
        type=Path,
        required=True,
        metavar="FILE",
        help="one row an interaction, or (history, target): column item_id is counted, others are not read",
    )
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="the checkpoint's directory")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", default=defaults.name, help="the catalogue's name (default: %(default)s)")
    parser.add_argument("--model-id", default="", metavar="NAME", help="checkpoint this artefact is meant for")
    parser.add_argument("--title-column", default="title", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--path-column", metavar="NAME", help="what spells an item for the model (default: its title)")
    parser.add_argument(
        "--allow-special-tokens",
        action="store_true",
        help="paths hold the checkpoint's own added tokens (semantic IDs)",
    )
    parser.add_argument("--max-path-tokens", type=int, default=defaults.max_path_tokens, metavar="N")
    parser.add_argument("--alpha", type=float, default=defaults.alpha, help="default of requests that name none")
    parser.add_argument("--smoothing", type=float, default=0.0, help="added to every item's count, for cold items")
    parser.add_argument("--instruction", default=DEFAULT_INSTRUCTION, help="text in front of the history")
    parser.add_argument(
        "--bullet",
        default=DEFAULT_BULLET,
        metavar="TEXT",
        help="in front of each title, the next one included (default: %(default)s)",
    )
    parser.add_argument("--suffix", default="", help="text behind the history")
    parser.add_argument(
        "--max-history", type=int, default=defaults.max_history, metavar="N", help="most items a prompt shows"
    )
    parser.add_argument(
        "--drop-block",
        type=int,
        metavar="N",
        help="items that leave at once when a history outgrows that (default: half of it)",
    )
    add_attribute_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument("--on-empty-title", choices=("error", "skip"), default="error")
    parser.add_argument("--on-unknown-item", choices=("error", "drop"), default="error")
    parser.add_argument("--force", action="store_true", help="replace what --out holds")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, build, write, report."""
    started = time.perf_counter()
    reading = replace(reading_of(args), attributes=attribute_rules(args))
    with opened([args.items, args.interactions]) as (items_file, interactions_file):
        items = read_items(
            items_file,
            title_column=args.title_column,
            path_column=args.path_column,
            on_empty=args.on_empty_title,
            reading=reading,
        )
        read = count_items(interactions_file, items.catalogue, on_unknown=args.on_unknown_item, reading=reading)
    tell([*items.notes, *read.notes])
    catalogue = items.catalogue.with_frequency(read.frequency)
    artifact = build_artifact(
        catalogue,
        TitleTokenizer.from_directory(args.tokenizer),
        BuildOptions(
            name=args.name,
            model_id=args.model_id,
            alpha=args.alpha,
            smoothing=args.smoothing,
            max_path_tokens=args.max_path_tokens,
            allow_added_tokens=args.allow_special_tokens,
            path_column=args.path_column or args.title_column,
            instruction=args.instruction,
            bullet=args.bullet,
            suffix=args.suffix,
            max_history=args.max_history,
            drop_block=args.drop_block,
        ),
    )
    save_artifact(artifact, args.out, replace=args.force)
    report = {
        **summary(artifact),
        "out": str(args.out),
        "items_skipped": len(items.skipped),
        "interactions_dropped": read.dropped,
        "attributes": {name: kind.name for name, kind in catalogue.types.items()},
        "bad_rows": items.bad_rows + read.bad_rows,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if args.json:
        print(json.dumps(report))
        return 0
    for name, value in report.items():
        shown = ", ".join(f"{one} {kind}" for one, kind in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):<22}{shown}")
    if artifact.manifest.counts.cold and not args.smoothing:
        print(f"note: {artifact.manifest.counts.cold} items were never chosen; --smoothing 1 would tell them apart")
    return 0


def summary(artifact: Artifact) -> dict[str, object]:
    """What people ask first of an artefact."""
    counts = artifact.manifest.counts
    return {
        "version": artifact.version,
        "name": artifact.manifest.name,
        "items": counts.items,
        "distinct_paths": counts.leaves,
        "trie_nodes": counts.nodes,
        "longest_path": counts.depth,
        "truncated_titles": counts.truncated,
        "cold_items": counts.cold,
        "entropy_nats": round(artifact.manifest.entropy_nats, 4),
    }
