"""What ``--force`` may replace: a folder that its command wrote, with nothing else in it, and none that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.checked_settings import settings_in
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from igd_core.checked_settings import CheckedSettings

_STDIN = Path("-")


def require_only(folder: Path, parts: Collection[str], what: str) -> None:
    """Refuse a folder that holds anything else than ``parts``, which would be lost with it.

    Raises:
        DataError: names the first of what else there is.
    """
    if others := sorted(path.name for path in folder.iterdir() if path.name not in parts):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise DataError(f"{folder}: holds {others[0]!r}{more}, no part of {what}, so --force leaves it alone")


def require_apart(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse to replace ``out`` where it is, or contains, one of ``inputs``, by the flags that name them.

    Raises:
        DataError: names the flag.
    """
    replaced = out.resolve()
    for name, path in inputs.items():
        if path.resolve().is_relative_to(replaced):
            raise DataError(f"out: {out} is or contains --{name.replace('_', '-')} {path}, so --force leaves it alone")


def paths_in(*models: CheckedSettings) -> dict[str, Path]:
    """Files and folders that flags name, by the flags' names, but for ``--out`` and standard input."""
    values = {setting.name: getattr(model, setting.path[0]) for model in models for setting in settings_in(type(model))}
    return {
        name: value for name, value in values.items() if isinstance(value, Path) and name != "out" and value != _STDIN
    }
