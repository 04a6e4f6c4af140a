"""The ``igd`` command: one module per subcommand under ``igd_core.cli``, imported when it is the one asked for."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from igd_core.errors import ArtifactError, IGDError
from igd_core.release import RELEASE

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT = 2
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13
_FLAG = re.compile(r"--?[A-Za-z]")

# Module and help of each: what one command needs the list of all must not wait for.
COMMANDS = {
    "start": ("start", "two exports to a verdict, and a catalogue and model to serve"),
    "data": ("data", "turn raw data into items and (history, target) rows"),
    "build": ("build", "make an artifact: trie, information-gain table, items"),
    "inspect": ("inspect", "information-gain statistics of an artifact, and a plot"),
    "tune": ("tune", "tune a checkpoint or an adapter with the IGD loss"),
    "evaluate": ("evaluate", "HR and NDCG of a checkpoint and of baselines on held-out rows"),
    "compare": ("compare", "what tuning and decoding add, from evaluations of several checkpoints"),
    "recommend": ("recommend", "recommend for one history"),
    "batch": ("batch", "recommend for every row of a dataset, on Ray"),
    "precompute": ("precompute", "put the lists of a batch into a store, for servers to fall back to"),
    "publish": ("publish", "put an artifact into a store, for servers to take"),
    "versions": ("publish", "list the versions in a store"),
    "rollback": ("publish", "make servers return to an earlier version"),
    "allow": ("publish", "let servers try a version again that one refused or did not come back from"),
    "prune": ("publish", "delete old versions that nobody serves"),
    "retune": ("retune", "go on tuning the served model with new events; publish or keep"),
    "export": ("export", "write events and impressions of a store as Parquet"),
    "variants": ("variants", "click rates of a server's variants and their difference"),
    "serve": ("serve", "serve recommendations over HTTP"),
    "keys": ("keys", "make, list and revoke API keys"),
    "demo": ("demo", "build the MovieLens-100K catalogue and serve it with the small model in the package"),
    "bench": ("bench", "measure decoding, or a running server"),
    "completion": ("completion", "print a script that completes igd's commands and flags in a shell"),
}


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line: the usage of a command with many flags would hide it."""

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by the kind of namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does; but a command names a flag that it lacks before those that it needs, and its own help."""
        if self._subparsers is not None or args is None:
            return super().parse_known_args(args, namespace)
        words = takewhile(lambda word: word != "--", args)
        flags = (word.partition("=")[0] for word in words if _FLAG.match(word))
        others = [flag for flag in flags if not any(known.startswith(flag) for known in self._option_string_actions)]
        if others:
            known = {flag.lstrip("-"): flag for flag in self._option_string_actions}
            near = difflib.get_close_matches(others[0].lstrip("-"), list(known), n=1)
            self.error(f"there is no flag {others[0]}" + (f"; is {known[near[0]]} meant?" if near else ""))
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line: all flags of ``command``, of the others their names; or with None all flags of all."""
    parser = OneLineParser(prog="igd", description="Recommendation by trie-constrained, IGD-weighted decoding.")
    parser.add_argument("--version", action="version", version=f"igd {RELEASE}", help="print the release and end")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = {module for name, (module, _) in COMMANDS.items() if command in (None, name)}
    for name, (module, text) in COMMANDS.items():
        if module not in wanted:
            subparsers.add_parser(name, help=text)
        elif name not in subparsers.choices:  # one module may bring several
            import_module(f"igd_core.cli.{module}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, 2 and one line on standard error for bad input."""
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if not word.startswith("-")), "")
    # Before torch is imported: OpenMP threads that spin while they wait take the core that the event loop needs, and
    # stall for whole scheduler ticks when anything else runs (a 0.6 ms kernel took 8 ms beside one busy process).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = argparse.Namespace()
    try:
        args = make_parser(command).parse_args(argv)
        code = int(args.run(args))
        sys.stdout.flush()
    except IGDError as error:
        within = error.directory if isinstance(error, ArtifactError) else None
        print(f"igd: {error}" if within is None else f"igd: {within}/{error}", file=sys.stderr)
        return BAD_INPUT
    except ModuleNotFoundError as error:
        from igd_core.extras import what_to_install

        advice = what_to_install(error, command)
        if advice is None:
            raise
        print(f"igd: {advice}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # `igd inspect ... | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere, quietly
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        told = _told_of_files(error, getattr(args, "out", None))
        if told is None:
            raise
        print(f"igd: {told}", file=sys.stderr)
        return BAD_INPUT
    return code


def _told_of_files(error: Exception, out: object) -> str | None:
    """What the system says of a path, or of a disk that is full; None where ``error`` is about something else.

    Paths of the command line may lead through a file, may not be read, may be too long. Where a disk is full and
    nothing says which file that is about, it is about ``--out``, unless standard output is what cannot be written.
    """
    from igd_core.whole_files import disk_errno

    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename2 or error.filename}: {error.strerror}"
    number = disk_errno(error, Path(str(out or ".")).absolute().parent)
    if number is None:
        return None
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        out = "standard output"
    return os.strerror(number) if out is None else f"{out}: {os.strerror(number)}"


if __name__ == "__main__":
    sys.exit(main())
