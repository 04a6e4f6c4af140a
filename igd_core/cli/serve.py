"""`igd serve`: recommendations over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_core.cli.config_files import add_config_flags, print_config, said_in_file
from igd_core.cli.flags import add_flags, given_as_flags

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd serve`; what a flag does not say, the environment (``IGD_PORT`` ...) may, and then a file."""
    from igd_server.settings import Settings

    parser = subparsers.add_parser(
        "serve",
        help="serve recommendations over HTTP",
        description="Every flag has a variable, --port is IGD_PORT: docs/reference/settings.md.",
    )
    add_flags(parser, Settings, required=False)
    add_config_flags(parser, Settings)
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    from igd_server.settings import Settings, read_settings

    settings = read_settings(
        said_in_file(args), **dict.fromkeys(Settings.model_fields) | given_as_flags(args, Settings)
    )
    if args.print_config:
        print_config(settings)
        return 0
    from igd_server.launch import launch

    return launch(settings)
