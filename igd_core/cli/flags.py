"""Flags made of settings: `add_flags` gives each field of a model its flag, `given` reads back those that were used.

A flag has no default of its own: what was not given is not there, so that a recipe, a file or the model may say it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, TypeVar

from igd_core.checked_settings import CheckedSettings, Setting, settings_in
from igd_core.ranges import Several

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel


IN_FILE = "said_in_file"
"""Of the parsed arguments: what the file of ``--config`` says, by the flags' names."""
M = TypeVar("M", bound=CheckedSettings)


def add_flags(parser: argparse._ActionsContainer, model: type[BaseModel], *, required: bool = True) -> None:
    """Add a flag for each setting of ``model``; with ``required`` false, something else may give what is needed."""
    for setting in settings_in(model):
        parser.add_argument(
            "--" + setting.name.replace("_", "-"),
            dest=setting.name,
            default=argparse.SUPPRESS,
            required=required and setting.required,
            help=_help(setting),
            **_kind(setting),
        )


def given_as_flags(args: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The settings that the flags name, by the flags' names."""
    return {each.name: getattr(args, each.name) for each in settings_in(model) if hasattr(args, each.name)}


def given_by_name(args: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The settings that the flags name, or else the file of ``--config``, by the flags' names."""
    in_file: dict[str, Any] = getattr(args, IN_FILE, {})
    known = {each.name for each in settings_in(model)}
    return {name: value for name, value in in_file.items() if name in known} | given_as_flags(args, model)


def given(args: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The same, nested as the model is."""
    said, values = given_by_name(args, model), dict[str, Any]()
    for setting in settings_in(model):
        if setting.name in said:
            put(values, setting.path, said[setting.name])
    return values


def read(args: argparse.Namespace, model: type[M]) -> M:
    """What the flags, and the file that ``--config`` names, say of ``model``.

    Raises:
        InputError: a value that does not fit.
    """
    return model.read(given(args, model))


def put(values: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Set a value that lies in mappings within ``values``."""
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _kind(setting: Setting) -> dict[str, Any]:
    """What argparse has to know of a setting beside its name and its words."""
    if setting.kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if setting.choices:
        return {"choices": setting.choices}
    element = setting.element
    if setting.flag.repeated:
        choices = element.choices if element else None
        return {"action": "append", "metavar": setting.flag.metavar, "choices": choices}
    number = (element or setting).range
    if number is None:
        return {"metavar": setting.flag.metavar}
    kind = Several(number) if element else number
    return {"type": kind, "metavar": setting.flag.metavar or ("N,..." if element else "N")}


def _help(setting: Setting) -> str:
    words, default = (setting.info.description or "").replace("``", "`"), setting.info.get_default()
    is_nothing = default is None or default is False or default in ((), {})
    if setting.info.is_required() or is_nothing or not setting.flag.shows_default:
        return words.replace("%", "%%")
    shown = f"default: {_shown(default)}"
    return (f"{words} ({shown})" if words else shown).replace("%", "%%")


def _shown(value: object) -> str:
    if value is True:
        return "on"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(_shown, value)) if isinstance(value, tuple) else str(value)
