"""`igd tune`: rows, an artifact and a checkpoint to a tuned model or adapter; and what goes with it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from igd_core.cli.numbers import Real, Whole, seed
from igd_core.cli.reading import add_reading_arguments, reading_of, tell
from igd_core.datasets.sources import opened
from igd_core.errors import InputError
from igd_core.extras import require_modules
from igd_core.models import smollm2_dir
from igd_core.tuning.inputs import RunInputs
from igd_core.tuning.recipes import Recipe, prepare_recipe, read_config, read_recipe, recipe_names
from igd_core.tuning.run import tune
from igd_core.tuning.settings import PRECISIONS, SCHEDULES, LoraSettings, TuningSettings
from igd_core.tuning.weights import WEIGHTINGS

_WHOLE_NUMBERS = {
    "epochs": "passes over the rows, at most",
    "batch": "rows of an optimiser step",
    "micro_batches": "forward passes a step is split into; more take less memory",
    "warmup_steps": "steps until the learning rate is reached",
    "patience": "epochs without a better validation loss before the run ends",
    "max_tokens": "longest prompt with its response",
    "pack_tokens": "most tokens of rows computed together",
    "pack_rows": "most rows computed together",
    "rows_per_user": "of each user, the newest N rows alone (0: all)",
    "train_rows": "use this many, drawn by the seed",
    "valid_rows": "use this many, drawn by the seed",
    "save_every": "steps between checkpoints",
    "seed": "of weights, dropout and order",
}
_NUMBERS = {
    "beta": "weight of a zero-IG token, above 0 and at most 1 (1: plain supervised tuning)",
    "lr": "learning rate",
    "weight_decay": "of AdamW",
    "max_grad_norm": "0 leaves gradients as they are",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd tune`."""
    parser = subparsers.add_parser("tune", help="tune a checkpoint or an adapter with the IGD loss")
    parts = parser.add_subparsers(metavar="merge|tokenizer")
    smaller = parts.add_parser("tokenizer", help="cut a tokenizer down to a catalogue, for models from scratch")
    smaller.add_argument("--artifact", type=Path, required=True, metavar="DIR", help="built with the whole tokenizer")
    smaller.add_argument("--tokenizer", type=Path, metavar="DIR", help="the whole tokenizer (default: SmolLM2's)")
    smaller.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder; then `igd build` with it")
    smaller.set_defaults(run=_tokenizer)
    merge = parts.add_parser("merge", help="add a run's adapter into its checkpoint")
    merge.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="DIR", help="folder of the run")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder of the merged checkpoint")
    merge.add_argument("--model", metavar="DIR", help="the adapted checkpoint (default: where the record says)")
    merge.add_argument("--json", action="store_true")
    merge.set_defaults(run=_merge)

    parser.add_argument("--recipe", metavar="NAME|FILE", help=f"settings to start from: {', '.join(recipe_names())}")
    parser.add_argument("--artifact", type=Path, metavar="DIR")
    parser.add_argument("--model", metavar="DIR", help="checkpoint to start from: a directory or a hub id")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="adapter to go on from, instead of a new one")
    parser.add_argument("--train", type=Path, metavar="FILE", help="history rows")
    parser.add_argument("--valid", type=Path, metavar="FILE", help="history rows to stop by")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--reviews", type=Path, metavar="FILE", help="raw file of an Amazon recipe (json.gz)")
    parser.add_argument("--metadata", type=Path, metavar="FILE", help="raw file of an Amazon recipe (json.gz)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--dry-run", action="store_true", help="everything but the backbone: one step of a tiny random model"
    )
    parser.add_argument(
        "--from-config", type=Path, metavar="FILE", help="shape of a small Llama from scratch (json, yaml)"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="of a model from scratch (default: SmolLM2's), or what `igd build --extend-tokenizer` wrote for --model",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--on-unknown-item", choices=("error", "drop"), default="error", help="default: %(default)s")
    defaults = TuningSettings()
    ranges = {name: Real(name) for name in _NUMBERS} | {name: Whole(name) for name in _WHOLE_NUMBERS} | {"seed": seed()}
    for name, text in {**_NUMBERS, **_WHOLE_NUMBERS}.items():
        shown = f"{text} (default: {getattr(defaults, name):g})"
        parser.add_argument(_flag(name), type=ranges[name], metavar="N", help=shown)
    parser.add_argument(
        "--weighting", choices=WEIGHTINGS, help=f"which tokens count less (default: {defaults.weighting})"
    )
    parser.add_argument("--schedule", choices=SCHEDULES, help=f"default: {defaults.schedule}")
    parser.add_argument("--precision", choices=PRECISIONS, help=f"default: {defaults.precision}")
    parser.add_argument(
        "--share-prompts", action=argparse.BooleanOptionalAction, help="compute what rows share once (default: on)"
    )
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction)
    parser.add_argument("--four-bit", action=argparse.BooleanOptionalAction, help="frozen weights in 4 bits (CUDA)")
    lora = LoraSettings()
    parser.add_argument(
        "--lora-rank", type=Whole("lora_rank"), metavar="N", help="tune an adapter of this rank; 0: every weight"
    )
    parser.add_argument(
        "--lora-alpha", type=Real("lora_alpha", above=True), metavar="N", help=f"default: {lora.alpha:g}"
    )
    parser.add_argument(
        "--lora-dropout", type=Real("lora_dropout", most=1.0), metavar="N", help=f"default: {lora.dropout:g}"
    )
    parser.add_argument("--lora-targets", metavar="NAME,...", help="default: all-linear")
    parser.add_argument(
        "--lora-layers", type=Whole("lora_layers"), metavar="N", help="the topmost N layers alone (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the run record")
    add_reading_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune, print what came out."""
    require_modules("torch", "transformers", "yaml")
    recipe = read_recipe(args.recipe) if args.recipe else Recipe()
    settings = settings_of(args, recipe)
    inputs = _inputs(args, recipe, settings)
    if args.dry_run:
        from igd_core.tuning.dry import dry_settings

        settings = dry_settings(settings)
        inputs = dataclasses.replace(inputs, model=None, adapter=None)
    with opened([inputs.train, inputs.valid]) as (train, valid):
        record = tune(dataclasses.replace(inputs, train=train, valid=valid), settings, resume=args.resume, tell=tell)
    if args.json:
        print(json.dumps(record))
        return 0
    for name, value in _summary(record).items():
        print(f"{name.replace('_', ' '):<24}{value}")
    return 0


def settings_of(args: argparse.Namespace, recipe: Recipe) -> TuningSettings:
    """The recipe's settings, with the flags given instead of them.

    Raises:
        InputError: a value out of range, an unknown name, or LoRA's flags without a rank.
    """
    switches = ["share_prompts", "gradient_checkpointing", "four_bit"]
    names = [*_NUMBERS, *_WHOLE_NUMBERS, "weighting", "schedule", "precision", *switches]
    values: dict[str, Any] = {
        **recipe.tuning,
        **{name: value for name in names if (value := getattr(args, name)) is not None},
    }
    if args.from_config is not None:
        values["from_config"] = read_config(args.from_config)
    given = {
        name: value
        for name in ("rank", "alpha", "dropout", "targets", "layers")
        if (value := getattr(args, f"lora_{name}")) is not None
    }
    if given.get("rank") == 0:
        values["lora"] = None
    elif given:
        if "targets" in given:
            given["targets"] = tuple(given["targets"].split(","))
        if not values.get("lora") and "rank" not in given:
            raise InputError("lora: these flags need --lora-rank")
        values["lora"] = {**(values.get("lora") or {}), **given}
    return TuningSettings.from_json(values)


def _inputs(args: argparse.Namespace, recipe: Recipe, settings: TuningSettings) -> RunInputs:
    if args.out is None:
        raise InputError("out: a folder for the run is needed")
    model = None if settings.from_config is not None else args.model or recipe.model
    if model == "smollm2":
        model = str(smollm2_dir())
    tokenizer = args.tokenizer
    if tokenizer is None and settings.from_config is not None:
        tokenizer = smollm2_dir()
    artifact, train, valid = args.artifact, args.train, args.valid
    if artifact is None and recipe.source is not None:
        if tokenizer is None:
            if model is None:
                raise InputError("model: a checkpoint is needed")
            from igd_core.engines.embedded.checkpoint import resolve_checkpoint

            tokenizer = resolve_checkpoint(model)
        files = {name: path for name in ("reviews", "metadata") if (path := getattr(args, name)) is not None}
        folders = prepare_recipe(recipe, args.out, files=files, tokenizer=tokenizer)
        artifact, train, valid = folders.artifact, train or folders.train, valid or folders.valid
        out = folders.run
    else:
        out = args.out
    for name, path in (("artifact", artifact), ("train", train), ("valid", valid)):
        if path is None:
            raise InputError(f"{name}: is needed")
    return RunInputs(
        artifact=artifact, train=train, valid=valid, out=out, model=model, adapter=args.adapter,
        tokenizer=tokenizer, device=args.device, on_unknown=args.on_unknown_item, reading=reading_of(args),
    )  # fmt: skip


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    """What people ask first of a run."""
    evaluated = [entry for entry in record["history"] if "eval_loss" in entry]
    best = min(evaluated, key=lambda entry: entry["eval_loss"])
    return {
        "steps": record.get("steps", best["step"]),
        "rows": record["rows"]["train"]["rows"],
        "trained_parameters": record["trained_parameters"],
        "best_step": best["step"],
        "validation_loss": round(best["eval_loss"], 4),
        "zero_ig_loss": _rounded(best["eval_zero_ig_loss"]),
        "positive_ig_loss": _rounded(best["eval_positive_ig_loss"]),
        "examples_a_second": record.get("examples_per_second"),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _merge(args: argparse.Namespace) -> int:
    from igd_core.tuning.merge import merge_run

    merge_run(args.run_dir, args.out, model=args.model)
    print(json.dumps({"out": str(args.out)}) if args.json else f"merged checkpoint in {args.out}")
    return 0


def _tokenizer(args: argparse.Namespace) -> int:
    from igd_core.artifact import load_artifact
    from igd_core.tuning.pruning import prune_tokenizer

    tokenizer = prune_tokenizer(load_artifact(args.artifact), args.tokenizer or smollm2_dir(), args.out)
    print(f"{tokenizer.vocab_size} tokens in {args.out}")
    return 0
