"""`igd compare`: checkpoints that were evaluated on the same rows, side by side."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from igd_core.checked_settings import Flag, Listed
from igd_core.cli.flags import add_flags, read
from igd_core.cli.intervals import IntervalFlags
from igd_core.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from igd_core.evaluation.compare import Trial


class CompareFlags(IntervalFlags):
    """How checkpoints are compared, and by what."""

    metric: Annotated[str, Flag(metavar="HR@K|NDCG@K")] = Field(default="NDCG@10", description="what is compared")
    seen: Literal["allowed", "excluded"] = Field(
        default="allowed", description="whether items of the history may come back"
    )
    among: Annotated[Listed[str], Flag(metavar="SETTING", repeated=True)] = Field(
        default=(), description="choose from these (default: all with length penalty 0 and forced tokens in full)"
    )
    together: bool = Field(
        default=False, description="choose one setting for all seeds of a name (default: one for each)"
    )


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
    add_flags(parser, CompareFlags)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, choose, compare, print."""
    from igd_core.evaluation.bootstrap import Resampling
    from igd_core.evaluation.compare import Question, Trial, compare, pair, table
    from igd_core.evaluation.ranks import read_ranks

    asked = read(args, CompareFlags)
    question = Question(
        metric=asked.metric, seen=asked.seen, among=asked.among, together=asked.together, draw=asked.draw
    )
    trials: dict[str, list[Trial]] = {}
    for name, valid, test in args.trial:
        trial = Trial(valid=read_ranks(Path(valid)), test=read_ranks(Path(test)))
        if trial.valid.shares_rows_with(trial.test):
            raise InputError(f"trial {name}: rows of {valid} are among those of {test}; rows that choose cannot judge")
        trials.setdefault(name, []).append(trial)
    if len({Path(test).resolve() for _, _, test in args.trial}) < len(args.trial):
        raise InputError(f"trial: named twice ({', '.join(test for _, _, test in args.trial)})")
    _require_no_copies([(name, Path(test)) for name, _, test in args.trial])
    baselines = {name: read_ranks(Path(test)) for name, test in args.baseline}
    if len(baselines) < len(args.baseline):
        raise InputError(f"baseline: named twice ({', '.join(name for name, _ in args.baseline)})")
    paired = pair(trials, baselines)
    results = compare(paired, question, Resampling(resamples=asked.resamples, seed=asked.seed))
    if args.json:
        told = {"metric": asked.metric, "seen": asked.seen, "draw": asked.draw, "shared_rows": dict(paired.shared)}
        print(json.dumps({**told, "names": [asdict(result) for result in results]}))
    else:
        print(table(results, question, paired))
    return 0


def _require_no_copies(tests: Sequence[tuple[str, Path]]) -> None:
    """Refuse lists of one model that would count twice for a name."""
    from igd_core.evaluation.ranks import RANKS_FILE

    found: dict[tuple[str, str], Path] = {}
    for name, test in tests:
        content = hashlib.sha256((test / RANKS_FILE).read_bytes()).hexdigest()
        before = found.setdefault((name, content), test)
        if before is not test:
            raise InputError(f"trial {name}: {test} has the lists of {before}, of the same model; no run counts twice")
