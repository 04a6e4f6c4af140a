"""`igd evaluate`: ranked lists of a checkpoint under many settings, and of baselines, on the same rows."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.artifact import load_artifact
from igd_core.cli.numbers import MOST_CUTOFF, Real, Several, Whole, beams, resamples, seed
from igd_core.cli.reading import add_reading_arguments, reading_of, tell
from igd_core.cli.recommend import add_engine_arguments, engine_options
from igd_core.datasets.sources import opened
from igd_core.errors import InputError
from igd_core.models import igd_home
from igd_core.search.normalisation import NORMALISATIONS, Normalisation
from igd_core.search.query import MAX_LENGTH_PENALTY, MAX_TEMPERATURE, MIN_TEMPERATURE

if TYPE_CHECKING:
    from igd_core.evaluation.job import EvaluationJob, Summary
    from igd_core.evaluation.methods import DecodingSetting, Seen
    from igd_core.evaluation.shard import RunIdentity

_BASELINE_DEPTH = 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd evaluate`."""
    parser = subparsers.add_parser(
        "evaluate", help="HR and NDCG of a checkpoint and of baselines on held-out rows", conflict_handler="resolve"
    )
    add_engine_arguments(parser)
    parser.add_argument("--model", metavar="DIR", help="checkpoint; without one, baselines alone are evaluated")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter of the model, in PEFT's format")
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--rows", type=Path, required=True, metavar="FILE", help="history_item_ids and item_id (the target) a row"
    )
    parser.add_argument(
        "--limit", type=Whole("limit", least=1), metavar="N", help="a random sample of N rows (default: all)"
    )
    parser.add_argument("--seed", type=seed(), default=0, help="of the sample, the intervals and sasrec (default: 0)")
    parser.add_argument("--on-unknown-item", choices=("error", "miss"), default="error", help="default: %(default)s")
    parser.add_argument(
        "--alphas",
        type=Several(Real("alphas", most=1.0)),
        default=[0.0, 0.1, 0.2, 0.3, 0.4],
        metavar="A,...",
        help="0..0.4",
    )
    parser.add_argument(
        "--length-penalties",
        type=Several(Real("length_penalties", most=MAX_LENGTH_PENALTY)),
        default=[0.0, 1.0],
        metavar="P,...",
        help="default: 0,1",
    )
    parser.add_argument(
        "--forced-weights",
        type=Several(Real("forced_weights", most=1.0)),
        default=[1.0],
        metavar="W,...",
        help="of tokens without a choice (default: 1)",
    )
    parser.add_argument(
        "--normalise",
        type=_normalisations,
        metavar="WAY,...",
        help=f"what is normalised over: {', '.join(NORMALISATIONS)} (default: what the model was tuned for)",
    )
    parser.add_argument(
        "--temperature",
        type=Real("temperature", least=MIN_TEMPERATURE, most=MAX_TEMPERATURE),
        metavar="T",
        help="divides the logits (default: what the model was tuned for)",
    )
    parser.add_argument(
        "--beams", type=Several(beams()), default=[10], metavar="K,...", help="and longest list (default: 10)"
    )
    parser.add_argument("--seen", choices=("allowed", "excluded", "both"), default="both", help="default: %(default)s")
    parser.add_argument(
        "--k",
        type=Several(Whole("k", least=1, most=MOST_CUTOFF)),
        default=[1, 5, 10, 20],
        metavar="K,...",
        help="cut-offs of the metrics (1,5,10,20)",
    )
    parser.add_argument("--baselines", type=_words, default=[], metavar="NAME,...", help="popular, repeat, ...")
    parser.add_argument("--train", type=Path, metavar="FILE", help="training rows, for baselines that learn")
    parser.add_argument("--reference", metavar="NAME", help="what others are compared with (default: alpha 0)")
    parser.add_argument(
        "--draw",
        choices=("rows", "targets"),
        default="rows",
        help="what the intervals draw: rows, or the titles they ask for with all their rows (default: rows)",
    )
    parser.add_argument("--resamples", type=resamples(), default=2000, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="decode every N-th row, from the I-th on")
    parser.add_argument(
        "--concurrency",
        type=Whole("concurrency", least=1, most=4096),
        metavar="N",
        help="rows at once (default: 2; with vllm 16)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run; goes on with what it holds")
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    add_reading_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, decode what is left, rank baselines, sum up once every shard is done."""
    from igd_core.evaluation.bootstrap import Resampling
    from igd_core.evaluation.job import BaselineChoice, EvaluationJob, ModelChoice
    from igd_core.evaluation.results import ResultSettings
    from igd_core.evaluation.rows import read_rows
    from igd_core.evaluation.shard import RunIdentity, Shard, make_run_folder

    summing = ResultSettings(
        cutoffs=tuple(args.k),
        reference=args.reference,
        resampling=Resampling(resamples=args.resamples, seed=args.seed),
    )
    shard, settings = Shard.parse(args.shard), _settings(args)
    _check_methods(args, settings)
    artifact = load_artifact(args.artifact)
    if "scorer" in args.baselines and artifact.scorer is None:
        raise InputError("baseline 'scorer': the artifact holds no item scorer; `igd build --scorer` makes one")
    reading = reading_of(args, unknown="miss counts them as misses")
    with opened([args.rows]) as (rows_file,):
        rows = read_rows(
            rows_file, artifact, limit=args.limit, seed=args.seed, on_unknown=args.on_unknown_item, reading=reading
        )
    tell(rows.notes)
    if args.draw == "targets":
        groups = rows.target_groups(artifact)
        summing = dataclasses.replace(summing, resampling=dataclasses.replace(summing.resampling, groups=groups))
    identity = RunIdentity(
        artifact=artifact.version,
        rows_sha256=rows.sha256,
        limit=args.limit,
        seed=args.seed,
        on_unknown=args.on_unknown_item,
    )
    model = None
    if args.model is not None:
        model = ModelChoice(options=engine_options(args), adapter=args.adapter, concurrency=args.concurrency)
    out = args.out or _default_out(args, identity, "baselines" if model is None else model.name)
    make_run_folder(out)
    job = EvaluationJob(artifact=artifact, rows=rows, identity=identity, out=out)
    if model is not None:
        job.decode(model, settings, shard)
    if shard.index == 1:
        depth = max(_BASELINE_DEPTH, *args.k)
        job.rank_baselines(
            BaselineChoice(
                names=args.baselines,
                train=args.train,
                seen=_seen(args),
                depth=depth,
                seed=args.seed,
                reading=reading,
            )
        )
    _print(args, job, job.sum_up(summing))
    return 0


def _seen(args: argparse.Namespace) -> list[Seen]:
    return ["allowed", "excluded"] if args.seen == "both" else [args.seen]


def _settings(args: argparse.Namespace) -> list[DecodingSetting]:
    from igd_core.evaluation.methods import decoding_settings

    return decoding_settings(
        alphas=args.alphas,
        length_penalties=args.length_penalties,
        beams=args.beams,
        seen=_seen(args),
        forced_weights=args.forced_weights,
        scored=_scored(args),
    )


def _scored(args: argparse.Namespace) -> list[Normalisation]:
    """What is asked for, or what the model or its adapter was tuned for."""
    tuned = Normalisation()
    if args.model is not None and (args.normalise is None or args.temperature is None):
        from igd_core.engines.embedded.checkpoint import resolve_checkpoint
        from igd_core.engines.tuned_prompt import read_tuned_prompt

        prompt = read_tuned_prompt(args.adapter or resolve_checkpoint(args.model))
        tuned = tuned if prompt is None else prompt.scored
    return [tuned.settled(each, args.temperature) for each in args.normalise or [None]]


def _check_methods(args: argparse.Namespace, settings: list[DecodingSetting]) -> None:
    """Refuse names that would fail only after the decoding."""
    from igd_core.evaluation.baselines import BASELINES, NEED_TRAINING

    for name in args.baselines:
        if name not in BASELINES:
            raise InputError(f"baseline {name!r}: one of {', '.join(BASELINES)}")
        if name in NEED_TRAINING and args.train is None:
            raise InputError(f"baseline {name!r}: needs training rows, --train FILE")
    if args.adapter is not None and args.model is None:
        raise InputError("--adapter needs the model that it adapts: --model DIR")
    if args.model is None and not args.baselines:
        raise InputError("nothing to evaluate: give --model, --baselines, or both")
    names = [*dict.fromkeys(each.name for each in settings if args.model is not None), *args.baselines]
    if args.reference is not None and args.reference not in names:
        raise InputError(f"reference {args.reference!r}: one of {', '.join(names)}")


def _default_out(args: argparse.Namespace, identity: RunIdentity, name: str) -> Path:
    """The same settings find the same folder, so that a run that was cut off goes on."""
    told = [
        str(args.model),
        str(args.adapter),
        args.engine,
        args.dtype,
        args.alphas,
        args.length_penalties,
        args.forced_weights,
        args.beams,
        args.seen,
        *(told for told in (args.normalise, args.temperature) if told is not None),
    ]
    digest = hashlib.sha256(json.dumps([told, identity.header()], sort_keys=True).encode()).hexdigest()
    return igd_home() / "evaluations" / f"{name}-{digest[:12]}"


def _print(args: argparse.Namespace, job: EvaluationJob, summary: Summary) -> None:
    if summary.missing:
        told = {"out": str(job.out), "rows": len(job.rows), "missing": summary.missing}
        print(json.dumps(told) if args.json else f"{job.out}: {summary.missing} rows are left for other shards")
    elif args.json:
        print(json.dumps(summary.content))
    else:
        print(_what_was_measured(summary.content, str(job.out)))
        print(summary.table)


def _what_was_measured(content: dict[str, Any], out: str) -> str:
    repeats = f"in {content['rows_with_target_in_history']:,} the target's title stands in the history"
    alike = f"{content['rows_of_the_commonest_target']:,} ask for the same one"
    lines = [f"{content['rows']:,} rows on {content['catalogue']} ({content['titles']:,} titles); {repeats}, {alike}"]
    if content["rows_with_unknown_target"]:
        lines.append(
            f"{content['rows_with_unknown_target']:,} rows have a target that the catalogue lacks: misses everywhere"
        )
    if shortened := content["histories_shortened"]:
        lines += _what_did_not_fit(shortened)
    if content["cost"]:
        cost = content["cost"]
        lines.append(
            f"decoding: {cost['model_rounds_per_row']:.1f} model calls and {cost['model_tokens_per_row']:.0f} tokens a "
            f"row for {sum(1 for each in content['methods'] if each['name'].startswith('alpha='))} settings"
        )
    lines.append(f"results.json, accuracy.png, slices.png: {out}\n")
    return "\n".join(lines)


def _what_did_not_fit(shortened: dict[str, int]) -> list[str]:
    lines = []
    if shortened["rows"]:
        lines.append(
            f"in {shortened['rows']:,} rows the prompt did not fit the model's context: the oldest "
            f"{shortened['items']:,} items of their histories were left out (baselines saw them)"
        )
    if shortened["rows_answered_by_popularity"]:
        lines.append(
            f"{shortened['rows_answered_by_popularity']:,} rows had no item to ask the model about: popularity answered"
        )
    return lines


def _normalisations(text: str) -> list[str]:
    words = _words(text)
    for word in words:
        if word not in NORMALISATIONS:
            raise InputError(f"normalise: {word!r} is not one of {', '.join(NORMALISATIONS)}")
    if not words:
        raise InputError("normalise: at least one is needed")
    return words


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
