"""`igd serve`: recommendations over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

_FLAGS = (
    ("--artifact", "DIR", "what `igd build` wrote: one catalogue that never changes; or else"),
    ("--catalogues", "NAME,...", "catalogues in the store, the default one first; replaced while serving"),
    ("--store", "URL", "redis://..., file:///DIRECTORY or memory:// (default)"),
    ("--model", "DIR", "checkpoint's directory, or a hub's owner/name"),
    ("--engine", "NAME", "tree (default): embedded; vllm: docs/how-to/vllm.md"),
    ("--adapters", "NAME=DIR,...", "LoRA adapters of the model, for variants to name"),
    ("--vllm", "JSON", 'how vLLM is started, as {"max_model_len": 2048}'),
    ("--device", "NAME", "auto (default), cpu, cuda, cuda:1"),
    ("--dtype", "NAME", "auto (default), float32, bfloat16, float16"),
    ("--host", "ADDRESS", "default: 127.0.0.1"),
    ("--port", "NUMBER", "default: 8000; 0 takes a free one"),
    ("--operations-port", "NUMBER", "serve metrics and administration there and not on --port"),
    ("--allowed-hosts", "NAME,...", "host names to answer to besides this machine's own, where no keys are asked for"),
    ("--keys-file", "FILE", "API keys, as `igd keys` writes them"),
    ("--rate-limit", "LIMIT", "requests a key may make, as 600/minute"),
    ("--variants", "JSON", 'as [{"name": "control"}, {"name": "bold", "alpha": 0.4}]'),
    ("--log-level", "LEVEL", "debug, info (default), warning, error"),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd serve`; what a flag does not say, the environment (``IGD_PORT`` ...) may."""
    parser = subparsers.add_parser(
        "serve",
        help="serve recommendations over HTTP",
        description="Every flag has a variable, --port is IGD_PORT; there are more: docs/reference/settings.md.",
    )
    for flag, metavar, text in _FLAGS:
        parser.add_argument(flag, metavar=metavar, help=text)
    parser.add_argument(
        "--open-access", action="store_const", const=True, help="serve without keys on an address that others reach"
    )
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    from igd_server.process import serve
    from igd_server.settings import Settings, read_settings

    serve(read_settings(**{name: value for name, value in vars(args).items() if name in Settings.model_fields}))
    return 0
