"""`igd evaluate`: ranked lists of a checkpoint under many settings, and of baselines, on the same rows."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from igd_core.checked_settings import Count, Directory, File, Flag, Seed, Several, Share, Words
from igd_core.cli.config_files import add_config_flags, print_config
from igd_core.cli.engine import Concurrency, EngineFlags
from igd_core.cli.flags import add_flags, read
from igd_core.cli.intervals import IntervalFlags
from igd_core.cli.reading import ReadingFlags, add_reading_arguments, reading_of, tell
from igd_core.errors import InputError
from igd_core.evaluation.sasrec_settings import SASRecSettings
from igd_core.limits import Beams, LengthPenalty, Temperature
from igd_core.models import igd_home
from igd_core.scorers.gamma_file import ChosenGamma, read_gamma
from igd_core.scorers.options import MIXTURES, Mixture
from igd_core.search.normalisation import NORMALISATIONS, Normalisation, Normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.evaluation.job import EvaluationJob, Summary
    from igd_core.evaluation.methods import DecodingSetting, Seen
    from igd_core.evaluation.shard import RunIdentity

_BASELINE_DEPTH = 20
CutOff = Annotated[int, Field(ge=1, le=10_000)]
"""Of a list: each row of an evaluation takes room for it."""


class EvaluateFlags(EngineFlags, IntervalFlags):
    """What is evaluated, on what, and how it is summed up."""

    model: Annotated[str, Flag(metavar="DIR")] | None = Field(
        default=None, description="checkpoint; without one, baselines alone are evaluated"
    )
    artifact: Directory = Field(description="what `igd build` wrote")
    rows: File = Field(description="history_item_ids and item_id (the target) a row")
    limit: Count | None = Field(default=None, description="a random sample of N rows (default: all)")
    seed: Seed = Field(default=0, description="of the sample, the intervals, bpr and sasrec")
    on_unknown_item: Literal["error", "miss"] = Field(
        default="error", description="a row whose target the catalogue lacks refuses the file, or is a miss"
    )
    alphas: Several[Share] = Field(default=(0.0, 0.1, 0.2, 0.3, 0.4), description="weights of the rebalancing")
    length_penalties: Several[LengthPenalty] = Field(default=(0.0, 1.0), description="exponents of a path's length")
    forced_weights: Several[Share] = Field(default=(1.0,), description="of tokens without a choice")
    gammas: Several[Share] | None = Field(
        default=None,
        description="weights of the artifact's item scorer in the search (default: 0, and what the artifact serves)",
    )
    gamma_from: File | None = Field(
        default=None,
        description="gamma by the length of the history, as one more way: the gamma.json of an evaluation of "
        "validation rows",
    )
    mixtures: Annotated[Words[Mixture], Field(min_length=1), Flag(metavar="WAY,...")] = Field(
        default=("log-linear",), description=f"how it is mixed with the model: {', '.join(MIXTURES)}"
    )
    normalise: Annotated[Words[Normalise], Field(min_length=1), Flag(metavar="WAY,...")] | None = Field(
        default=None,
        description=f"what is normalised over: {', '.join(NORMALISATIONS)} (default: what the model was "
        "tuned for, and children where gamma is above 0)",
    )
    temperature: Temperature | None = Field(
        default=None, description="divides the logits (default: what the model was tuned for)"
    )
    beams: Several[Beams] | None = Field(
        default=None, description="widths of the search, and longest list (default: the artifact's)"
    )
    seen: Literal["allowed", "excluded", "both"] = Field(
        default="both", description="whether items of the history may come back"
    )
    k: Several[CutOff] = Field(default=(1, 5, 10, 20), description="cut-offs of the metrics")
    baselines: Words[str] = Field(default=(), description="popular, repeat, ...")
    train: File | None = Field(default=None, description="training rows, for baselines that learn")
    sasrec: SASRecSettings = Field(default=SASRecSettings(), description="of the baseline sasrec")
    reference: Annotated[str, Flag(metavar="NAME")] | None = Field(
        default=None, description="what others are compared with (default: alpha 0)"
    )
    shard: Annotated[str, Flag(metavar="I/N")] = Field(
        default="1/1", description="decode every N-th row, from the I-th on"
    )
    concurrency: Concurrency | None = Field(default=None, description="rows at once (default: 2; with vllm 16)")
    out: Directory | None = Field(default=None, description="folder of the run; goes on with what it holds")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd evaluate`."""
    parser = subparsers.add_parser("evaluate", help="HR and NDCG of a checkpoint and of baselines on held-out rows")
    add_flags(parser, EvaluateFlags)
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    add_reading_arguments(parser)
    add_config_flags(parser, EvaluateFlags, ReadingFlags)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the settings, or evaluate."""
    asked = read(args, EvaluateFlags)
    if args.print_config:
        print_config(asked, read(args, ReadingFlags))
        return 0
    return _evaluate(args, asked)


def _evaluate(args: argparse.Namespace, asked: EvaluateFlags) -> int:
    """Check everything, decode what is left, rank baselines, sum up once every shard is done."""
    from igd_core.artifact import load_artifact
    from igd_core.datasets.sources import opened
    from igd_core.evaluation.bootstrap import Resampling
    from igd_core.evaluation.job import BaselineChoice, EvaluationJob, ModelChoice
    from igd_core.evaluation.report import untuned_before
    from igd_core.evaluation.results import ResultSettings
    from igd_core.evaluation.rows import read_rows
    from igd_core.evaluation.shard import RunIdentity, Shard, make_run_folder

    summing = ResultSettings(
        cutoffs=tuple(asked.k),
        reference=asked.reference,
        resampling=Resampling(resamples=asked.resamples, seed=asked.seed),
    )
    chosen = None if asked.gamma_from is None else read_gamma(asked.gamma_from)
    shard = Shard.parse(asked.shard)
    _check_methods(asked)
    artifact = load_artifact(asked.artifact)
    beams = asked.beams or (artifact.manifest.beams,)
    scored = _scored(asked)
    if asked.gammas is None and chosen is None:
        chosen = _served(artifact, asked)
    settings = _settings(asked, beams, chosen, scored)
    _check_reference(asked, settings)
    if "scorer" in asked.baselines and artifact.scorer is None:
        raise InputError("baseline 'scorer': the artifact holds no item scorer; `igd build --scorer` makes one")
    if (any(asked.gammas or ()) or chosen) and artifact.scorer is None:
        name = "gammas" if any(asked.gammas or ()) else "gamma_from"
        raise InputError(f"{name}: the artifact holds no item scorer; `igd build --scorer` makes one")
    if chosen is not None and artifact.manifest.scorer is not None:
        chosen.require_for(artifact.manifest.scorer.name, where=f"gamma_from: {asked.gamma_from}")
    reading = reading_of(args, unknown="miss counts them as misses")
    with opened([asked.rows]) as (rows_file,):
        rows = read_rows(
            rows_file, artifact, limit=asked.limit, seed=asked.seed, on_unknown=asked.on_unknown_item, reading=reading
        )
    tell(rows.notes)
    if asked.draw == "targets":
        groups = rows.target_groups(artifact)
        summing = dataclasses.replace(summing, resampling=dataclasses.replace(summing.resampling, groups=groups))
    identity = RunIdentity(
        artifact=artifact.version,
        rows_sha256=rows.sha256,
        limit=asked.limit,
        seed=asked.seed,
        on_unknown=asked.on_unknown_item,
        has_unknown=rows.unknown_in_file > 0,
    )
    model = None
    if asked.model is not None:
        model = ModelChoice(options=asked.engine_options(), adapter=asked.adapter, concurrency=asked.concurrency)
    out = asked.out or _default_out(asked, beams, chosen, identity, "baselines" if model is None else model.name)
    make_run_folder(out)
    untuned = untuned_before(out) if model is None else _untuned(asked, artifact)
    job = EvaluationJob(artifact=artifact, rows=rows, identity=identity, out=out)
    if model is not None:
        job.decode(model, settings, shard)
    if shard.index == 1:
        depth = max(_BASELINE_DEPTH, *asked.k)
        job.rank_baselines(
            BaselineChoice(
                names=asked.baselines,
                train=asked.train,
                seen=_seen(asked),
                depth=depth,
                seed=asked.seed,
                reading=reading,
                sasrec=asked.sasrec,
            )
        )
    several = asked.gammas is not None and len(asked.gammas) > 1
    _print(job, job.sum_up(summing, chooses_gamma=several, untuned=untuned), as_json=args.json)
    return 0


def _seen(asked: EvaluateFlags) -> list[Seen]:
    return ["allowed", "excluded"] if asked.seen == "both" else [asked.seen]


def _served(artifact: Artifact, asked: EvaluateFlags) -> ChosenGamma | None:
    """How the artifact mixes its scorer into the searches of requests that name no gamma; None where it does not."""
    scorer = artifact.manifest.scorer
    if scorer is None or scorer.gamma == 0:
        return None
    over_vocabulary = asked.normalise is not None and "children" not in asked.normalise
    mixture = "log-linear" if over_vocabulary else scorer.mixture  # as requests over the vocabulary are answered
    return ChosenGamma(gamma=scorer.gamma, mixture=mixture, scorer=scorer.name)


def _settings(
    asked: EvaluateFlags, beams: Sequence[int], chosen: ChosenGamma | None, scored: Sequence[Normalisation]
) -> list[DecodingSetting]:
    """What is decoded; mixed with the scorer over children unless ``--normalise`` says otherwise, as it is served."""
    from igd_core.evaluation.methods import decoding_settings, with_chosen, with_mixings

    def over(ways: Sequence[Normalisation]) -> list[DecodingSetting]:
        return decoding_settings(
            alphas=asked.alphas,
            length_penalties=asked.length_penalties,
            beams=beams,
            seen=_seen(asked),
            forced_weights=asked.forced_weights,
            scored=ways,
        )

    gammas = (0.0,) if asked.gammas is None else asked.gammas
    if "linear" in asked.mixtures and not any(gammas):
        raise InputError("mixtures: linear needs --gammas; without them what the artifact serves is mixed as it says")
    mixed_over, alone = scored, None
    if asked.normalise is None:
        alone = scored[0]
        mixed_over = [alone.settled("children", asked.temperature)]
    settings = with_mixings(over(scored), gammas=[0.0], mixtures=["log-linear"]) if 0.0 in gammas else []
    if any(gammas):
        settings += with_mixings(over(mixed_over), gammas=gammas, mixtures=asked.mixtures)
    if chosen is not None:
        settings += [dataclasses.replace(each, alone=alone) for each in with_chosen(over(mixed_over), chosen)]
    return list(dict.fromkeys(settings))


def _scored(asked: EvaluateFlags) -> list[Normalisation]:
    """What is asked for, or what the model or its adapter was tuned for."""
    tuned = Normalisation()
    if asked.model is not None and (asked.normalise is None or asked.temperature is None):
        from igd_core.engines.embedded.checkpoint import resolve_checkpoint
        from igd_core.engines.tuned_prompt import read_tuned_prompt

        prompt = read_tuned_prompt(asked.adapter or resolve_checkpoint(asked.model))
        tuned = tuned if prompt is None else prompt.scored
    return [tuned.settled(each, asked.temperature) for each in asked.normalise or [None]]


def _untuned(asked: EvaluateFlags, artifact: Artifact) -> str | None:
    """Why the model is not tuned for the catalogue, which is also printed; None where it is, or does not say."""
    from igd_core.engines.embedded.checkpoint import resolve_checkpoint
    from igd_core.engines.tuned_prompt import read_tuned_prompt, why_untuned

    untuned = why_untuned(read_tuned_prompt(asked.adapter or resolve_checkpoint(str(asked.model))), artifact)
    if untuned is not None:
        print(f"warning: {untuned}; its lists say little", file=sys.stderr)
    return untuned


def _check_methods(asked: EvaluateFlags) -> None:
    """Refuse what would fail only after the decoding."""
    from igd_core.evaluation.baselines import BASELINES, NEED_TRAINING, require_library

    for name in asked.baselines:
        if name not in BASELINES:
            raise InputError(f"baseline {name!r}: one of {', '.join(BASELINES)}")
        if name in NEED_TRAINING and asked.train is None:
            raise InputError(f"baseline {name!r}: needs training rows, --train FILE")
        require_library(name)
    if asked.adapter is not None and asked.model is None:
        raise InputError("--adapter needs the model that it adapts: --model DIR")
    if asked.precision == "auto":
        raise InputError(
            "precision 'auto': is decided by each machine, and rows of one result must not mix: fp32 or bf16"
        )
    if asked.model is None and not asked.baselines:
        raise InputError("nothing to evaluate: give --model, --baselines, or both")


def _check_reference(asked: EvaluateFlags, settings: list[DecodingSetting]) -> None:
    names = [*dict.fromkeys(each.name for each in settings if asked.model is not None), *asked.baselines]
    if asked.reference is not None and asked.reference not in names:
        raise InputError(f"reference {asked.reference!r}: one of {', '.join(names)}")


def _default_out(
    asked: EvaluateFlags, beams: Sequence[int], chosen: ChosenGamma | None, identity: RunIdentity, name: str
) -> Path:
    """The same settings find the same folder, so that a run that was cut off goes on."""
    told = [
        str(asked.model),
        str(asked.adapter),
        asked.engine,
        asked.dtype,
        asked.alphas,
        asked.length_penalties,
        asked.forced_weights,
        beams,
        asked.seen,
        *(told for told in (asked.normalise, asked.temperature) if told is not None),
        *([] if asked.precision == "fp32" else [asked.precision]),
        *([asked.gammas, asked.mixtures] if any(asked.gammas or ()) else []),
        *([] if chosen is None else [chosen.to_json()]),
        *(["mixed over children"] if asked.normalise is None and (chosen or any(asked.gammas or ())) else []),
    ]
    digest = hashlib.sha256(json.dumps([told, identity.header()], sort_keys=True).encode()).hexdigest()
    return igd_home() / "evaluations" / f"{name}-{digest[:12]}"


def _print(job: EvaluationJob, summary: Summary, *, as_json: bool) -> None:
    if summary.missing:
        told = {"out": str(job.out), "rows": len(job.rows), "missing": summary.missing}
        print(json.dumps(told) if as_json else f"{job.out}: {summary.missing} rows are left for other shards")
    elif as_json:
        print(json.dumps(summary.content))
    else:
        print(_what_was_measured(summary.content, str(job.out)))
        print(summary.table)
        if summary.gamma is not None:
            print(f"\n{summary.gamma.told()}")


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
