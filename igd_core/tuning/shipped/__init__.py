"""Models in the package: each a checkpoint's folder with the record of its run, named after its recipe.

``tests/bench/ship_model.py`` makes such a folder of a run.
"""

from __future__ import annotations

from pathlib import Path

from igd_core.errors import InputError

_FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """Recipes whose model is in the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/run.json"))


def shipped_model(recipe: str) -> Path:
    """The model's folder, a checkpoint like any other; its ``run.json`` is the record of its tuning.

    Raises:
        InputError: there is none.
    """
    if recipe not in shipped_names():
        raise InputError(f"recipe {recipe!r}: no model of it comes with the package; {', '.join(shipped_names())} does")
    return _FOLDER / recipe
