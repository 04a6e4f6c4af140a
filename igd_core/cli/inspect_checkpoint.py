"""`igd inspect --checkpoint`: what models make of tokens with and without information gain, on held-out rows."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.artifact import Artifact, load_artifact
from igd_core.cli.numbers import Whole, alpha, beams, seed
from igd_core.cli.reading import add_reading_arguments, reading_of, tell
from igd_core.datasets.sources import opened
from igd_core.errors import InputError
from igd_core.search.normalisation import NORMALISATIONS, Normalisation

if TYPE_CHECKING:
    import argparse

    from igd_core.evaluation.bootstrap import Interval
    from igd_core.evaluation.inspection_tokens import AlphaEffect, TokenBias
    from igd_core.evaluation.rows import EvaluationRows


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run_checkpoints` reads."""
    group = parser.add_argument_group("checkpoints", "how models treat zero-IG tokens; needs --rows")
    group.add_argument("--checkpoint", action="append", default=[], metavar="DIR", help="repeatable: before, after")
    group.add_argument("--rows", type=Path, metavar="FILE", help="history_item_ids and item_id (the target) a row")
    group.add_argument(
        "--limit", type=Whole("limit", least=1), default=200, metavar="N", help="random rows (default: %(default)s)"
    )
    group.add_argument("--seed", type=seed(), default=0)
    group.add_argument("--alpha", type=alpha(), help="compared with 0 (default: the artifact's)")
    group.add_argument("--beams", type=beams(), default=10)
    group.add_argument(
        "--normalise",
        choices=NORMALISATIONS,
        help="over what scores and losses are normalised (default: what each checkpoint was tuned for)",
    )
    group.add_argument("--device", default="auto")
    group.add_argument("--dtype", default="auto")
    add_reading_arguments(parser)


def run_checkpoints(args: argparse.Namespace) -> int:
    """Score targets and decode with each checkpoint, print, draw."""
    from igd_core.evaluation.methods import decoding_settings
    from igd_core.evaluation.report import without_nan
    from igd_core.evaluation.rows import read_rows

    if args.rows is None:
        raise InputError("--checkpoint needs held-out rows: --rows FILE")
    names = [Path(each).name for each in args.checkpoint]
    if len(set(names)) < len(names):
        names = [str(each) for each in args.checkpoint]
    if len(set(names)) < len(names):
        raise InputError(f"--checkpoint {args.checkpoint[-1]}: given twice")
    artifact = load_artifact(args.artifact)
    alpha = artifact.manifest.alpha if args.alpha is None else args.alpha
    decoding_settings(
        alphas=[alpha], length_penalties=[0.0], beams=[args.beams], seen=["allowed"]
    )  # refuses bad values
    reading = reading_of(args, unknown="miss counts them as misses")
    with opened([args.rows]) as (rows_file,):
        rows = read_rows(rows_file, artifact, limit=args.limit, seed=args.seed, on_unknown="miss", reading=reading)
    tell(rows.notes)
    biases: dict[str, TokenBias] = {}
    effects: dict[str, AlphaEffect] = {}
    shortened: dict[str, int] = {}
    for name, directory in zip(names, args.checkpoint, strict=True):
        biases[name], effects[name], shortened[name] = _inspect(args, artifact, rows, directory, alpha)
    if args.plot is not None:
        from igd_core.evaluation.inspection_tokens_plot import draw_token_bias

        draw_token_bias(biases, effects, args.plot)
    if args.json:
        checkpoints = {
            name: {
                "tokens": without_nan(asdict(biases[name])),
                "alpha": asdict(effects[name]),
                "histories_shortened": shortened[name],
            }
            for name in names
        }
        print(json.dumps({"artifact": artifact.version, "rows": len(rows), "checkpoints": checkpoints}))
    else:
        _print(biases, effects)
        for name, count in shortened.items():
            if count:
                print(f"{name}: {count:,} of {len(rows):,} prompts did not fit its context and lost their oldest items")
    return 0


def _inspect(
    args: argparse.Namespace, artifact: Artifact, rows: EvaluationRows, directory: str, alpha: float
) -> tuple[TokenBias, AlphaEffect, int]:
    from igd_core.engines.embedded.checkpoint import context_tokens, load_checkpoint, resolve_checkpoint
    from igd_core.engines.embedded.engine import TreeEngine
    from igd_core.engines.tuned_prompt import read_tuned_prompt
    from igd_core.evaluation.bootstrap import Resampling
    from igd_core.evaluation.inspection_tokens import alpha_effect, score_targets, token_bias
    from igd_core.evaluation.methods import DecodingSetting

    prompt = read_tuned_prompt(resolve_checkpoint(directory))
    scored = (Normalisation() if prompt is None else prompt.scored).settled(args.normalise, None)
    setting = DecodingSetting(alpha=alpha, length_penalty=0.0, beams=args.beams, seen="allowed", scored=scored)
    checkpoint = load_checkpoint(directory, device=args.device, dtype=args.dtype)
    resampling = Resampling(seed=args.seed)

    async def both() -> tuple[TokenBias, AlphaEffect]:
        engine = TreeEngine(checkpoint)
        try:
            await engine.load(artifact)  # refuses another tokenizer, before anything is scored
            bias = token_bias(score_targets(checkpoint, artifact, rows, scored), resampling)
            effect = await alpha_effect(engine, artifact, rows, setting, resampling)
        finally:
            await engine.close()
        return bias, effect

    context = context_tokens(checkpoint.model.config)
    return *asyncio.run(both()), sum(artifact.num_left_out(history, context) > 0 for history in rows.histories)


def _print(biases: dict[str, TokenBias], effects: dict[str, AlphaEffect]) -> None:
    width = max(24, *(len(name) + 2 for name in biases))
    print(" " * 36 + "".join(f"{name:>{width}}" for name in biases))
    effect = next(iter(effects.values()))
    lines: dict[str, list[str]] = {
        "normalised over": [bias.scored.normalise for bias in biases.values()],
        "at temperature": [f"{bias.scored.temperature:g}" for bias in biases.values()],
        "target tokens in the loss": [f"{bias.tokens:,}" for bias in biases.values()],
        "without a sibling, so not in it": [f"{bias.left_out:,}" for bias in biases.values()],
        "zero-IG tokens": [_share(bias.zero_share) for bias in biases.values()],
        "their share of the loss": [_share(bias.zero_loss_share) for bias in biases.values()],
        "mean log-prob, zero IG (nats)": [_nats(bias.zero_logprob) for bias in biases.values()],
        "the same, EOS left out": [_nats(bias.zero_logprob_before_end) for bias in biases.values()],
        "mean log-prob, positive IG (nats)": [_nats(bias.positive_logprob) for bias in biases.values()],
        f"alpha {effect.alpha:g} against 0, rows": [f"{each.rows:,}" for each in effects.values()],
        "lists left as they were": [f"{each.same_list / each.rows:.1%}" for each in effects.values()],
        f"items of {effect.depth} in both lists": [f"{each.shared:.1%}" for each in effects.values()],
        "targets that entered / left": [f"{each.entered} / {each.left}" for each in effects.values()],
        "targets that went up / down": [f"{each.up} / {each.down}" for each in effects.values()],
        f"NDCG@{effect.depth} at alpha 0": [_figure(each.ndcg_plain) for each in effects.values()],
        f"NDCG@{effect.depth} at alpha {effect.alpha:g}": [_figure(each.ndcg_weighted) for each in effects.values()],
        "difference": [_figure(each.ndcg_difference, sign="+") for each in effects.values()],
    }
    for name, cells in lines.items():
        print(f"{name:<36}" + "".join(f"{cell:>{width}}" for cell in cells))
    print("\nin brackets: 95 % intervals, by resampled rows")
    if len({bias.scored for bias in biases.values()}) > 1:
        print("losses that are normalised otherwise are not compared: --normalise scores every checkpoint the same way")


def _share(found: Interval) -> str:
    return f"{found.value:.1%} ({found.low:.1%} {found.high:.1%})"


def _nats(found: Interval) -> str:
    if math.isnan(found.value):
        return "no such token"
    return f"{found.value:.3f} ({found.low:.3f} {found.high:.3f})"


def _figure(found: Interval, sign: str = "") -> str:
    return f"{found.value:{sign}.4f} ({found.low:{sign}.4f} {found.high:{sign}.4f})"
