"""`igd tune lists`: go on tuning a model by the lists that it gives."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Directory, File, Flag
from igd_core.cli.config_files import add_config_flags, print_config
from igd_core.cli.flags import add_flags, read
from igd_core.cli.reading import ReadingFlags, add_reading_arguments, reading_of, tell
from igd_core.extras import require_modules
from igd_core.tuning.settings import ListSettings

if TYPE_CHECKING:
    from collections.abc import Mapping


class ListInputs(CheckedSettings):
    """What a run is made of; the settings of the tuning itself are `ListSettings`."""

    artifact: Directory = Field(description="what `igd build` wrote")
    model: Annotated[str, Flag(metavar="DIR")] = Field(
        description="checkpoint to start from, tuned with --normalise children"
    )
    train: File = Field(description="history rows")
    valid: File = Field(description="history rows to stop by")
    out: Directory = Field(description="folder of the run")
    resume: bool = Field(default=False, description="go on with the run in --out")
    device: str = Field(default="auto", description="auto, cpu, cuda")
    on_unknown_item: Literal["error", "drop"] = Field(
        default="error", description="a row whose target is not in the catalogue refuses the file, or is left out"
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd tune lists`."""
    parser = subparsers.add_parser("lists", help="go on tuning a model by the lists that it gives")
    add_flags(parser, ListInputs)
    add_flags(parser, ListSettings)
    parser.add_argument("--json", action="store_true", help="print the run record")
    add_reading_arguments(parser)
    add_config_flags(parser, ListInputs, ListSettings, ReadingFlags)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune, print what came out."""
    require_modules("torch", "transformers")
    asked, settings = read(args, ListInputs), read(args, ListSettings)
    if args.print_config:
        print_config(asked, settings, read(args, ReadingFlags))
        return 0
    from igd_core.datasets.sources import opened
    from igd_core.tuning.inputs import RunInputs
    from igd_core.tuning.lists import tune_lists

    inputs = RunInputs(
        artifact=asked.artifact, train=asked.train, valid=asked.valid, out=asked.out, model=asked.model,
        device=asked.device, on_unknown=asked.on_unknown_item, reading=reading_of(args),
    )  # fmt: skip
    with opened([inputs.train, inputs.valid]) as (train, valid):
        inputs = dataclasses.replace(inputs, train=train, valid=valid)
        record = tune_lists(inputs, settings, resume=asked.resume, tell=tell)
    if args.json:
        print(json.dumps(record))
        return 0
    for name, value in _summary(record).items():
        print(f"{name.replace('_', ' '):<24}{value}")
    return 0


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What people ask first of a run."""
    from igd_core.tuning.lists import best_step

    best = best_step(record["history"])
    evaluated = {entry["step"]: entry for entry in record["history"] if "eval_ndcg" in entry}
    return {
        "steps": record["steps"],
        "rows": record["rows"]["train"]["rows"],
        "best_step": best,
        "ndcg@10": f"{evaluated[best]['eval_ndcg']:.4f} (before: {evaluated[0]['eval_ndcg']:.4f})",
        "log_likelihood": (
            f"{evaluated[best]['eval_log_likelihood']:.4f} (before: {evaluated[0]['eval_log_likelihood']:.4f})"
        ),
    }
