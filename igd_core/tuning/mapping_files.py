"""Small yaml and json files that hold names and values: recipes, and the shape of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from igd_core.errors import InputError
from igd_core.regular_files import read_regular

if TYPE_CHECKING:
    from pathlib import Path


def read_mapping(path: Path) -> Mapping[str, Any]:
    """What a yaml or json file holds.

    Raises:
        InputError: it cannot be read, or holds something else than names and values.
    """
    import yaml

    try:
        content = yaml.safe_load(read_regular(path).decode("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a mapping")
    return content
