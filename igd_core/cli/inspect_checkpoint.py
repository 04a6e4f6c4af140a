"""`igd inspect --checkpoint`: what models make of tokens with and without information gain, on held-out rows."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Count, File, Flag, Listed, Seed, Share
from igd_core.cli.flags import add_flags
from igd_core.cli.reading import add_reading_arguments, reading_of, tell
from igd_core.errors import InputError
from igd_core.limits import Beams
from igd_core.search.normalisation import Normalisation, Normalise

if TYPE_CHECKING:
    import argparse

    from igd_core.artifact import Artifact
    from igd_core.evaluation.bootstrap import Interval
    from igd_core.evaluation.inspection_tokens import AlphaEffect, TokenBias
    from igd_core.evaluation.rows import EvaluationRows

_PAPERS_ALPHA = 0.2


class CheckpointFlags(CheckedSettings):
    """Which checkpoints, and on what."""

    checkpoint: Annotated[Listed[str], Flag(metavar="DIR", repeated=True)] = Field(
        default=(), description="repeatable: before, after"
    )
    rows: File | None = Field(default=None, description="history_item_ids and item_id (the target) a row")
    limit: Count = Field(default=200, description="random rows")
    seed: Seed = Field(default=0, description="of the sample and the intervals")
    alpha: Share | None = Field(
        default=None, description="compared with 0 (default: the artifact's, or the paper's 0.2 where that is 0)"
    )
    beams: Beams | None = Field(default=None, description="width of the search (default: the artifact's)")
    normalise: Normalise | None = Field(
        default=None,
        description="over what scores and losses are normalised (default: what each checkpoint was tuned for)",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16, float16")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and those of reading rows."""
    group = parser.add_argument_group("checkpoints", "how models treat zero-IG tokens; needs --rows")
    add_flags(group, CheckpointFlags)
    add_reading_arguments(parser)


def run_checkpoints(args: argparse.Namespace, folder: Path, asked: CheckpointFlags, plot: Path | None) -> int:
    """Score targets and decode with each checkpoint of the artifact in ``folder``, print, draw."""
    from igd_core.artifact import load_artifact
    from igd_core.datasets.sources import opened
    from igd_core.evaluation.report import without_nan
    from igd_core.evaluation.rows import read_rows

    if asked.rows is None:
        raise InputError("--checkpoint needs held-out rows: --rows FILE")
    names = [Path(each).name for each in asked.checkpoint]
    if len(set(names)) < len(names):
        names = [str(each) for each in asked.checkpoint]
    if len(set(names)) < len(names):
        raise InputError(f"--checkpoint {asked.checkpoint[-1]}: given twice")
    artifact = load_artifact(folder)
    reading = reading_of(args, unknown="miss counts them as misses")
    with opened([asked.rows]) as (rows_file,):
        rows = read_rows(rows_file, artifact, limit=asked.limit, seed=asked.seed, on_unknown="miss", reading=reading)
    tell(rows.notes)
    biases: dict[str, TokenBias] = {}
    effects: dict[str, AlphaEffect] = {}
    shortened: dict[str, int] = {}
    for name, directory in zip(names, asked.checkpoint, strict=True):
        biases[name], effects[name], shortened[name] = _inspect(asked, artifact, rows, directory)
    if plot is not None:
        from igd_core.evaluation.inspection_tokens_plot import draw_token_bias

        draw_token_bias(biases, effects, plot)
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
    asked: CheckpointFlags, artifact: Artifact, rows: EvaluationRows, directory: str
) -> tuple[TokenBias, AlphaEffect, int]:
    from igd_core.engines.embedded.checkpoint import context_tokens, load_checkpoint, resolve_checkpoint
    from igd_core.engines.embedded.engine import TreeEngine
    from igd_core.engines.tuned_prompt import read_tuned_prompt
    from igd_core.evaluation.bootstrap import Resampling
    from igd_core.evaluation.inspection_tokens import alpha_effect, score_targets, token_bias
    from igd_core.evaluation.methods import DecodingSetting

    prompt = read_tuned_prompt(resolve_checkpoint(directory))
    scored = (Normalisation() if prompt is None else prompt.scored).settled(asked.normalise, None)
    alpha = (artifact.manifest.alpha or _PAPERS_ALPHA) if asked.alpha is None else asked.alpha
    beams = artifact.manifest.beams if asked.beams is None else asked.beams
    setting = DecodingSetting(alpha=alpha, length_penalty=0.0, beams=beams, seen="allowed", scored=scored)
    checkpoint = load_checkpoint(directory, device=asked.device, dtype=asked.dtype)
    resampling = Resampling(seed=asked.seed)

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
