"""Run a command of `igd` in this process: what stages of longer runs are made of."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from typing import TYPE_CHECKING, Any

from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def run_command(argv: Sequence[str]) -> Mapping[str, Any]:
    """Run ``igd`` with these arguments; what it prints as JSON.

    Raises:
        IGDError: as the command does.
        InputError: it ended with an exit code.
    """
    from igd_core.cli.main import make_parser

    has_json = list(argv[:2]) != ["tune", "tokenizer"]
    args = make_parser(argv[0]).parse_args([*argv, *(["--json"] if has_json else [])])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = int(args.run(args))
    if code:
        raise InputError(f"{shlex.join(['igd', *argv])}: ended with {code}")
    result: dict[str, Any] = json.loads(printed.getvalue()) if has_json else {}
    return result
