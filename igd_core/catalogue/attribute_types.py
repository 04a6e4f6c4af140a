"""Types of item attributes, and the two forms of their values.

JSON is the form in files, in HTTP and in `Catalogue.metadata`: text, a number, true or false; dates and times are
ISO 8601 text. `Comparable` is the form for comparing: it sorts as the type does.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

BaseType: TypeAlias = Literal["text", "integer", "number", "boolean", "date", "datetime"]
BASE_TYPES: Final[tuple[BaseType, ...]] = get_args(BaseType)
IGNORE: Final = "ignore"
"""Stands for a type: the column is no attribute."""

JsonScalar: TypeAlias = str | int | float | bool
Comparable: TypeAlias = str | int | float
"""Text in NFC; whole numbers as int, others as float; 0 and 1 for booleans; days or microseconds since 1970, UTC."""


class TypedValues(Sequence["JsonScalar | tuple[JsonScalar, ...] | None"]):
    """A column whose values are of its type by the way it is stored, so that nobody need look at each of them.

    Equal to any sequence of the same values.

    Attributes:
        type: of every value that is not None.
    """

    type: AttributeType
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))


EXAMPLES: Final[dict[BaseType, str]] = {
    "text": '"abc"',
    "integer": "7",
    "number": "9.5",
    "boolean": "true or false",
    "date": '"2001-05-17"',
    "datetime": '"2001-05-17T10:00:00Z"',
}
_LIST_PREFIX = "list-of-"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATETIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z| ?[+-][0-9]{2}:?[0-9]{2})"
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_EPOCH_DAY = _EPOCH.date().toordinal()
_TOO_LARGE = 2**1024  # no float is
_EXACT = 2**53
_MICROSECOND = datetime.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeType:
    """The type of an attribute: of an item's one value, or of each value in its list."""

    base: BaseType
    is_list: bool = False

    @property
    def name(self) -> str:
        """The type's name in files, flags and the API, such as ``integer`` or ``list-of-text``."""
        return _LIST_PREFIX * self.is_list + self.base

    @staticmethod
    def of(name: str) -> AttributeType:
        """The type with this name.

        Raises:
            ValueError: no type has it; the message names all types.

        >>> AttributeType.of("list-of-date")
        AttributeType(base='date', is_list=True)
        """
        base = name.removeprefix(_LIST_PREFIX)
        for known in BASE_TYPES:
            if base == known:
                return AttributeType(base=known, is_list=name != base)
        raise ValueError(
            f"{name[:64]!r} is no type; there are {', '.join(BASE_TYPES)}, and {_LIST_PREFIX} each of them"
        )


def comparable(base: BaseType, value: object) -> Comparable:
    """Turn a JSON value of type ``base`` into the form that is compared.

    No type takes another's values: ``true`` is no 1, ``"2001"`` is no 2001, and 1.5 is no integer (1.0 is, as in JSON).

    Raises:
        ValueError: the value is of another type; the message continues a sentence that begins with the value.
    """
    match base, value:
        case "text", str():
            return unicodedata.normalize("NFC", value)
        case "boolean", bool():
            return int(value)
        case (("integer" | "number"), int() | float()) if not isinstance(value, bool):
            number = _number(value)
            if base == "number" or isinstance(number, int):
                return number
        case "date", str() if _DATE.fullmatch(value):
            return _day(value)
        case "datetime", str() if _DATETIME.fullmatch(value):
            return _microseconds(value)
    raise ValueError(f"is no {_noun(base)}, such as {EXAMPLES[base]}")


def in_json(base: BaseType, value: Comparable) -> JsonScalar:
    """Turn a compared form back into JSON; times in UTC.

    >>> in_json("date", comparable("date", "2001-05-17"))
    '2001-05-17'
    """
    if isinstance(value, str):
        return value
    match base:
        case "boolean":
            return bool(value)
        case "date":
            return datetime.date.fromordinal(_EPOCH_DAY + int(value)).isoformat()
        case "datetime":
            return (_EPOCH + int(value) * _MICROSECOND).isoformat().removesuffix("+00:00") + "Z"
        case "number":
            return value if abs(value) < _EXACT else float(value)
        case _:
            return value


def _noun(base: BaseType) -> str:
    return "date and time with a zone" if base == "datetime" else base


def _number(value: float) -> int | float:
    """A whole number becomes an int, so that 1 and 1.0 are equal and -0.0 is 0."""
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:
        raise ValueError("is too large for a number")
    if not math.isfinite(value):
        raise ValueError("is no finite number")
    whole = int(value)
    return whole if whole == value else value


def _day(text: str) -> int:
    try:
        return datetime.date.fromisoformat(text).toordinal() - _EPOCH_DAY
    except ValueError:
        raise ValueError("is no day of the calendar") from None


def _microseconds(text: str) -> int:
    text = text.replace(" +", "+").replace(" -", "-")  # a blank before the zone, as shops export it
    try:
        return (datetime.datetime.fromisoformat(text).astimezone(datetime.UTC) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise ValueError("is no instant of the calendar") from None
