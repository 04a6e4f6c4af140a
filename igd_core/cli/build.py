"""`igd build`: items and interactions to an artifact."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.artifact import Artifact, BuildOptions, build_reported, save_artifact
from igd_core.artifact.shared_paths import shared_paths
from igd_core.artifact.spelling import UnspellableError
from igd_core.catalogue.prompts import DEFAULT_BULLET, DEFAULT_INSTRUCTION
from igd_core.catalogue.semantic_ids import codes_of, extend_tokenizer
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.cli.attributes import add_attribute_arguments, attribute_rules
from igd_core.cli.build_scorer import add_scorer_arguments, check_scorer_arguments, scorer_options
from igd_core.cli.numbers import Real, Whole, alpha
from igd_core.cli.reading import add_reading_arguments, reading_of, tell
from igd_core.datasets.faults import SHOWN_ROWS, Faults, shown
from igd_core.datasets.interactions_file import count_items, read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.sequences import training_sequences
from igd_core.datasets.sources import opened
from igd_core.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igd_core.artifact import Built
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import PathFault
    from igd_core.datasets.items_file import ItemsFile
    from igd_core.datasets.sources import Reading, Source
    from igd_core.scorers.record import ScorerRecord


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd build`."""
    defaults = BuildOptions()
    parser = subparsers.add_parser("build", help="make an artifact: trie, information-gain table, items")
    parser.add_argument("--items", type=Path, required=True, metavar="FILE", help="item_id, title, any other columns")
    parser.add_argument(
        "--interactions",
        type=Path,
        required=True,
        metavar="FILE",
        help="one row an interaction, or (history, target): column item_id is counted; others are read for --scorer",
    )
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="the checkpoint's directory")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", default=defaults.name, help="the catalogue's name (default: %(default)s)")
    parser.add_argument("--model-id", default="", metavar="NAME", help="checkpoint this artifact is meant for")
    parser.add_argument("--title-column", default="title", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--path-column", metavar="NAME", help="what spells an item for the model (default: its title)")
    parser.add_argument(
        "--allow-special-tokens",
        action="store_true",
        help="paths hold the checkpoint's own added tokens (semantic IDs)",
    )
    parser.add_argument(
        "--extend-tokenizer",
        type=Path,
        metavar="DIR",
        help="add the semantic IDs that the tokenizer lacks, and write it there (implies --allow-special-tokens)",
    )
    parser.add_argument(
        "--max-path-tokens",
        type=Whole("max_path_tokens", least=3, most=512),
        default=defaults.max_path_tokens,
        metavar="N",
    )
    parser.add_argument("--alpha", type=alpha(), default=defaults.alpha, help="default of requests that name none")
    parser.add_argument(
        "--smoothing", type=Real("smoothing"), default=0.0, help="added to every item's count, for cold items"
    )
    parser.add_argument("--instruction", default=DEFAULT_INSTRUCTION, help="text in front of the history")
    parser.add_argument(
        "--bullet",
        default=DEFAULT_BULLET,
        metavar="TEXT",
        help="in front of each title, the next one included (default: %(default)s)",
    )
    parser.add_argument("--suffix", default="", help="text behind the history")
    parser.add_argument(
        "--max-history",
        type=Whole("max_history", least=1),
        default=defaults.max_history,
        metavar="N",
        help="most items a prompt shows",
    )
    parser.add_argument(
        "--drop-block",
        type=Whole("drop_block", least=1),
        metavar="N",
        help="items that leave at once when a history outgrows that (default: half of it)",
    )
    add_scorer_arguments(parser)
    add_attribute_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument("--on-empty-title", choices=("error", "skip"), default="error")
    parser.add_argument(
        "--on-unspellable",
        choices=("error", "skip", "spell"),
        default=defaults.on_unspellable,
        help="an item whose title the tokenizer has no piece for refuses the catalogue, is left out, or is spelled by "
        "other characters (default: %(default)s)",
    )
    parser.add_argument("--on-unknown-item", choices=("error", "drop"), default="error")
    parser.add_argument("--force", action="store_true", help="replace what --out holds")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, build, write, report."""
    check_scorer_arguments(args)
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
        scorer = scorer_options(args, items.catalogue, reading)
        sequences = [] if scorer is None else _sequences(interactions_file, items.catalogue, args, reading)
    tell([*items.notes, *read.notes])
    catalogue = items.catalogue.with_frequency(read.frequency)
    tokenizer, added = _tokenizer(args, catalogue)
    try:
        built = build_reported(catalogue, tokenizer, replace(_options(args), scorer=scorer), sequences=sequences)
    except UnspellableError as error:
        raise _in_file(error, items, args) from None
    artifact = built.artifact
    save_artifact(artifact, args.out, replace=args.force)
    report = {
        **summary(artifact),
        **_sharing(artifact),
        **_unspellable(built, catalogue, items.rows),
        **({} if added is None else {"added_tokens": added, "tokenizer": str(args.extend_tokenizer)}),
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
        if isinstance(value, list):
            for example in value:
                print(f"  {_line(example)}")
            continue
        shown_value = ", ".join(f"{one} {kind}" for one, kind in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):<26}{shown_value}")
    if artifact.manifest.counts.cold and not args.smoothing:
        print(f"note: {artifact.manifest.counts.cold} items were never chosen; --smoothing 1 would tell them apart")
    if added:
        print(
            f"note: {added:,} tokens were added: the model's embedding needs {tokenizer.vocab_size:,} rows, and new "
            f"ones mean nothing until it is tuned: `igd tune --tokenizer {args.extend_tokenizer}` does both"
        )
    return 0


def _sequences(
    file: Source, catalogue: Catalogue, args: argparse.Namespace, reading: Reading
) -> list[NDArray[np.int32]]:
    """What each person chose, in order."""
    read = read_interactions(file, catalogue, on_unknown=args.on_unknown_item, optional=("user_id",), reading=reading)
    return training_sequences(read.data)


def _options(args: argparse.Namespace) -> BuildOptions:
    return BuildOptions(
        name=args.name,
        model_id=args.model_id,
        alpha=args.alpha,
        smoothing=args.smoothing,
        max_path_tokens=args.max_path_tokens,
        allow_added_tokens=args.allow_special_tokens or args.extend_tokenizer is not None,
        on_unspellable=args.on_unspellable,
        path_column=args.path_column or args.title_column,
        instruction=args.instruction,
        bullet=args.bullet,
        suffix=args.suffix,
        max_history=args.max_history,
        drop_block=args.drop_block,
    )


def _tokenizer(args: argparse.Namespace, catalogue: Catalogue) -> tuple[TitleTokenizer, int | None]:
    """The tokenizer, and how many semantic IDs were added to it; None where none were to be."""
    tokenizer = TitleTokenizer.from_directory(args.tokenizer)
    if args.extend_tokenizer is None:
        return tokenizer, None
    codes = [code for code in codes_of(catalogue.texts) if tokenizer.id_of(code) is None]
    return extend_tokenizer(tokenizer, args.tokenizer, args.extend_tokenizer, codes=codes), len(codes)


def _in_file(error: UnspellableError, items: ItemsFile, args: argparse.Namespace) -> DataError:
    """The same, said of the rows of a file."""
    column = args.path_column or args.title_column
    by_kind: dict[str, list[PathFault]] = {}
    for fault in error.faults:
        by_kind.setdefault(fault.summary, []).append(fault)
    faults = Faults(str(args.items), hints=True)
    for reason, found in by_kind.items():
        faults.refused(
            f"{column} of item",
            reason,
            [int(items.rows[fault.item]) for fault in found],
            [_named(fault, items.catalogue) for fault in found[:SHOWN_ROWS]],
            hint="--on-unspellable skip leaves such items out"
            + ("" if args.on_unspellable == "spell" else ", spell writes other characters"),
        )
    try:
        faults.check()
    except DataError as told:
        return told
    raise error  # without faults there is nothing to tell


def _named(fault: PathFault, catalogue: Catalogue) -> str:
    return f"{shown(catalogue.item_ids[fault.item])}" + (f" ({shown(fault.what)})" if fault.what else "")


def _sharing(artifact: Artifact) -> dict[str, object]:
    shared = shared_paths(artifact)
    return {
        "items_sharing_paths": shared.items,
        "shared_paths": shared.paths,
        "shared_path_examples": [asdict(example) for example in shared.examples],
    }


def _line(example: dict[str, Any]) -> str:
    """An example of the report, for people."""
    if "why" in example:
        shown_items = ", ".join(
            f"{item_id} {title!r}" for item_id, title in zip(example["item_ids"], example["titles"], strict=True)
        )
        more = ", ..." if example["items"] > len(example["item_ids"]) else ""
        return f"{example['items']} items of {example['why']}: {shown_items}{more}"
    became = "left out" if example["spelled"] is None else f"spelled {example['spelled']!r}"
    return f"row {example['row']}: item {example['item_id']!r}: {example['reason']}: {became}"


def _unspellable(built: Built, catalogue: Catalogue, rows: NDArray[np.int64]) -> dict[str, object]:
    """What became of titles that the tokenizer cannot spell, with the first five."""
    faults, written = built.spelled.faults, built.spelled.written
    first = [
        {
            "row": int(rows[fault.item]),
            "item_id": catalogue.item_ids[fault.item],
            "text": catalogue.texts[fault.item],
            "reason": fault.reason,
            "spelled": written.get(fault.item),
        }
        for fault in faults[:SHOWN_ROWS]
    ]
    return {
        "unspellable_skipped": len(faults) - len(written),
        "unspellable_spelled": len(written),
        "unspellable_interactions": sum(
            int(catalogue.frequency[fault.item]) for fault in faults if fault.item not in written
        ),
        "unspellable_examples": first,
    }


def summary(artifact: Artifact) -> dict[str, object]:
    """What people ask first of an artifact."""
    counts, scorer = artifact.manifest.counts, artifact.manifest.scorer
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
        **({} if scorer is None else _of_scorer(scorer)),
    }


def _of_scorer(scorer: ScorerRecord) -> dict[str, object]:
    """Its kind and size, and how it is mixed with the model where a request does not say."""
    return {
        "scorer": scorer.kind,
        **({} if scorer.entries is None else {"scorer_entries": scorer.entries}),
        **({} if scorer.network is None else {"scorer_network": asdict(scorer.network)}),
        "gamma": scorer.gamma,
        "mixture": scorer.mixture,
    }
