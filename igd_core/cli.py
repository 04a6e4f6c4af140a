"""The ``igd`` command: one module per subcommand under ``igd_core.commands``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from igd_core.commands import (
    bench,
    build,
    compare,
    data,
    demo,
    evaluate,
    inspect,
    keys,
    publish,
    recommend,
    serve,
    tune,
)
from igd_core.errors import IGDError

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT = 2
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="igd", description="Recommendation by trie-constrained, IGD-weighted decoding."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (data, build, inspect, tune, evaluate, compare, recommend, publish, serve, keys, demo, bench):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, 2 and one line on standard error for bad input."""
    args = make_parser().parse_args(argv)
    # Before torch is imported: OpenMP threads that spin while they wait take the core that the event loop needs, and
    # stall for whole scheduler ticks when anything else runs (a 0.6 ms kernel took 8 ms beside one busy process).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except IGDError as error:
        print(f"igd: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # `igd inspect ... | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere, quietly
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
