"""`igd compare`: checkpoints that were evaluated on the same rows, side by side."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.cli.numbers import resamples, seed
from igd_core.errors import InputError

if TYPE_CHECKING:
    from igd_core.evaluation.compare import Trial


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd compare`."""
    parser = subparsers.add_parser(
        "compare", help="what tuning and decoding add, from evaluations of several checkpoints"
    )
    parser.add_argument(
        "--trial",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "VALID", "TEST"),
        help="folders of two `igd evaluate` runs of one checkpoint; repeat a NAME for its seeds. The first NAME is what"
        " the others are compared with",
    )
    parser.add_argument(
        "--baseline",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "TEST"),
        help="a method of an `igd evaluate` run on the same test rows to compare each NAME with: popular, sasrec...",
    )
    parser.add_argument("--metric", default="NDCG@10", metavar="HR@K|NDCG@K", help="default: %(default)s")
    parser.add_argument("--seen", choices=("allowed", "excluded"), default="allowed", help="default: %(default)s")
    parser.add_argument(
        "--among", action="append", default=[], metavar="SETTING", help="choose from these (default: D3 and IGD)"
    )
    parser.add_argument(
        "--together", action="store_true", help="choose one setting for all seeds of a name (default: one for each)"
    )
    parser.add_argument(
        "--draw",
        choices=("rows", "targets"),
        default="rows",
        help="what the intervals draw: test rows, or the titles they ask for with all their rows (default: rows)",
    )
    parser.add_argument("--resamples", type=resamples(), default=2000, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--seed", type=seed(), default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, choose, compare, print."""
    from igd_core.evaluation.bootstrap import Resampling
    from igd_core.evaluation.compare import Question, Trial, compare, pair, table
    from igd_core.evaluation.ranks import read_ranks

    question = Question(
        metric=args.metric, seen=args.seen, among=tuple(args.among), together=args.together, draw=args.draw
    )
    trials: dict[str, list[Trial]] = {}
    for name, valid, test in args.trial:
        trial = Trial(valid=read_ranks(Path(valid)), test=read_ranks(Path(test)))
        trials.setdefault(name, []).append(trial)
    baselines = {name: read_ranks(Path(test)) for name, test in args.baseline}
    if len(baselines) < len(args.baseline):
        raise InputError(f"baseline: named twice ({', '.join(name for name, _ in args.baseline)})")
    paired = pair(trials, baselines)
    results = compare(paired, question, Resampling(resamples=args.resamples, seed=args.seed))
    if args.json:
        told = {"metric": args.metric, "seen": args.seen, "draw": args.draw, "shared_rows": dict(paired.shared)}
        print(json.dumps({**told, "names": [asdict(result) for result in results]}))
    else:
        print(table(results, question, paired))
    return 0
