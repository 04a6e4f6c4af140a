"""How the pages of docs/research write numbers, effects, verdicts and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from igd_core.evaluation.bootstrap import Interval


def plain(number: float) -> str:
    """``.0531``."""
    return f"{number:.4f}".removeprefix("0")


def signed(number: float) -> str:
    """``+.0072``."""
    return f"{number:+.4f}".replace("0.", ".", 1)


def between(interval: Interval) -> str:
    """A value and its interval."""
    return f"{plain(interval.value)} ({plain(interval.low)} to {plain(interval.high)})"


def effect(interval: Interval) -> str:
    """A difference and its interval; bold where that leaves 0 out."""
    mark = "**" if interval.low > 0 or interval.high < 0 else ""
    return f"{mark}{signed(interval.value)}{mark} ({signed(interval.low)} {signed(interval.high)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


def verdict(interval: Interval, *, seeds: int | None = None) -> str:
    """The rule of verdicts.md; ``seeds`` where another training could turn out otherwise."""
    if interval.low <= 0 <= interval.high:
        return "not\u00a0shown"  # one line in a narrow column
    if interval.value < 0:
        return "no: it costs"
    return "likely" if seeds is not None and seeds < 3 else "yes"


def gamma_of(name: str) -> str:
    """The gamma in a setting's name, or 0."""
    return name.partition(" gamma=")[2].partition(" ")[0] or "0"


def by_seed(found: Sequence[float]) -> str:
    """The mean over seeds, and each seed's."""
    if len(found) == 1:
        return plain(found[0])
    return f"{plain(float(np.mean(found)))} ({', '.join(map(plain, found))})"
