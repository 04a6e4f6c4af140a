"""`igd publish`, `versions`, `rollback`, `allow`, `prune`: what a store holds, and what servers take from it."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Count, Flag
from igd_core.cli.flags import add_flags, read
from igd_core.cli.given_store import open_given_store
from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from igd_core.store.base import Store, StoredVersion
    from igd_core.store.publishing import ModelChoice
    from igd_core.store.trials import Trial

_OWN = {"model": "own"}
_VERSION = re.compile(r"[0-9a-f]{16}")


class PruneFlags(CheckedSettings):
    """What `igd prune` leaves."""

    catalogue: Annotated[str, Flag(metavar="NAME")] = Field(description="whose versions")
    keep: Count = Field(default=5, description="newest ones, 1 or more")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the five commands."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--store", metavar="URL", help="redis://HOST:PORT/0, file:///DIRECTORY ... (default: IGD_STORE)"
    )
    shared.add_argument("--store-prefix", metavar="TEXT", help="begins every key (default: IGD_STORE_PREFIX, else igd)")
    shared.add_argument("--json", action="store_true")

    publish = subparsers.add_parser(
        "publish", parents=[shared], help="put an artifact into a store, for servers to take"
    )
    publish.add_argument(
        "--artifact", type=Path, metavar="DIR", help="what `igd build` wrote (default: the catalogue's current version)"
    )
    publish.add_argument("--catalogue", metavar="NAME", help="the name to publish it under (default: the artifact's)")
    publish.add_argument(
        "--model",
        metavar="DIR|VERSION|own",
        help="what servers serve it with: a checkpoint or LoRA adapter, a model that is in the store, or their own "
        "(default: what the catalogue's current version names)",
    )
    publish.add_argument("--name", metavar="TEXT", help="of the model, for answers and metrics (default: its folder's)")
    publish.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="the checkpoint that an adapter was tuned on (default: as its run says)",
    )
    publish.add_argument("--no-activate", action="store_true", help="store it, and let servers stay where they are")
    publish.set_defaults(run=_run(_publish))

    versions = subparsers.add_parser("versions", parents=[shared], help="list the versions in a store")
    versions.add_argument("--catalogue", metavar="NAME", help="of this one (default: of all)")
    versions.add_argument("--models", action="store_true", help="list the published models instead")
    versions.set_defaults(run=_run(_versions))

    rollback = subparsers.add_parser("rollback", parents=[shared], help="make servers return to an earlier version")
    rollback.add_argument("--catalogue", required=True, metavar="NAME")
    rollback.add_argument(
        "--version",
        metavar="VERSION",
        help="to this one (default: what was current before, not left by a rollback, and that no server died of)",
    )
    rollback.set_defaults(run=_run(_rollback))

    allow = subparsers.add_parser(
        "allow", parents=[shared], help="let servers try a version again that one refused or did not come back from"
    )
    allow.add_argument("--catalogue", required=True, metavar="NAME")
    allow.add_argument("--version", required=True, metavar="VERSION")
    allow.set_defaults(run=_run(_allow))

    prune = subparsers.add_parser("prune", parents=[shared], help="delete old versions that nobody serves")
    add_flags(prune, PruneFlags)
    prune.set_defaults(run=_run(_prune))


def _run(command: Callable[[Store, argparse.Namespace], Awaitable[None]]) -> Callable[[argparse.Namespace], int]:
    async def run(args: argparse.Namespace) -> None:
        async with _opened(args) as store:
            await command(store, args)

    def run_to_the_end(args: argparse.Namespace) -> int:
        asyncio.run(run(args))
        return 0

    return run_to_the_end


@asynccontextmanager
async def _opened(args: argparse.Namespace) -> AsyncIterator[Store]:
    store = open_given_store(args.store, args.store_prefix)
    try:
        yield store
    finally:
        await store.close()


async def _publish(store: Store, args: argparse.Namespace) -> None:
    from igd_core.store.publishing import publish

    published = await publish(
        store,
        artifact=args.artifact,
        catalogue=args.catalogue,
        model=_chosen_model(args),
        activate=not args.no_activate,
    )
    catalogue, version = published.catalogue, published.version
    _warn_if_refused(args.command, catalogue, version, await store.trial(catalogue, version))
    await _report(store, catalogue, {"version": version, "model": published.model}, as_json=args.json)


def _chosen_model(args: argparse.Namespace) -> ModelChoice:
    """What ``--model`` means; a folder goes before a version of the same name."""
    from igd_core.engines.published import describe_model
    from igd_core.store.publishing import ModelFolder

    asked: str | None = args.model
    folder = None if asked is None else Path(asked)
    if folder is not None and folder.is_dir():
        return ModelFolder(directory=folder, manifest=describe_model(folder, name=args.name, base=args.base))
    for flag in ("name", "base"):
        if getattr(args, flag) is not None:
            raise InputError(f"{flag}: --{flag} is of a model's folder, which --model must give")
    if asked is None:
        return "kept"
    if asked != "own" and not _VERSION.fullmatch(asked):
        raise InputError(f"model: {asked!r} is no folder, no version (16 hexadecimal digits) and not 'own'")
    return asked


def _warn_if_refused(command: str, catalogue: str, version: str, trial: Trial) -> None:
    if trial.bars:
        again = f"igd allow --catalogue {catalogue} --version {version}"
        print(f"igd {command}: servers do not take {version}: {trial}; to try it again: {again}", file=sys.stderr)


async def _rollback(store: Store, args: argparse.Namespace) -> None:
    move = await store.roll_back(args.catalogue, args.version)
    for version, trial in move.passed_by.items():
        by_name = f"igd allow and then igd rollback --catalogue {args.catalogue} --version {version}"
        print(f"igd {args.command}: passed by {version}: {trial}; to go there: {by_name}", file=sys.stderr)
    _warn_if_refused(args.command, args.catalogue, move.version, move.trial)
    facts: dict[str, Any] = {"version": move.version, "before": move.before}
    if move.passed_by:
        facts["passed_by"] = list(move.passed_by)
    await _report(store, args.catalogue, facts, as_json=args.json)


async def _allow(store: Store, args: argparse.Namespace) -> None:
    await store.allow(args.catalogue, args.version)
    await _report(store, args.catalogue, {"version": args.version}, as_json=args.json)


async def _prune(store: Store, args: argparse.Namespace) -> None:
    from igd_core.store.published_models import prune_models

    asked = read(args, PruneFlags)
    deleted = await store.prune(asked.catalogue, keep=asked.keep)
    models = await prune_models(store)
    kept = [stored.version for stored in await store.versions(asked.catalogue)]
    facts = {"deleted": list(deleted), "kept": kept, "deleted_models": list(models)}
    await _report(store, asked.catalogue, facts, as_json=args.json)


async def _models(store: Store, args: argparse.Namespace) -> None:
    from igd_core.store.names import MODELS

    users: dict[str, list[str]] = {}
    for catalogue in await store.catalogues():
        for stored in await store.versions(catalogue):
            if stored.model is not None:
                users.setdefault(stored.model, []).append(f"{catalogue}/{stored.version}")
    models = await store.versions(MODELS)
    if args.json:
        print(json.dumps([{**_stored(model), "named_by": users.get(model.version, [])} for model in models]))
        return
    print(f"{'model':<18}{'stored':<18}{'MiB':>9}  named by")
    for model in models:
        named_by = ", ".join(users.get(model.version, [])) or "none"
        size = f"{model.size_bytes / 2**20:.1f}"
        print(f"{model.version:<18}{model.stored_at:%Y-%m-%d %H:%M}{size:>11}  {named_by}")


async def _versions(store: Store, args: argparse.Namespace) -> None:
    if args.models:
        if args.catalogue is not None:
            raise InputError("models: are of no catalogue; leave out --catalogue")
        await _models(store, args)
        return
    names = await store.catalogues() if args.catalogue is None else [args.catalogue]
    listed = {name: await store.versions(name) for name in names}
    if args.json:
        print(json.dumps({name: [_facts(stored) for stored in versions] for name, versions in listed.items()}))
        return
    print(f"{'catalogue':<20}{'version':<18}{'stored':<18}{'MiB':>9}  {'model':<18}use")
    for name, versions in listed.items():
        for stored in versions:
            use = ", ".join(_uses(stored))
            size = f"{stored.size_bytes / 2**20:.1f}"
            model = stored.model or "own"
            print(
                f"{name:<20}{stored.version:<18}{stored.stored_at:%Y-%m-%d %H:%M}{size:>11}  {model:<18}{use}".rstrip()
            )


def _uses(stored: StoredVersion) -> list[str]:
    marks = [mark for mark, holds in (("current", stored.is_current), ("previous", stored.is_previous)) if holds]
    if stored.trial.state == "trying" or stored.trial.bars:
        marks.append(str(stored.trial))
    return [*marks, *(f"served by {holder}" for holder in stored.holders)]


def _stored(stored: StoredVersion) -> dict[str, object]:
    return {
        "version": stored.version,
        "stored_at": stored.stored_at.isoformat(),
        "size_bytes": stored.size_bytes,
    }


def _facts(stored: StoredVersion) -> dict[str, object]:
    return {
        **_stored(stored),
        "model": stored.model,
        "current": stored.is_current,
        "previous": stored.is_previous,
        "holders": list(stored.holders),
        "trial": {"state": stored.trial.state, "holder": stored.trial.holder, "detail": stored.trial.detail},
    }


async def _report(store: Store, catalogue: str, facts: dict[str, Any], *, as_json: bool) -> None:
    current, previous = await store.current(catalogue), await store.previous(catalogue)
    report = {"catalogue": catalogue, **facts, "current": current, "previous": previous}
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        shown = " ".join(value) if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):<15}{shown or _OWN.get(name, 'none')}")
