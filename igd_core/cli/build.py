"""`igd build`: items and interactions to an artifact."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from igd_core.artifact.options import BuildOptions
from igd_core.checked_settings import Directory, File
from igd_core.cli.attributes import AttributeFlags, ItemsFlags, add_attribute_arguments, attribute_rules
from igd_core.cli.build_scorer import (
    ChosenBy,
    ScorerFlags,
    check_scorer_flags,
    knows_nothing,
    mixing_of_the_usual,
    no_scorer_of,
    require_nothing_said,
    scorer_makers,
    usual_scorer_of,
    who_chose_what,
    with_chosen_gamma,
)
from igd_core.cli.config_files import add_config_flags, print_config
from igd_core.cli.flags import add_flags, given, read
from igd_core.cli.reading import ReadingFlags, add_reading_arguments, reading_of, tell
from igd_core.errors import DataError, InputError
from igd_core.replaced_outputs import paths_in, require_apart

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from igd_core.artifact.build import Built
    from igd_core.artifact.spelling import UnspellableError
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import PathFault, TitleTokenizer
    from igd_core.datasets.items_file import ItemsFile


class BuildFlags(ItemsFlags):
    """What an artifact is made of; the choices that become part of it are `BuildOptions`."""

    interactions: File = Field(
        description="one row an interaction, or (history, target): column item_id is counted; the item scorer reads "
        "who chose what in which order"
    )
    tokenizer: Directory = Field(description="the checkpoint's directory")
    out: Directory = Field(description="folder of the artifact")
    extend_tokenizer: Directory | None = Field(
        default=None,
        description="add the semantic IDs that the tokenizer lacks, and write it there (implies "
        "--allow-special-tokens)",
    )
    force: bool = Field(
        default=False,
        description="replace the artifact that --out holds; a folder with anything else in it is left alone, and a "
        "link stays and leads to the new one",
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd build`."""
    parser = subparsers.add_parser("build", help="make an artifact: trie, information-gain table, items")
    add_flags(parser, BuildFlags)
    add_flags(parser, BuildOptions)
    add_flags(parser, ScorerFlags)
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    add_attribute_arguments(parser)
    add_reading_arguments(parser)
    add_config_flags(parser, BuildFlags, BuildOptions, ScorerFlags, AttributeFlags, ReadingFlags)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the settings, or build."""
    check_scorer_flags(args)
    asked, scorer = read(args, BuildFlags), read(args, ScorerFlags)
    said = given(args, BuildOptions)
    mixing = mixing_of_the_usual(said)
    options = BuildOptions.read(said)
    options = options.replaced(
        path_column=given(args, BuildOptions).get("path_column") or asked.title_column,
        allow_added_tokens=options.allow_added_tokens or asked.extend_tokenizer is not None,
        scorer=with_chosen_gamma(options.scorer, scorer),
    )
    if args.print_config:
        if mixing or (options.scorer is None and scorer.gamma_from):
            raise InputError(
                f"print_config: {' and '.join(mixing or ['gamma_from'])} without --scorer KIND cannot be written down "
                "(the usual one: --scorer transitions --scorer-also ease)"
            )
        print_config(
            asked, options, scorer.replaced(gamma_from=None), read(args, AttributeFlags), read(args, ReadingFlags)
        )
        return 0
    return _build(args, asked, options, scorer, mixing)


def _build(
    args: argparse.Namespace, asked: BuildFlags, options: BuildOptions, scorer: ScorerFlags, mixing: Mapping[str, Any]
) -> int:
    """Read, build, write, report; ``mixing``: gamma and mixture of the usual scorer."""
    from igd_core.artifact import build_reported, save_artifact
    from igd_core.artifact.files import require_replaceable
    from igd_core.artifact.spelling import UnspellableError
    from igd_core.cli.build_report import build_report, print_report
    from igd_core.datasets.interactions_file import count_items
    from igd_core.datasets.items_file import read_items
    from igd_core.datasets.sources import opened
    from igd_core.stages import Stages

    if asked.force:  # before the work, not after it
        require_replaceable(asked.out)
        require_apart(asked.out, paths_in(asked, scorer, read(args, AttributeFlags)))
    started = time.perf_counter()
    stages = Stages()
    reading = replace(reading_of(args), attributes=attribute_rules(args, asked.items))
    with opened([asked.items, asked.interactions]) as (items_file, interactions_file):
        with stages.stage("items"):
            items = read_items(
                items_file,
                title_column=asked.title_column,
                path_column=options.path_column,
                on_empty=asked.on_empty_title,
                reading=reading,
            )
        with stages.stage("interactions"):
            chosen = count_items(interactions_file, items.catalogue, on_unknown=asked.on_unknown_item, reading=reading)
        chosen_by, without = ChosenBy(), options
        if options.scorer is not None:
            makers = scorer_makers(options.scorer, scorer, items.catalogue, reading, on_unknown=asked.on_unknown_item)
            options = options.replaced(scorer=options.scorer.replaced(makers=makers))
            with stages.stage("scorer"):
                chosen_by = who_chose_what(
                    interactions_file, items.catalogue, reading, on_unknown=asked.on_unknown_item
                )
        elif scorer.usual_scorer:
            with stages.stage("scorer"):
                chosen_by, usual = usual_scorer_of(
                    interactions_file, items.catalogue, reading, on_unknown=asked.on_unknown_item, said=mixing,
                    flags=scorer,
                )  # fmt: skip
            options = options.replaced(scorer=usual)
    tell([*items.notes, *chosen.notes])
    catalogue = items.catalogue.with_frequency(chosen.frequency)
    tokenizer, added = _tokenizer(asked, catalogue)
    try:
        built = build_reported(catalogue, tokenizer, options, sequences=chosen_by.sequences, stages=stages)
        if without.scorer is None and knows_nothing(built.artifact.manifest.scorer):  # the usual one
            chosen_by = no_scorer_of(interactions_file, "nobody chose two items that can be spelled")
            require_nothing_said(mixing, scorer, chosen_by)
            built = build_reported(catalogue, tokenizer, without, stages=stages)
    except UnspellableError as error:
        raise _in_file(error, items, asked, options) from None
    tell(chosen_by.notes)
    with stages.stage("write"):
        save_artifact(built.artifact, asked.out, replace=asked.force)
    report = {
        **build_report(built, catalogue, items.rows),
        **({} if added is None else {"added_tokens": added, "tokenizer": str(asked.extend_tokenizer)}),
        "out": str(asked.out),
        "items_skipped": len(items.skipped),
        "interactions_dropped": chosen.dropped,
        "attributes": {name: kind.name for name, kind in catalogue.types.items()},
        "bad_rows": items.bad_rows + chosen.bad_rows,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if args.json:
        print(json.dumps({**report, "stages": stages.report()}))
        return 0
    print_report({**report, "stages": {name: f"{cost.seconds:.1f} s" for name, cost in stages.costs().items()}})
    for note in _notes(built, options, asked, tokenizer, added):
        print(f"note: {note}")
    return 0


def _notes(
    built: Built, options: BuildOptions, asked: BuildFlags, tokenizer: TitleTokenizer, added: int | None
) -> Iterator[str]:
    """What a person should know of what was built."""
    cold = built.artifact.manifest.counts.cold
    if cold and not options.smoothing:
        told = "1 item was" if cold == 1 else f"{cold:,} items were"
        yield f"{told} never chosen; --smoothing 1 would tell them apart"
    if added:
        yield (
            f"{added:,} tokens were added: the model's embedding needs {tokenizer.vocab_size:,} rows, and new "
            f"ones mean nothing until it is tuned: `igd tune --tokenizer {asked.extend_tokenizer}` does both"
        )


def _tokenizer(asked: BuildFlags, catalogue: Catalogue) -> tuple[TitleTokenizer, int | None]:
    """The tokenizer, and how many semantic IDs were added to it; None where none were to be."""
    from igd_core.catalogue.semantic_ids import codes_of, extend_tokenizer
    from igd_core.catalogue.tokenization import TitleTokenizer

    tokenizer = TitleTokenizer.from_directory(asked.tokenizer)
    if asked.extend_tokenizer is None:
        return tokenizer, None
    codes = [code for code in codes_of(catalogue.texts) if tokenizer.id_of(code) is None]
    return extend_tokenizer(tokenizer, asked.tokenizer, asked.extend_tokenizer, codes=codes), len(codes)


def _in_file(error: UnspellableError, items: ItemsFile, asked: BuildFlags, options: BuildOptions) -> DataError:
    """The same, said of the rows of a file."""
    from igd_core.datasets.faults import SHOWN_ROWS, Faults

    by_kind: dict[str, list[PathFault]] = {}
    for fault in error.faults:
        by_kind.setdefault(fault.summary, []).append(fault)
    faults = Faults(str(asked.items), hints=True)
    for reason, found in by_kind.items():
        faults.refused(
            f"{options.path_column} of item",
            reason,
            [int(items.rows[fault.item]) for fault in found],
            [_named(fault, items.catalogue) for fault in found[:SHOWN_ROWS]],
            hint="--on-unspellable skip leaves such items out"
            + ("" if options.on_unspellable == "spell" else ", spell writes other characters"),
        )
    try:
        faults.check()
    except DataError as told:
        return told
    raise error  # without faults there is nothing to tell


def _named(fault: PathFault, catalogue: Catalogue) -> str:
    from igd_core.datasets.faults import shown

    return f"{shown(catalogue.item_ids[fault.item])}" + (f" ({shown(fault.what)})" if fault.what else "")
