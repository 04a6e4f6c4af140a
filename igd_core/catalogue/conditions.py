"""Conditions on items' attributes: as clients write them, and as the index evaluates them.

    {"genres": "Comedy"}                                    one value
    {"genres": ["Comedy", "Drama"]}                         one of several
    {"year": {"gte": 1990, "lt": 2000}, "genres": {"none_of": ["Horror"]}, "price": {"exists": true}}

All conditions must hold. Keys of the outer object are always attributes, those of an inner one always operators.
"""

from __future__ import annotations

import difflib
import heapq
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from igd_core.catalogue.attribute_types import AttributeType, BaseType, Comparable, comparable
from igd_core.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FILTER_COLUMNS = 16
MAX_FILTER_VALUES = 100
MAX_FILTER_CHARS = 1024
"""Characters of one text value, and of an attribute's name."""

OPERATORS: Final = ("any_of", "none_of", "gte", "gt", "lte", "lt", "exists")
_BOUNDS: Final = ("gte", "gt", "lte", "lt")
_WHOLE_TYPES: Final = frozenset({"integer", "date", "datetime"})
_SHOWN_CHARS = 64
_HALF = re.compile("[\ud800-\udfff]")
_NAMES_SHOWN = 20
_COMPARED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One end of a range; with ``strict``, the value itself lies outside."""

    value: Comparable
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition on one attribute. Equal conditions are equal objects, however a client wrote them.

    Attributes:
        any_of: sorted; the item has one of these.
        none_of: sorted; the item has none of these, and perhaps no value at all.
        lower: the same one value of the item lies above this and below ``upper``.
        upper: as ``lower``.
        exists: whether the item has a value; an empty list is none.
    """

    any_of: tuple[Comparable, ...] | None = None
    none_of: tuple[Comparable, ...] | None = None
    lower: Bound | None = None
    upper: Bound | None = None
    exists: bool | None = None

    def canonical(self) -> list[Any]:
        """The condition as JSON; equal conditions, and only they, have equal JSON."""
        bounds = [None if bound is None else [bound.value, bound.strict] for bound in (self.lower, self.upper)]
        return [self.any_of, self.none_of, *bounds, self.exists]


Conditions: TypeAlias = Mapping[str, Condition]
"""Conditions by attribute; all must hold."""


def conditions_of(written: object, types: Mapping[str, AttributeType]) -> dict[str, Condition]:
    """Check a filter as a client wrote it against the catalogue's attributes.

    Args:
        written: JSON as above: an object of attributes, each with a value, a list of values, or an object of operators.
        types: the catalogue's attributes.

    Raises:
        QueryError: names the field, the value and the attribute's type; or an unknown attribute and the most similar
            ones; or which limit the filter exceeds.
    """
    if not isinstance(written, Mapping):
        raise QueryError("filter", f"{_shown(written)} is no object of attributes")
    if len(written) > MAX_FILTER_COLUMNS:
        raise QueryError("filter", f"{len(written)} attributes; at most {MAX_FILTER_COLUMNS} are taken")
    return {name: _condition(name, asked, _known(name, types)) for name, asked in written.items()}


def shape_error(asked: object) -> str | None:
    """What is wrong with one attribute's part of a filter, whatever the attribute's type; None if nothing."""
    if isinstance(asked, Mapping):
        if not asked:
            return f"no operator; there are {', '.join(OPERATORS)}"
        unknown = [key for key in asked if key not in OPERATORS]
        if unknown:
            return f"no operator {_shown(unknown[0])}; there are {', '.join(OPERATORS)}"
        wrong = [f"{key}: {error}" for key, operand in asked.items() if (error := _operand_error(key, operand))]
        return wrong[0] if wrong else None
    return _values_error(asked if isinstance(asked, list) else [asked])


def _operand_error(operator: str, operand: object) -> str | None:
    if operator == "exists":
        return None if isinstance(operand, bool) else f"{_shown(operand)} is neither true nor false"
    if operator in _BOUNDS:
        return _values_error([operand])
    return _values_error(operand) if isinstance(operand, list) else f"{_shown(operand)} is no list of values"


def _values_error(values: Sequence[object]) -> str | None:
    if not 1 <= len(values) <= MAX_FILTER_VALUES:
        return f"{len(values)} values; 1 to {MAX_FILTER_VALUES} are taken"
    for value in values:
        if isinstance(value, str):
            if len(value) > MAX_FILTER_CHARS:
                return f"a text of {len(value)} characters; at most {MAX_FILTER_CHARS} are taken"
            if _HALF.search(value):
                return f"{_shown(value)} holds half a character"
        elif not isinstance(value, (int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            return f"expected text, a number, a boolean, a list of these or an object of operators; got {_shown(value)}"
    return None


def _condition(name: str, asked: object, kind: AttributeType) -> Condition:
    field = f"filter.{name}"
    error = shape_error(asked)
    if error is not None:
        raise QueryError(field, error)
    if not isinstance(asked, Mapping):
        return Condition(any_of=_operand(field, "any_of", asked if isinstance(asked, list) else [asked], kind))
    read = {operator: _operand(f"{field}.{operator}", operator, operand, kind) for operator, operand in asked.items()}
    lower = _tightest([Bound(value=read[key], strict=key == "gt") for key in ("gte", "gt") if key in read], max)
    upper = _tightest([Bound(value=read[key], strict=key == "lt") for key in ("lte", "lt") if key in read], min)
    if lower and upper and max(lower.value, upper.value) != upper.value:  # of one type
        told = ", ".join(f"{key} {_shown(asked[key])}" for key in _BOUNDS if key in asked)
        raise QueryError(field, f"{told}: no value can be both")
    return Condition(
        any_of=read.get("any_of"),
        none_of=read.get("none_of"),
        lower=_settled(lower, kind.base, step=1),
        upper=_settled(upper, kind.base, step=-1),
        exists=read.get("exists"),
    )


def _operand(field: str, operator: str, operand: Any, kind: AttributeType) -> Any:  # noqa: ANN401 - JSON of a shape that was checked
    if operator == "exists":
        return operand
    if operator not in _BOUNDS:
        return tuple(sorted({_typed(field, value, kind) for value in operand}))
    if kind.base == "boolean":
        raise QueryError(field, f"{_shown(operand)}: the attribute is {kind.name}, which has no order")
    # 1.5 is no whole number, but whole numbers lie above it.
    return _typed(field, operand, AttributeType(base="number") if kind.base == "integer" else kind, told=kind)


def _typed(field: str, value: object, kind: AttributeType, *, told: AttributeType | None = None) -> Comparable:
    try:
        return comparable(kind.base, value)
    except ValueError as error:
        raise QueryError(field, f"{_shown(value)} {error}; the attribute is {(told or kind).name}") from None


def _tightest(bounds: Sequence[Bound], choose: Callable[..., Any]) -> Bound | None:
    if not bounds:
        return None
    value = choose(bound.value for bound in bounds)
    return Bound(value=value, strict=any(bound.strict for bound in bounds if bound.value == value))


def _settled(bound: Bound | None, base: BaseType, *, step: int) -> Bound | None:
    """Make a bound of whole numbers include its end: "above 4" becomes "from 5"; ``step`` points into the range."""
    if bound is None or base not in _WHOLE_TYPES or isinstance(bound.value, str):
        return bound
    if isinstance(bound.value, float):  # not whole: `comparable` makes whole numbers ints
        return Bound(value=math.ceil(bound.value) if step > 0 else math.floor(bound.value))
    return Bound(value=bound.value + step * bound.strict)


def _known(name: object, types: Mapping[str, AttributeType]) -> AttributeType:
    if isinstance(name, str) and name in types:
        return types[name]
    known = sorted(types)
    near = nearest(str(name)[:_SHOWN_CHARS], known[:MAX_FILTER_CHARS])
    guess = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    more = ", ..." if len(known) > _NAMES_SHOWN else ""
    listed = ", ".join(known[:_NAMES_SHOWN]) or "none"
    raise QueryError("filter", f"no attribute {str(name)[:_SHOWN_CHARS]!r}{guess}; the catalogue has: {listed}{more}")


def nearest(text: str, known: Sequence[str]) -> list[str]:
    """Up to three of ``known`` that are most similar to ``text``, ignoring case, best first.

    Comparing two texts of 60 characters takes up to 0.2 ms, and this may run on an event loop: among many texts, only
    those that share the most pairs of characters are compared.
    """
    wanted = text[:_SHOWN_CHARS].casefold()
    by_folded: dict[str, str] = {}
    for one in known:
        by_folded.setdefault(one[:_SHOWN_CHARS].casefold(), one)
    candidates: Iterable[str] = by_folded
    if len(by_folded) > _COMPARED:
        pairs = _pairs(wanted)
        candidates = heapq.nlargest(_COMPARED, by_folded, key=lambda folded: _shared(pairs, _pairs(folded)))
    return [by_folded[folded] for folded in difflib.get_close_matches(wanted, candidates, n=3)]


def _pairs(text: str) -> set[str]:
    """Pairs of adjacent characters, begin and end included."""
    return set(map("".join, pairwise(f"\0{text}\0")))


def _shared(one: set[str], other: set[str]) -> float:
    """Dice's coefficient of two sets of pairs."""
    return 2 * len(one & other) / (len(one) + len(other))


def num_values(written: Mapping[str, object]) -> int:
    """How many values a filter names, before it is checked; checking takes 0.03 ms for each."""
    lists = [list(asked.values()) if isinstance(asked, Mapping) else [asked] for asked in written.values()]
    return sum(len(each) if isinstance(each, list) else 1 for operands in lists for each in operands)


def _shown(value: object) -> str:
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, (bool, type(None))) else None
    if text is None:
        text = f"an object of {len(value)}" if isinstance(value, Mapping) else None
    if text is None:
        text = f"an array of {len(value)}" if isinstance(value, list) else _cut(value)
    return text


def _cut(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > _SHOWN_CHARS * 3:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
