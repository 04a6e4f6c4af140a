"""The code of another commit, beside this one, for benchmarks that compare the two."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The code of a commit, in a folder of its own.

    Raises:
        CalledProcessError: there is no such commit.
    """
    with tempfile.TemporaryDirectory(prefix="igd-against-") as scratch:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", scratch], input=archive, check=True)
        yield Path(scratch)
