"""`igd completion`: a script that lets a shell complete commands, flags, choices and paths."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd completion`."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes igd's commands and flags in a shell",
        description="This session of bash: source <(igd completion bash). Kept: docs/reference/cli.md#completion.",
    )
    parser.add_argument("shell", choices=SHELLS, help="which one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script, which holds everything: completing does not run igd."""
    import shtab

    from igd_core.cli.main import make_parser

    parser = make_parser()
    _mark_paths(parser, {"DIR": shtab.DIRECTORY, "FILE": shtab.FILE})
    print(shtab.complete(parser, args.shell))
    return 0


def _mark_paths(parser: argparse.ArgumentParser, kinds: Mapping[str, object]) -> None:
    """Say which flags take paths, where shtab looks for it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_paths(inner, kinds)
        elif action.metavar in kinds:
            vars(action)["complete"] = kinds[str(action.metavar)]
