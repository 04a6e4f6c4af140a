"""`igd inspect`: what an artifact's tokens decide, and what checkpoints make of them: table, JSON and picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, CountOrNone, Directory, File, Flag
from igd_core.cli.flags import add_flags, read
from igd_core.cli.inspect_checkpoint import CheckpointFlags, add_checkpoint_arguments, run_checkpoints

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from igd_core.evaluation.inspection import Inspection


class InspectFlags(CheckedSettings):
    """Which artifact, and what of it."""

    artifact: Directory = Field(description="what `igd build` wrote")
    tokenizer: Directory | None = Field(default=None, description="to print tokens as text")
    top: CountOrNone = Field(default=20, description="decisive tokens listed")
    plot: Annotated[File, Flag(metavar="PNG")] | None = Field(
        default=None, description="draw information gain by token position"
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd inspect`."""
    parser = subparsers.add_parser("inspect", help="information-gain statistics of an artifact, and a plot")
    add_flags(parser, InspectFlags)
    parser.add_argument("--json", action="store_true")
    add_checkpoint_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, compute, print, draw."""
    from igd_core.artifact import load_artifact
    from igd_core.catalogue.tokenization import TitleTokenizer, require_same_tokenizer
    from igd_core.cli.build_report import summary
    from igd_core.evaluation.inspection import inspect_artifact

    asked, checkpoints = read(args, InspectFlags), read(args, CheckpointFlags)
    if checkpoints.checkpoint:
        return run_checkpoints(args, asked.artifact, checkpoints, asked.plot)
    artifact = load_artifact(asked.artifact)
    text_of: Callable[[int], str] = str
    if asked.tokenizer is not None:
        tokenizer = TitleTokenizer.from_directory(asked.tokenizer)
        require_same_tokenizer(artifact.manifest.tokenizer_sha256, tokenizer)
        text_of = tokenizer.token_text
    inspection = inspect_artifact(artifact, top=asked.top)
    if asked.plot is not None:
        from igd_core.evaluation.inspection_plot import draw_gain_by_position

        draw_gain_by_position(inspection, artifact.manifest.name, asked.plot)
    if args.json:
        report = {**summary(artifact), **asdict(inspection)}
        for token in report["decisive_tokens"]:
            token["text"] = text_of(token["token_id"])
        print(json.dumps(report))
    else:
        _print_table(summary(artifact), inspection, text_of)
    return 0


def _print_table(facts: dict[str, object], inspection: Inspection, text_of: Callable[[int], str]) -> None:
    from igd_core.cli.build_report import print_report

    shares = {
        "tokens a path": f"{inspection.tokens_per_path:.1f}",
        "zero-IG tokens": f"{inspection.zero_share_catalogue:.1%} of the catalogue's, "
        f"{inspection.zero_share_frequency:.1%} as often as chosen",
        "decisions a path": f"{inspection.decisions_per_path:.1f}, at most {inspection.most_decisions}",
        "first tokens": str(inspection.first_tokens),
    }
    print_report({**facts, **shares})
    print(f"\n{'token':<22}{'expected gain':>14}{'mean gain':>12}{'edges':>8}   (nats)")
    for token in inspection.decisive_tokens:
        shown = text_of(token.token_id)
        print(f"{shown!r:<22}{token.expected_gain:>14.4f}{token.mean_gain:>12.4f}{token.edges:>8}")
