"""One attribute of all items, as Arrow holds it: 1 to 8 bytes a value, and no Python object until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, overload

import pyarrow as pa

from igd_core.catalogue.attribute_types import AttributeType, BaseType, JsonScalar, comparable, in_json

if TYPE_CHECKING:
    from igd_core.catalogue.items import MetadataValue

_PIECE = 1024
_ARROW: Final[dict[BaseType, pa.DataType]] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us", "UTC"),
}
_NUMBERS: Final[dict[BaseType, pa.DataType]] = {"date": pa.int32(), "datetime": pa.int64()}
"""What values that are text outside are as numbers (`igd_core.catalogue.attribute_types.Comparable`)."""


def arrow_type(kind: AttributeType) -> pa.DataType:
    """How a column of that type is stored."""
    base = _ARROW[kind.base]
    return pa.list_(base) if kind.is_list else base


def attribute_type(stored: pa.DataType) -> AttributeType:
    """The type of a stored column; one that never had a value (an earlier release's) counts as text.

    Raises:
        ValueError: no attribute is stored so.
    """
    is_list = bool(pa.types.is_list(stored))
    base = stored.value_type if is_list else stored
    if pa.types.is_null(base):
        return AttributeType(base="text", is_list=is_list)
    for name, kind in _ARROW.items():
        if base == kind:
            return AttributeType(base=name, is_list=is_list)
    raise ValueError(f"{stored} is no type of attributes")


def array_of(values: Sequence[MetadataValue], kind: AttributeType) -> pa.Array:
    """Values as Arrow holds them: without a copy where they come from there.

    Raises:
        pa.ArrowException, OverflowError, ValueError: a value is not of that type, or beyond what is stored.
    """
    if isinstance(values, ColumnValues) and values.array.type == arrow_type(kind):
        return values.array
    numbers = _NUMBERS.get(kind.base)
    if numbers is None:
        return pa.array(values, arrow_type(kind))
    if not kind.is_list:
        plain = [None if value is None else comparable(kind.base, value) for value in values]
        return pa.array(plain, numbers).cast(arrow_type(kind))
    several = [
        None if not isinstance(value, tuple) else [comparable(kind.base, one) for one in value] for value in values
    ]
    lists = pa.array(several, pa.list_(numbers))
    return lists.cast(arrow_type(kind))


class ColumnValues(Sequence["MetadataValue"]):
    """A stored column as a sequence of JSON values: those of a list in a tuple, None where there is none."""

    def __init__(self, array: pa.Array) -> None:
        """``array``: of a type that `attribute_type` knows.

        Raises:
            ValueError: of another type.
        """
        self.type = attribute_type(array.type)
        kind = arrow_type(self.type)
        if self.type.is_list and array.type == kind:
            # A list's item has another name in a file that Parquet wrote, which Arrow's == passes over: by it, an
            # artifact that is loaded and saved again would differ.
            buffers, values = array.buffers()[:2], array.values
            array = pa.ListArray.from_buffers(kind, len(array), buffers, offset=array.offset, children=[values])
        self.array = array if array.type == kind else array.cast(kind)
        base = _NUMBERS.get(self.type.base)
        if base is None:
            self._plain = self.array
        else:
            self._plain = self.array.cast(pa.list_(base) if self.type.is_list else base)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> MetadataValue: ...
    @overload
    def __getitem__(self, index: slice) -> list[MetadataValue]: ...
    def __getitem__(self, index: int | slice) -> MetadataValue | list[MetadataValue]:
        if isinstance(index, slice):
            return [self._value(raw) for raw in self._plain[index].to_pylist()]
        return self._value(self._plain[index].as_py())

    def __iter__(self) -> Iterator[MetadataValue]:
        # Piece by piece: converting a million at once keeps the interpreter lock for half a second.
        for begin in range(0, len(self), _PIECE):
            yield from self[begin : begin + _PIECE]

    def _value(self, raw: JsonScalar | list[JsonScalar] | None) -> MetadataValue:
        if raw is None:
            return None
        if isinstance(raw, list):
            return tuple(self._single(one) for one in raw)
        return self._single(raw)

    def _single(self, raw: JsonScalar) -> JsonScalar:
        return in_json(self.type.base, raw) if self.type.base in _NUMBERS else raw
