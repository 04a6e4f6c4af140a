"""Adapters in the package: each in the folder of its run, named after its recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path

from igd_core.engines.embedded.adapters import WEIGHTS_FILE
from igd_core.errors import InputError
from igd_core.models import igd_home
from igd_core.tuning.merge import merge_run

_FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """Recipes with an adapter in the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/run.json"))


def shipped_run(recipe: str) -> Path:
    """The run's folder: ``run.json`` and ``adapter/``.

    Raises:
        InputError: there is none.
    """
    if recipe not in shipped_names():
        raise InputError(f"recipe {recipe!r}: no adapter of it comes with the package; {', '.join(shipped_names())} do")
    return _FOLDER / recipe


def merged_checkpoint(recipe: str, base: Path) -> Path:
    """The recipe's adapter merged into ``base``: a checkpoint under ``IGD_HOME/models``, written at first use.

    Raises:
        InputError: there is no such adapter.
        ModelError: it does not fit ``base``.
    """
    run = shipped_run(recipe)
    digest = hashlib.sha256((run / "adapter" / WEIGHTS_FILE).read_bytes()).hexdigest()
    out = igd_home() / "models" / f"{recipe}-{digest[:8]}"
    if not out.is_dir():  # a merge is written to another name and renamed
        out.parent.mkdir(parents=True, exist_ok=True)
        merge_run(run, out, model=str(base))
    return out
