"""Settings that are written once: name, type, range, default and words of a field make its flag, its page, its checks.

``epochs: Count = Field(default=3, description="passes over the rows, at most")`` in a `CheckedSettings` is all there is
to write: `igd_core.cli.flags` makes ``--epochs`` of it, and `CheckedSettings.read` takes it from a file.
"""

from __future__ import annotations

import difflib
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from igd_core.errors import InputError
from igd_core.ranges import MOST, MOST_REAL, MOST_SEED, MOST_WHOLE, Real, Whole

T = TypeVar("T")
_NEEDED = {
    "bool_type": "true or false is needed",
    "dict_type": "names and values are needed",
    "mapping_type": "names and values are needed",
    "path_type": "a path is needed, as text",
    "string_type": "a text is needed",
    "tuple_type": "a list is needed",
}
_OUT_OF_RANGE = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """How a field stands on the command line, where its type does not say it; a part of the field's ``Annotated``.

    Attributes:
        name: of the flag and in a file, where it is not the field's: ``scorer_entries`` for ``most``.
        metavar: stands for the value in the help.
        repeated: the flag may be given more than once; the field gets a list of texts.
        shows_default: whether the help ends with it.
        exists: whether there is a flag at all; some fields only code sets.
    """

    name: str | None = None
    metavar: str | None = None
    repeated: bool = False
    shows_default: bool = True
    exists: bool = True


def comma_separated(value: object) -> object:
    """``"a, b"`` is two words; what is no text stays as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def each_once(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values without those that stand there before."""
    return tuple(dict.fromkeys(values))


Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrNone = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
Amount = Annotated[float, Field(ge=0, le=MOST_REAL)]
PositiveAmount = Annotated[float, Field(gt=0, le=MOST_REAL)]
Listed = Annotated[tuple[T, ...], Field(strict=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Several = Annotated[tuple[T, ...], Field(strict=False, min_length=1), AfterValidator(each_once)]
"""Numbers with commas between them on the command line, at least one, each kept once: ``Several[Share]``."""
Words = Annotated[
    tuple[T, ...],
    Field(strict=False),
    BeforeValidator(comma_separated),
    AfterValidator(each_once),
    Flag(metavar="NAME,..."),
]
"""The same of words, which may be none: ``Words[str]``."""
Directory = Annotated[Path, Field(strict=False), Flag(metavar="DIR")]
File = Annotated[Path, Field(strict=False), Flag(metavar="FILE")]


class CheckedSettings(BaseModel):
    """Values that are checked when they are set and never change; names that are no field are refused.

    Types are strict: a yaml file writes ``1e-4`` as text and ``yes`` as true, and neither is what was meant. `read` is
    for what people wrote; the class itself raises pydantic's ``ValidationError``, a mistake of the caller's code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Check ``values`` by name, as a file or flags give them; ``where`` says in a message what the whole is.

        Raises:
            InputError: an unknown name, or a value of another type or out of range; one line that names both.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            told = _complaint(cls, dict(error.errors()[0]))
            raise InputError(f"{where}: {told}" if where else told) from None

    @classmethod
    def complaint(cls, values: Mapping[str, Any]) -> str | None:
        """What is wrong with one of ``values``, which need not be all; nested names as flags have them."""
        try:
            cls.model_validate(dict(values))
        except ValidationError as error:
            found = (dict(each) for each in error.errors() if each["loc"] and each["type"] != "missing")
            return next((_complaint(cls, each, joint="_") for each in found), None)
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values, inverse of `read`."""
        return self.model_dump(mode="json")

    def replaced(self, **changes: object) -> Self:
        """A copy with other values, checked as the first ones were."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(values | changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field, told apart for flags and messages.

    Attributes:
        path: names of the field and of the fields it lies in: ``("lora", "rank")``.
        info: the field as pydantic has it.
        kind: its type, without ``Annotated`` and without ``None``.
        flag: how it stands on the command line.
        required: whether a value is needed whatever else is set.
        bounds: what ``Field`` says of a number: ``ge``, ``gt``, ``le``, ``lt``.
    """

    path: tuple[str, ...]
    info: FieldInfo
    kind: Any
    flag: Flag
    required: bool = False
    bounds: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the flag's value and in a file: ``lora_rank``."""
        return self.flag.name or "_".join(self.path)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The texts that it may be, where they are listed."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else None

    @property
    def element(self) -> Setting | None:
        """One of its values, where it holds several."""
        if typing.get_origin(self.kind) is not tuple:
            return None
        return _setting(self.path, FieldInfo.from_annotation(typing.get_args(self.kind)[0]))

    @property
    def range(self) -> Whole | Real | None:
        """Of a number."""
        bounds = self.bounds
        if self.kind is int:
            return Whole(self.name, least=int(bounds.get("ge", 0)), most=int(bounds.get("le", MOST_WHOLE)))
        if self.kind is not float:
            return None
        return Real(
            self.name,
            least=bounds.get("gt", bounds.get("ge", 0.0)),
            most=bounds.get("lt", bounds.get("le", MOST_REAL)),
            above="gt" in bounds,
            below="lt" in bounds,
        )


def settings_in(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every field of ``model`` with a flag, in its order; fields of models within it in that one's place."""
    for name, info in model.model_fields.items():
        setting = _setting((*path, name), info)
        if isinstance(setting.kind, type) and issubclass(setting.kind, BaseModel):
            for within in settings_in(setting.kind, setting.path):
                yield replace(within, required=within.required and setting.required)
        elif setting.flag.exists:
            yield setting


def _setting(path: tuple[str, ...], info: FieldInfo) -> Setting:
    kind, metadata = info.annotation, list(info.metadata)
    while True:
        if typing.get_origin(kind) is Annotated:
            kind, *more = typing.get_args(kind)
            metadata += [part for at in more for part in (at.metadata if isinstance(at, FieldInfo) else [at])]
        elif typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)  # the one that a flag takes
        else:
            break
    bounds = {name: getattr(at, name) for at in metadata for name in ("ge", "gt", "le", "lt") if hasattr(at, name)}
    flag = next((at for at in reversed(metadata) if isinstance(at, Flag)), Flag())
    return Setting(path=path, info=info, kind=kind, flag=flag, required=info.is_required(), bounds=bounds)


def no_such_setting(name: str, known: Iterable[str]) -> str:
    """That there is none, and which one may be meant."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"there is no setting {name!r}" + (f"; is {near[0]!r} meant?" if near else "")


def _complaint(model: type[BaseModel], found: Mapping[str, Any], joint: str = ".") -> str:
    """One line on what pydantic found: the name, the value and what is needed."""
    path = tuple(part for part in found["loc"] if isinstance(part, str))  # without places in lists
    known = {setting.path: setting for setting in settings_in(model)}
    setting, inside = known.get(path), joint.join(path[:-1])
    if found["type"] == "extra_forbidden":
        said = no_such_setting(path[-1], (at[-1] for at in known if at[:-1] == path[:-1]))
        return f"{inside}: {said}" if inside else said
    name = setting.name if setting and joint == "_" else joint.join(path)
    if found["type"] == "value_error":
        said = str(found["ctx"]["error"])
        return said if said.partition(":")[0].startswith(name) else f"{name}: {said}"
    if found["type"] == "missing":
        return f"{name}: is needed"
    return f"{name}: {_misfit((setting.element or setting) if setting else None, found)}"


def _misfit(setting: Setting | None, found: Mapping[str, Any]) -> str:
    """What of a value does not fit."""
    if setting is not None and not setting.info.repr:
        return f"{found['msg'].lower()} (the value is not shown)"
    value, number = found["input"], setting.range if setting else None
    if number is not None and found["type"] in _OUT_OF_RANGE:
        return f"{value} is not in {number}"
    if found["type"] in {"too_short", "too_long"}:
        most = found["ctx"].get("max_length")
        return "at least one value is needed" if most is None else f"{len(value)} values; {most} at most"
    if setting is not None and setting.choices:
        return f"{reprlib.repr(value)} is not one of {', '.join(setting.choices)}"
    kind = type(value).__name__
    said = f"{reprlib.repr(value)} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if number is None or found["type"] in _NEEDED:
        return f"{said}; {_NEEDED.get(found['type'], found['msg'].lower())}"
    wanted = "whole number" if isinstance(number, Whole) else "number"
    return f"{said}; a {wanted} in {number} is needed{_as_number(value)}"


def _as_number(value: object) -> str:
    """Advice on a text that stands for a number."""
    try:
        return f" ({float(value):.10g} without quotes)" if isinstance(value, str) else ""
    except ValueError:
        return ""
