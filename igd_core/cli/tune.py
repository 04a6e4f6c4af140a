"""`igd tune`: rows, an artifact and a checkpoint to a tuned model or adapter; and what goes with it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Count, Directory, File, Flag
from igd_core.cli import tune_lists
from igd_core.cli.config_files import add_config_flags, print_config
from igd_core.cli.flags import add_flags, given, read
from igd_core.cli.reading import ReadingFlags, add_reading_arguments, reading_of, tell
from igd_core.errors import InputError
from igd_core.extras import require_modules
from igd_core.models import smollm2_dir
from igd_core.tuning.settings import TuningSettings

if TYPE_CHECKING:
    from igd_core.datasets.sources import Reading
    from igd_core.tuning.inputs import RunInputs
    from igd_core.tuning.recipes import Recipe


class TuneInputs(CheckedSettings):
    """What a run is made of; the settings of the tuning itself are `TuningSettings`."""

    recipe: Annotated[str, Flag(metavar="NAME|FILE")] | None = Field(
        default=None, description="settings to start from: a file, or a name that docs/how-to/tune.md lists"
    )
    artifact: Directory | None = Field(default=None, description="what `igd build` wrote")
    model: Annotated[str, Flag(metavar="DIR")] | None = Field(
        default=None, description="checkpoint to start from: a directory or a hub id"
    )
    adapter: Directory | None = Field(default=None, description="adapter to go on from, instead of a new one")
    train: File | None = Field(default=None, description="history rows")
    valid: File | None = Field(default=None, description="history rows to stop by")
    out: Directory | None = Field(default=None, description="folder of the run")
    reviews: File | None = Field(default=None, description="raw file of an Amazon recipe (json.gz)")
    metadata: File | None = Field(default=None, description="raw file of an Amazon recipe (json.gz)")
    resume: bool = Field(default=False, description="go on with the run in --out")
    dry_run: bool = Field(default=False, description="everything but the backbone: one step of a tiny random model")
    tokenizer: Directory | None = Field(
        default=None,
        description="of a model from scratch (default: SmolLM2's), or what `igd build --extend-tokenizer` wrote",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda")
    devices: Count | None = Field(
        default=None,
        description="share each step among so many GPUs, or processes on a CPU (under torchrun: as many as it starts)",
    )
    shard: bool = Field(
        default=False, description="split weights and optimiser among the devices (FSDP2), for what does not fit one"
    )
    on_unknown_item: Literal["error", "drop"] = Field(
        default="error", description="a row whose target is not in the catalogue refuses the file, or is left out"
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd tune`."""
    parser = subparsers.add_parser("tune", help="tune a checkpoint or an adapter with the IGD loss")
    parts = parser.add_subparsers(metavar="lists|merge|tokenizer")
    tune_lists.add_parser(parts)
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

    add_flags(parser, TuneInputs)
    add_flags(parser, TuningSettings)
    parser.add_argument("--json", action="store_true", help="print the run record")
    add_reading_arguments(parser)
    add_config_flags(parser, TuneInputs, TuningSettings, ReadingFlags)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune, print what came out."""
    from igd_core.tuning.recipes import Recipe, read_recipe
    from igd_core.tuning.team import ToldElsewhere

    require_modules("torch", "transformers", "yaml")
    asked = read(args, TuneInputs)
    recipe = read_recipe(asked.recipe) if asked.recipe else Recipe()
    settings = settings_of(given(args, TuningSettings), recipe)
    if args.print_config:
        print_config(asked, settings, read(args, ReadingFlags))
        return 0
    try:
        record = _record(asked, recipe, settings, reading_of(args))
    except ToldElsewhere:  # by another process of a launcher
        return 2
    if record is None:
        return 0
    if args.json:
        print(json.dumps(record))
        return 0
    for name, value in _summary(record).items():
        print(f"{name.replace('_', ' '):<24}{value}")
    return 0


def _record(asked: TuneInputs, recipe: Recipe, settings: TuningSettings, reading: Reading) -> dict[str, Any] | None:
    """Tune, on as many devices as asked for; None in all processes of a launcher but the first."""
    from igd_core.datasets.sources import opened
    from igd_core.tuning.dry import dry_settings
    from igd_core.tuning.launch import tune_on_devices
    from igd_core.tuning.run import tune
    from igd_core.tuning.team import Team, joined, launched

    def made() -> RunInputs:
        inputs = _inputs(asked, recipe, settings, reading)
        return dataclasses.replace(inputs, model=None, adapter=None) if asked.dry_run else inputs

    to_tune = dry_settings(settings) if asked.dry_run else settings
    if launched():
        with joined(asked.device, shards=asked.shard) as team:
            team.agreed(lambda: _fits_launcher(asked, team.size))
            inputs = team.first_first(made)
            record = tune(inputs, to_tune, resume=asked.resume, tell=tell, team=team)
            return record if team.is_first else None
    devices = _devices(asked)
    inputs = made()
    with opened([inputs.train, inputs.valid]) as (train, valid):
        inputs = dataclasses.replace(inputs, train=train, valid=valid)
        if devices == 1:
            return tune(inputs, to_tune, resume=asked.resume, tell=tell)
        return tune_on_devices(
            inputs, to_tune, team=Team(size=devices, shards=asked.shard), resume=asked.resume, tell=tell
        )


def _devices(asked: TuneInputs) -> int:
    """How many to use.

    Raises:
        InputError: several GPUs, and nothing says how many; or a single one to split weights among.
    """
    import torch

    seen = torch.cuda.device_count() if asked.device in ("auto", "cuda") else 0
    if asked.devices is None and seen > 1:
        raise InputError(f"devices: this machine has {seen} GPUs: --devices {seen} uses all, --devices 1 the first")
    devices = asked.devices or 1
    if asked.shard and devices == 1:
        raise InputError("shard: there is one device; --devices says how many split the weights")
    return devices


def _fits_launcher(asked: TuneInputs, size: int) -> None:
    """Check what processes of a launcher cannot do, or need not be told."""
    from igd_core.datasets.sources import STANDARD_INPUT

    if asked.devices not in (None, size):
        raise InputError(f"devices: {asked.devices}, and the launcher started {size} processes")
    for name, path in (("train", asked.train), ("valid", asked.valid)):
        if path is not None and (str(path) == STANDARD_INPUT or path.is_fifo()):
            raise InputError(f"{name}: {path} can be read once, and {size} processes of a launcher need it; a file")


def settings_of(values: Mapping[str, Any], recipe: Recipe) -> TuningSettings:
    """The recipe's settings, with ``values`` instead of them where they say something.

    Raises:
        InputError: a value out of range, an unknown name, or LoRA's flags without a rank.
    """
    merged = {**recipe.tuning, **values}
    if "lora" in values:
        if not recipe.tuning.get("lora") and "rank" not in values["lora"]:
            raise InputError("lora: these flags need --lora-rank")
        merged["lora"] = {**(recipe.tuning.get("lora") or {}), **values["lora"]}
    return TuningSettings.read(merged, where="tuning")


def _inputs(asked: TuneInputs, recipe: Recipe, settings: TuningSettings, reading: Reading) -> RunInputs:
    from igd_core.tuning.inputs import RunInputs
    from igd_core.tuning.recipes import prepare_recipe

    if asked.out is None:
        raise InputError("out: a folder for the run is needed")
    model = None if settings.from_config is not None else asked.model or recipe.model
    if model == "smollm2":
        model = str(smollm2_dir())
    tokenizer = asked.tokenizer
    if tokenizer is None and settings.from_config is not None:
        tokenizer = smollm2_dir()
    artifact, train, valid, out = asked.artifact, asked.train, asked.valid, asked.out
    if artifact is None and recipe.source is not None:
        if tokenizer is None:
            if model is None:
                raise InputError("model: a checkpoint is needed")
            from igd_core.engines.embedded.checkpoint import resolve_checkpoint

            tokenizer = resolve_checkpoint(model)
        files = {name: path for name in ("reviews", "metadata") if (path := getattr(asked, name)) is not None}
        folders = prepare_recipe(recipe, out, files=files, tokenizer=tokenizer)
        artifact, train, valid = folders.artifact, train or folders.train, valid or folders.valid
        out = folders.run
        if settings.from_config is not None:
            tokenizer = folders.tokenizer
    if artifact is None or train is None or valid is None:
        needed = {"artifact": artifact, "train": train, "valid": valid}
        raise InputError(f"{next(name for name, path in needed.items() if path is None)}: is needed")
    return RunInputs(
        artifact=artifact, train=train, valid=valid, out=out, model=model, adapter=asked.adapter,
        tokenizer=tokenizer, device=asked.device, on_unknown=asked.on_unknown_item, reading=reading,
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
