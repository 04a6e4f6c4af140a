"""`igd retune`: from the events in a store to the next model, published if a rule holds."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Count, CountOrNone, Directory, Flag
from igd_core.cli.commands import run_command
from igd_core.cli.flags import add_flags, read
from igd_core.cli.given_store import open_given_store
from igd_core.errors import InputError
from igd_core.extras import require_modules
from igd_core.locked_folders import locked_folder

if TYPE_CHECKING:
    import argparse


class RetuneFlags(CheckedSettings):
    """Whose model is retuned, from what, and when the new one is published."""

    catalogue: Annotated[str, Flag(metavar="NAME")] = Field(description="whose current version and model to begin with")
    model: Annotated[str, Flag(metavar="DIR")] = Field(
        description="the servers' own checkpoint, as their IGD_MODEL: a directory or a hub id"
    )
    out: Directory = Field(description="folder of the rounds; an unfinished one goes on")
    store: Annotated[str, Flag(metavar="URL")] | None = Field(
        default=None, repr=False, description="redis://HOST:PORT/0, file:///DIRECTORY ... (default: IGD_STORE)"
    )
    recipe: Annotated[str, Flag(metavar="NAME|FILE")] | None = Field(
        default=None, description="settings of `igd tune` (default: its own, scored as the served model is)"
    )
    lora_rank: CountOrNone = Field(
        default=8, description="of the first adapter, on the servers' own model; 0: every weight"
    )
    publish_if: Literal["not-certainly-worse", "certainly-better"] = Field(
        default="not-certainly-worse",
        description="unless the whole 95 % interval of the difference is below 0; or only if all of it is above",
    )
    least_rows: Count = Field(default=200, description="on fewer held-out rows the served model is kept")
    judged_rows: Count = Field(default=5000, description="held-out rows to judge by, at most")
    device: str = Field(default="auto", description="auto, cpu, cuda")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("retune", help="go on tuning the served model with new events; publish or keep")
    add_flags(parser, RetuneFlags)
    parser.add_argument("--json", action="store_true", help="print how the round ended as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """One round; 0 whether its model was published or the served one kept."""
    from igd_core.retune.folder import RetuneFolder
    from igd_core.retune.run import Asked, Retune
    from igd_core.store.names import require_catalogue_name

    require_modules("torch", "transformers", "peft")
    asked = read(args, RetuneFlags)
    require_catalogue_name(asked.catalogue)
    url = asked.store or os.environ.get("IGD_STORE")
    if not url:
        raise InputError("store: give --store URL, or IGD_STORE")
    os.environ["IGD_STORE"] = url  # for the commands: an address with a password is no argument to show
    told = Asked(
        catalogue=asked.catalogue,
        model=asked.model,
        recipe=asked.recipe,
        rank=asked.lora_rank,
        device=asked.device,
        rule=asked.publish_if,
        least_rows=asked.least_rows,
        judged_rows=asked.judged_rows,
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    with locked_folder(asked.out):
        folder = RetuneFolder.opened(asked.out, asdict(told))
        say(f"round {folder.number}, in {folder.at}")
        if folder.dropped:
            say("the settings have changed since this round began: it begins anew")
        number = folder.number
        outcome = Retune(told, folder, store=lambda: open_given_store(url), command=run_command, say=say).run()
    say(f"{'published ' + outcome.version if outcome.version else 'kept'}: {outcome.why}")
    if args.json:
        print(json.dumps({"round": number, "published": outcome.version is not None, **asdict(outcome)}))
    return 0
