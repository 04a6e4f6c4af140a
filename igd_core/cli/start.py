"""`igd start`: two exports to a served verdict."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from igd_core.artifact.options import OnUnspellable
from igd_core.checked_settings import Directory, File, Flag, Words
from igd_core.cli.attributes import RowPolicies, add_attribute_arguments
from igd_core.cli.commands import run_command
from igd_core.cli.flags import add_flags, read
from igd_core.cli.layout import EventsFlags, Layout, layout_of, layout_text, read_layout, rules_of
from igd_core.cli.reading import add_reading_arguments
from igd_core.errors import DataError, InputError, ModelError
from igd_core.extras import require_modules
from igd_core.models import smollm2_dir

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from igd_core.datasets.export_detection import Detected
    from igd_core.start.run import Asked
    from igd_core.tuning.recipes import Recipe

_SCRATCH, _ADAPTER = "ml-100k-small-llama", "ml-100k-smollm2-lora"
_MINUTES = 30.0


class StartFlags(EventsFlags, RowPolicies):
    """Two exports, and how long it may take."""

    items: File = Field(description="export of the items, one a row: an id, a title, anything else")
    events: File = Field(description="export of the events, one a row: who, which item, when")
    out: Directory = Field(
        default=Path("igd-start"), description="folder for all that is made; goes on with what it holds"
    )
    minutes: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=_MINUTES,
        description="that tuning, choosing and judging may take together, about: fewer rows where time is short",
    )
    model: Annotated[str, Flag(metavar="DIR")] | None = Field(
        default=None, description="checkpoint to tune (default: a small Llama from scratch, as the demo's)"
    )
    layout: File | None = Field(
        default=None, description="what the columns are: OUT/layout.toml of an earlier run, edited; flags go before it"
    )
    look: bool = Field(default=False, description="say what the exports hold, and stop")
    again: bool = Field(default=False, description="do anew what --out holds of other exports or flags; the rest stays")
    recipe: Annotated[str, Flag(metavar="NAME|FILE", shows_default=False)] | None = Field(
        default=None, description=f"how the model is built and tuned (default: {_SCRATCH}, or with --model {_ADAPTER})"
    )
    tokenizer: Directory | None = Field(
        default=None, description="to cut down for the model from scratch (default: SmolLM2's)"
    )
    baselines: Annotated[Words[str], Field(min_length=1)] = Field(
        default=("popular", "transitions", "itemknn", "sasrec"), description="to compare with"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda")
    on_unspellable: OnUnspellable = Field(
        default="error",
        description="an item whose title the tokenizer has no piece for refuses the catalogue, is left out, or is "
        "spelled by other characters",
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd start`."""
    parser = subparsers.add_parser("start", help="two exports to a verdict, and a catalogue and model to serve")
    add_flags(parser, StartFlags)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON, all else on standard error")
    add_attribute_arguments(parser)
    add_reading_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check what is asked, and begin or go on."""
    from igd_core.start.folder import alone

    require_modules("torch", "transformers", "yaml", "uvicorn")

    def say(line: str) -> None:
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    asked = _with_baselines(read(args, StartFlags), say)
    with alone(asked.out):
        return _start(args, asked, say)


def _start(args: argparse.Namespace, asked: StartFlags, say: Callable[[str], None]) -> int:
    """Look at the exports, run the stages, and say what came of them."""
    from igd_core.start.folder import LAYOUT_FILE, StartFolder
    from igd_core.start.report import write_report
    from igd_core.start.run import Start
    from igd_core.tuning.recipes import read_recipe

    recipe = read_recipe(asked.recipe or (_SCRATCH if asked.model is None else _ADAPTER))
    layout, detected = _looked_at(args, asked)
    folder = StartFolder.opened(asked.out, _made_of(asked, layout), again=asked.again, edited=_edited(asked, layout))
    notes = ["What the exports were taken for. Edit it, and give it back: --layout FILE.", *detected.told]
    (asked.out / LAYOUT_FILE).write_text(layout_text(layout, notes), "utf-8")
    say("\n".join(detected.told))
    if detected.unclear:
        from igd_core.datasets.export_detection import shown_unclear

        raise DataError(shown_unclear(detected.unclear))
    say(f"  where this is wrong, edit {asked.out / LAYOUT_FILE} and give it back with --layout")
    start = Start(_asked_of(asked, recipe, detected, say), folder, command=run_command, say=say)
    try:
        start.data()
        if asked.look:
            return 0
        outcome = start.rest()
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from here")
        raise
    write_report(start.report, folder, outcome, detected.told)
    say(f"\n{outcome.told()}\n\nreport: {start.report}")
    say(f"serve it: {shlex.join(['igd', 'serve', *outcome.serve])}")
    if args.json:
        told = {"verdict": outcome.verdict.told(), **asdict(outcome.verdict), "report": str(start.report)}
        print(json.dumps({**told, "serve": ["igd", "serve", *outcome.serve]}))
    return 0


def _with_baselines(asked: StartFlags, say: Callable[[str], None]) -> StartFlags:
    """The same, with baselines that there are; what needs a library is left out unless it was asked for."""
    from igd_core.evaluation.baselines import BASELINES, require_library

    there = []
    for name in asked.baselines:
        if name not in BASELINES:
            raise InputError(f"baselines: {name!r} is not one of {', '.join(BASELINES)}")
        try:
            require_library(name)
        except InputError as error:
            if "baselines" in asked.model_fields_set:
                raise
            say(f"{name} is left out: {error}")
        else:
            there.append(name)
    return asked if len(there) == len(asked.baselines) else asked.replaced(baselines=tuple(there))


def _looked_at(args: argparse.Namespace, asked: StartFlags) -> tuple[Layout, Detected]:
    """What somebody says of the exports, together with what they show."""
    from igd_core.datasets.attribute_schema import rule_json
    from igd_core.datasets.export_detection import detect
    from igd_core.datasets.sources import Source
    from igd_core.regular_files import require_regular

    for path in (asked.items, asked.events):
        require_regular(path)  # each is read more than once
    said = layout_of(args, asked.layout)
    rules = rules_of(args, said, asked.items)
    found = detect(
        Source.of(asked.items),
        Source.of(asked.events),
        (said.items_reading, said.events_reading),
        (said.items.columns, said.events.columns),
        rules,
    )
    items = said.items.replaced(
        columns=found.items.columns,
        delimiter=said.items.delimiter or found.items.delimiter,
        attributes={**found.items.attributes, **{name: rule_json(rule) for name, rule in rules.items()}},
    )
    events = said.events.replaced(
        columns=found.events.columns,
        delimiter=said.events.delimiter or found.events.delimiter,
        timezone=said.events.timezone or found.events.timezone,
    )
    return Layout(items=items, events=events), found


def _made_of(asked: StartFlags, layout: Layout) -> dict[str, Any]:
    """What the results depend on, by the names of the flags."""
    from igd_core.datasets.sources import Source

    flags = asked.to_json()
    for name in ("out", "layout", "look", "again", "on_empty_title", "on_unknown_item", "kinds"):
        del flags[name]  # the last three stand in the layout
    for name in ("items", "events", *(["recipe"] if asked.recipe and Path(asked.recipe).is_file() else [])):
        flags[name] = {"file": flags[name], "sha256": Source.of(Path(flags[name])).sha256()}
    return {**flags, "layout": layout.to_json()}


def _edited(asked: StartFlags, layout: Layout) -> dict[str, Any] | None:
    """The layout in the folder, where no flag gives it back and it says something else; None where that is not so."""
    from igd_core.start.folder import LAYOUT_FILE

    path = asked.out / LAYOUT_FILE
    if asked.layout is not None or not path.is_file():
        return None
    there = read_layout(path)
    return None if there == layout else there.to_json()


def _asked_of(asked: StartFlags, recipe: Recipe, detected: Detected, say: Callable[[str], None]) -> Asked:
    from igd_core.engines.embedded.checkpoint import resolve_checkpoint
    from igd_core.start.run import Asked, has_many_events

    model = recipe.model if asked.model is None else asked.model
    if model == "smollm2":
        model = str(smollm2_dir())

    def find_tokenizer() -> Path:
        if asked.tokenizer is not None:
            return asked.tokenizer
        return _large_vocabulary(say) if model is None else Path(resolve_checkpoint(model))

    return Asked(
        items=asked.items,
        events=asked.events,
        many_events=has_many_events(detected.events.rows),
        model=model,
        recipe=recipe,
        recipe_name=asked.recipe or recipe.name,
        own_recipe=asked.recipe is not None,
        find_tokenizer=find_tokenizer,
        minutes=asked.minutes,
        baselines=asked.baselines,
        device=asked.device,
        on_unspellable=asked.on_unspellable,
    )


def _large_vocabulary(say: Callable[[str], None]) -> Path:
    """The tokenizer to cut down for a model from scratch: SmolLM2's, or what of it comes with the package."""
    from igd_core.tuning.shipped import shipped_model

    try:
        return smollm2_dir()
    except ModelError as error:
        say(f"The vocabulary is the demo's: titles take more tokens than with SmolLM2's. {error}")
        return shipped_model(_SCRATCH)
