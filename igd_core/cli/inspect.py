"""`igd inspect`: what an artifact's tokens decide, and what checkpoints make of them: table, JSON and picture."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.artifact import Artifact, load_artifact
from igd_core.catalogue.tokenization import TitleTokenizer, require_same_tokenizer
from igd_core.cli.build import summary
from igd_core.cli.inspect_checkpoint import add_checkpoint_arguments, run_checkpoints
from igd_core.cli.numbers import Whole
from igd_core.evaluation.inspection import Inspection, inspect_artifact

if TYPE_CHECKING:
    from collections.abc import Callable


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd inspect`."""
    parser = subparsers.add_parser("inspect", help="information-gain statistics of an artifact, and a plot")
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="to print tokens as text")
    parser.add_argument(
        "--top", type=Whole("top"), default=20, metavar="N", help="decisive tokens listed (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw information gain by token position")
    parser.add_argument("--json", action="store_true")
    add_checkpoint_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, compute, print, draw."""
    if args.checkpoint:
        return run_checkpoints(args)
    artifact = load_artifact(args.artifact)
    text_of: Callable[[int], str] = str
    if args.tokenizer is not None:
        tokenizer = TitleTokenizer.from_directory(args.tokenizer)
        require_same_tokenizer(artifact.manifest.tokenizer_sha256, tokenizer)
        text_of = tokenizer.token_text
    inspection = inspect_artifact(artifact, top=args.top)
    if args.plot is not None:
        from igd_core.evaluation.inspection_plot import draw_gain_by_position

        draw_gain_by_position(inspection, artifact.manifest.name, args.plot)
    if args.json:
        report = {**summary(artifact), **asdict(inspection)}
        for token in report["decisive_tokens"]:
            token["text"] = text_of(token["token_id"])
        print(json.dumps(report))
    else:
        _print_table(artifact, inspection, text_of)
    return 0


def _print_table(artifact: Artifact, inspection: Inspection, text_of: Callable[[int], str]) -> None:
    shares = {
        "tokens a path": f"{inspection.tokens_per_path:.1f}",
        "zero-IG tokens": f"{inspection.zero_share_catalogue:.1%} of the catalogue's, "
        f"{inspection.zero_share_frequency:.1%} as often as chosen",
        "decisions a path": f"{inspection.decisions_per_path:.1f}, at most {inspection.most_decisions}",
        "first tokens": str(inspection.first_tokens),
    }
    for name, value in {**summary(artifact), **shares}.items():
        print(f"{name.replace('_', ' '):<22}{value}")
    print(f"\n{'token':<22}{'expected gain':>14}{'mean gain':>12}{'edges':>8}   (nats)")
    for token in inspection.decisive_tokens:
        shown = text_of(token.token_id)
        print(f"{shown!r:<22}{token.expected_gain:>14.4f}{token.mean_gain:>12.4f}{token.edges:>8}")
