"""Progress of long jobs on stderr: continuously on a terminal, twice a minute in a log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable

_IN_A_LOG_S = 30.0


def progress(
    iterable: Iterable[Any] | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0
) -> tqdm[Any]:
    """A tqdm bar; the arguments are tqdm's."""
    every_s = 0.1 if sys.stderr.isatty() else _IN_A_LOG_S
    return tqdm(
        iterable,
        desc=desc,
        unit=unit,
        total=total,
        initial=initial,
        mininterval=every_s,
        maxinterval=max(10.0, every_s),
    )
