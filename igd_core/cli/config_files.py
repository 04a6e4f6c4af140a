"""``--config FILE``: what a command's flags may say, kept in a file; and ``--print-config``, which writes one.

A file is TOML, or JSON if its name ends so. Its names are those of the flags, ``lora_rank`` for ``--lora-rank``; a flag
goes before the file. `add_config_flags` is called once all other flags are there.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from igd_core.checked_settings import CheckedSettings, no_such_setting, settings_in
from igd_core.cli.flags import IN_FILE, put
from igd_core.errors import InputError
from igd_core.regular_files import read_regular


def add_config_flags(parser: argparse.ArgumentParser, *models: type[CheckedSettings]) -> None:
    """Add the two flags to a parser whose other flags are those of ``models``."""
    files = parser.add_argument_group(
        "settings in a file", "a flag goes before the file: docs/reference/cli.md#settings-in-a-file"
    )
    files.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        action=_ReadConfig,
        models=models,
        help="TOML or JSON, with the names of the flags",
    )
    files.add_argument("--print-config", action="store_true", help="print the settings as such a file, and stop")


class _ReadConfig(argparse.Action):
    """Reads the file; `igd_core.cli.flags.given` looks there for what no flag says."""

    def __init__(self, *, models: Sequence[type[CheckedSettings]], **usual: Any) -> None:  # noqa: ANN401 - argparse's
        super().__init__(**usual)
        self.models = models

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, _: str | None = None
    ) -> None:
        path = Path(str(values))
        setattr(namespace, IN_FILE, read_config_file(path, self.models))
        for action in parser._actions:  # argparse offers no other way to say that the file may hold it
            action.required = False


def said_in_file(args: argparse.Namespace) -> dict[str, Any]:
    """What the file says, by the flags' names; nothing where none was given."""
    said: dict[str, Any] = getattr(args, IN_FILE, {})
    return said


def read_config_file(path: Path, models: Sequence[type[CheckedSettings]]) -> dict[str, Any]:
    """What the file says, by the flags' names, each value checked.

    Raises:
        InputError: it cannot be read, or a name or a value is none of the command's; one line.
    """
    content = _content(path)
    known = {setting.name: (model, setting) for model in models for setting in settings_in(model)}
    parts: dict[type[CheckedSettings], dict[str, Any]] = {model: {} for model in models}
    for name, value in content.items():
        if name not in known:
            raise InputError(f"{path}: {no_such_setting(name, known)}")
        model, setting = known[name]
        put(parts[model], setting.path, value)
    for model, values in parts.items():
        if (complaint := model.complaint(values)) is not None:
            raise InputError(f"{path}: {complaint}")
    return content


def _content(path: Path) -> dict[str, Any]:
    try:
        text = read_regular(path).decode("utf-8-sig")  # editors on Windows begin a file with a mark
        if path.suffix != ".json":
            return tomllib.loads(text)
        content = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not names and values")
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What TOML does by itself: a name that stands twice is a mistake."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return made


def print_config(*settings: BaseModel) -> None:
    """Print all of them as a file that ``--config`` takes, with the words of each; what may be secret is left out."""
    for each in settings:
        for setting in settings_in(type(each)):
            value: Any = each
            for part in setting.path:
                value = getattr(value, part, None)
            line = f"{setting.name} = {toml(value)}"
            if value is None or not setting.info.repr:
                line = f"# {setting.name} is not {'set' if value is None else 'shown'}"
            print(f"# {setting.info.description}\n{line}\n")


def toml(value: object) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(name)} = {toml(inside)}" for name, inside in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
