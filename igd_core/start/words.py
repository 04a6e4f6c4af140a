"""How a start tells a person what it does and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def shown_fact(value: object) -> str:
    """A value of a report, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{shown_fact(each)} {name}" for name, each in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def shown_command(argv: Sequence[str]) -> str:
    """As it can be typed."""
    return shlex.join(["igd", *argv])


def listed(titles: Sequence[str]) -> str:
    """Titles on one line."""
    return "; ".join(titles)


def shown_time(seconds: float) -> str:
    """In seconds, or minutes."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
