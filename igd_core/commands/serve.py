"""`igd serve`: recommendations over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_core.errors import InputError

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd serve`; what a flag does not say, the environment (``IGD_PORT`` ...) may."""
    parser = subparsers.add_parser(
        "serve", help="serve recommendations over HTTP", description="Every flag has a variable: --port is IGD_PORT."
    )
    parser.add_argument("--artifact", metavar="DIR", help="what `igd build` wrote")
    parser.add_argument("--model", metavar="DIR", help="checkpoint's directory, or a hub's owner/name")
    parser.add_argument("--engine", metavar="NAME", help="tree (default)")
    parser.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1")
    parser.add_argument("--dtype", metavar="NAME", help="auto (default), float32, bfloat16, float16")
    parser.add_argument("--host", metavar="ADDRESS", help="default: 127.0.0.1")
    parser.add_argument("--port", metavar="NUMBER", help="default: 8000; 0 takes a free one")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info (default), warning, error")
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    try:
        from server.run import serve
        from server.settings import Settings, read_settings
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'igd-recommender[server]'") from None
    serve(read_settings(**{name: value for name, value in vars(args).items() if name in Settings.model_fields}))
    return 0
