"""`igd evaluate`: ranked lists of a checkpoint under many settings, and of baselines, on the same rows."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.artifact import Artifact, load_artifact
from igd_core.commands.recommend import add_engine_arguments, engine_options
from igd_core.errors import InputError
from igd_core.models import igd_home

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.engines.base import Engine
    from igd_core.engines.open import EngineOptions
    from igd_core.evaluation.journal import Journal
    from igd_core.evaluation.results import ResultSettings
    from igd_core.evaluation.rows import EvaluationRows
    from igd_core.evaluation.run import RunIdentity, Shard, ShardRun
    from igd_core.evaluation.settings import DecodingSetting, Seen

    Sequences: TypeAlias = Sequence[NDArray[np.int32]] | None

_BASELINE_DEPTH = 20
_ADAPTER = "adapter"


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
    parser.add_argument("--limit", type=int, metavar="N", help="a random sample of N rows (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample, the intervals and sasrec (default: 0)")
    parser.add_argument("--on-unknown-item", choices=("error", "miss"), default="error", help="default: %(default)s")
    parser.add_argument("--alphas", type=_floats, default=[0.0, 0.1, 0.2, 0.3, 0.4], metavar="A,...", help="0..0.4")
    parser.add_argument("--length-penalties", type=_floats, default=[0.0, 1.0], metavar="P,...", help="default: 0,1")
    parser.add_argument(
        "--forced-weights", type=_floats, default=[1.0], metavar="W,...", help="of tokens without a choice (default: 1)"
    )
    parser.add_argument("--beams", type=_integers, default=[10], metavar="K,...", help="and longest list (default: 10)")
    parser.add_argument("--seen", choices=("allowed", "excluded", "both"), default="both", help="default: %(default)s")
    parser.add_argument(
        "--k", type=_integers, default=[1, 5, 10, 20], metavar="K,...", help="cut-offs of the metrics (1,5,10,20)"
    )
    parser.add_argument("--baselines", type=_words, default=[], metavar="NAME,...", help="popular, repeat, ...")
    parser.add_argument("--train", type=Path, metavar="FILE", help="training rows, for baselines that learn")
    parser.add_argument("--reference", metavar="NAME", help="what others are compared with (default: alpha 0)")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="decode every N-th row, from the I-th on")
    parser.add_argument("--concurrency", type=int, metavar="N", help="rows at once (default: 2; with vllm 16)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run; goes on with what it holds")
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, decode what is left, rank baselines, sum up once every shard is done."""
    from igd_core.evaluation.bootstrap import Resampling
    from igd_core.evaluation.results import ResultSettings
    from igd_core.evaluation.rows import read_rows
    from igd_core.evaluation.run import RunIdentity, Shard, make_run_folder

    summing = ResultSettings(
        cutoffs=tuple(args.k),
        reference=args.reference,
        resampling=Resampling(resamples=args.resamples, seed=args.seed),
    )
    shard, settings = Shard.parse(args.shard), _settings(args)
    _check_methods(args, settings)
    artifact = load_artifact(args.artifact)
    rows = read_rows(args.rows, artifact, limit=args.limit, seed=args.seed, on_unknown=args.on_unknown_item)
    identity = RunIdentity(
        artifact=artifact.version,
        rows_sha256=rows.sha256,
        limit=args.limit,
        seed=args.seed,
        on_unknown=args.on_unknown_item,
    )
    out = args.out or _default_out(args, identity)
    make_run_folder(out)
    if args.model is not None:
        _decode(args, _Parts(artifact=artifact, rows=rows, identity=identity, out=out), settings, shard)
    if shard.index == 1:
        _rank_baselines(args, _Parts(artifact=artifact, rows=rows, identity=identity, out=out))
    return _sum_up(args, _Parts(artifact=artifact, rows=rows, identity=identity, out=out), summing)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    artifact: Artifact
    rows: EvaluationRows
    identity: RunIdentity
    out: Path


def _seen(args: argparse.Namespace) -> list[Seen]:
    return ["allowed", "excluded"] if args.seen == "both" else [args.seen]


def _settings(args: argparse.Namespace) -> list[DecodingSetting]:
    from igd_core.evaluation.settings import decoding_settings

    return decoding_settings(
        alphas=args.alphas,
        length_penalties=args.length_penalties,
        beams=args.beams,
        seen=_seen(args),
        forced_weights=args.forced_weights,
    )


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


def _default_out(args: argparse.Namespace, identity: RunIdentity) -> Path:
    """The same settings find the same folder, so that a run that was cut off goes on."""
    told = [
        str(args.model),
        str(args.adapter),
        args.engine,
        args.dtype,
        args.alphas,
        args.length_penalties,
        args.beams,
        args.seen,
    ]
    digest = hashlib.sha256(json.dumps([told, identity.header()], sort_keys=True).encode()).hexdigest()
    name = "baselines" if args.model is None else _model_name(args)
    return igd_home() / "evaluations" / f"{name}-{digest[:12]}"


def _model_name(args: argparse.Namespace) -> str:
    return Path(args.model).name + ("" if args.adapter is None else f"+{args.adapter.name}")


def _decode(args: argparse.Namespace, parts: _Parts, settings: list[DecodingSetting], shard: Shard) -> None:
    from igd_core.evaluation.journal import Journal
    from igd_core.evaluation.run import ShardRun, checkpoint_sha256, decoding_header

    header = decoding_header(
        parts.identity,
        settings,
        model=_model_name(args),
        engine=args.engine,
        dtype=args.dtype,
        sha256=checkpoint_sha256(args.model, args.adapter),
    )
    concurrency = args.concurrency or (16 if args.engine == "vllm" else 2)
    with Journal(parts.out / shard.file_name, header) as journal:
        shard_run = ShardRun(journal, parts.rows, shard, concurrency=concurrency)
        if shard_run.left:
            options = engine_options(args)
            if args.adapter is not None:
                options = dataclasses.replace(options, adapters={_ADAPTER: args.adapter})
            opened = _open(options, parts.artifact)
            asyncio.run(_run(shard_run, opened, parts.artifact, settings, None if args.adapter is None else _ADAPTER))


def _open(options: EngineOptions, artifact: Artifact) -> Engine:
    from igd_core.engines.open import open_engine
    from igd_core.evaluation.shared_session import widest_node

    if options.engine == "vllm":
        # All children of a node are asked for at once, and vLLM must be told at its start how many that may be.
        beams = max(int(options.vllm.get("max_beams", 1)), -(-widest_node(artifact) // 2))
        options = dataclasses.replace(options, vllm={**options.vllm, "max_beams": beams})
    return open_engine(options).engine


async def _run(
    shard_run: ShardRun, engine: Engine, artifact: Artifact, settings: list[DecodingSetting], adapter: str | None
) -> None:
    try:
        await engine.load(artifact)
        await shard_run.decode(engine, artifact, settings, adapter=adapter)
    finally:
        await engine.close()


def _rank_baselines(args: argparse.Namespace, parts: _Parts) -> None:
    from igd_core.data.readers import read_interactions
    from igd_core.evaluation.journal import Journal
    from igd_core.evaluation.sequences import training_sequences

    sequences = train_sha256 = None
    if args.train is not None and args.baselines:
        catalogue = parts.artifact.catalogue
        read = read_interactions(
            args.train, catalogue, on_unknown="error" if args.on_unknown_item == "error" else "drop"
        )
        sequences = training_sequences(read.data)
        train_sha256 = hashlib.sha256(args.train.read_bytes()).hexdigest()
    for name in args.baselines:
        depth = max(_BASELINE_DEPTH, *args.k)
        methods = [{"name": name, "known_as": "", "seen": seen, "depth": depth} for seen in _seen(args)]
        header = parts.identity.header(kind="baseline", train_sha256=train_sha256, methods=methods)
        with Journal(parts.out / f"baseline-{name}.jsonl", header) as journal:
            if len(journal.records) < len(parts.rows):
                _rank_baseline(name, args, parts, journal, sequences)


def _rank_baseline(name: str, args: argparse.Namespace, parts: _Parts, journal: Journal, sequences: Sequences) -> None:
    from igd_core.evaluation.baselines import make_ranker, ranked_lists

    ranker = make_ranker(name, parts.artifact, sequences, seed=args.seed, scratch=parts.out)
    depth = max(_BASELINE_DEPTH, *args.k)
    by_seen = [
        list(ranked_lists(ranker, parts.rows.histories, parts.artifact, depth=depth, seen=seen)) for seen in _seen(args)
    ]
    done = {int(record["row"]) for record in journal.records}
    records = (
        {"row": row, "lists": lists if parts.rows.target[row] >= 0 else None}
        for row, lists in enumerate(zip(*by_seen, strict=True))
    )
    journal.append(*(record for record in records if record["row"] not in done))


def _sum_up(args: argparse.Namespace, parts: _Parts, summing: ResultSettings) -> int:
    from igd_core.evaluation.compare import RANKS_FILE, MethodRanks, to_ranks_json
    from igd_core.evaluation.plots import draw_accuracy, draw_slices
    from igd_core.evaluation.report import collect, report, table
    from igd_core.evaluation.results import summarise, title_ranks
    from igd_core.whole_files import write_json

    collected = collect(parts.out, parts.identity.header(), rows=len(parts.rows))
    if collected.missing:
        told = {"out": str(parts.out), "rows": len(parts.rows), "missing": collected.missing}
        print(json.dumps(told) if args.json else f"{parts.out}: {collected.missing} rows are left for other shards")
        return 0
    results = summarise(collected.methods, parts.rows, parts.artifact, summing)
    content = report(collected, results, rows=parts.rows, artifact=parts.artifact, settings=summing)
    write_json(parts.out / "results.json", content)
    ranks = [
        MethodRanks(
            name=lists.method.name, seen=lists.method.seen, known_as=lists.known_as, depth=lists.depth, titles=titles
        )
        for lists, titles in zip(
            collected.methods, title_ranks(collected.methods, parts.rows, parts.artifact), strict=True
        )
    ]
    write_json(parts.out / RANKS_FILE, to_ranks_json(parts.identity.header(), ranks), dense=True)
    shown = summing.shown_cutoff(result.depth for result in results)
    draw_accuracy(results, shown, parts.out / "accuracy.png")
    draw_slices(results, shown, parts.out / "slices.png")
    if args.json:
        print(json.dumps(content))
        return 0
    print(_what_was_measured(content, str(parts.out)))
    print(table(results, summing))
    return 0


def _what_was_measured(content: dict[str, Any], out: str) -> str:
    repeats = f"in {content['rows_with_target_in_history']:,} the target's title stands in the history"
    lines = [f"{content['rows']:,} rows on {content['catalogue']} ({content['titles']:,} titles); {repeats}"]
    if content["rows_with_unknown_target"]:
        lines.append(
            f"{content['rows_with_unknown_target']:,} rows have a target that the catalogue lacks: misses everywhere"
        )
    if content["cost"]:
        cost = content["cost"]
        lines.append(
            f"decoding: {cost['model_rounds_per_row']:.1f} model calls and {cost['model_tokens_per_row']:.0f} tokens a "
            f"row for {sum(1 for each in content['methods'] if each['name'].startswith('alpha='))} settings"
        )
    lines.append(f"results.json, accuracy.png, slices.png: {out}\n")
    return "\n".join(lines)


def _floats(text: str) -> list[float]:
    return [float(part) for part in _words(text)]


def _integers(text: str) -> list[int]:
    return [int(part) for part in _words(text)]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
