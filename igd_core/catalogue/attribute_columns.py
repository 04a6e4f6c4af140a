"""One attribute of all items as an Arrow column: 1 to 8 bytes a value, which becomes a Python object only when read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, overload

import pyarrow as pa

from igd_core.catalogue.attribute_types import AttributeType, BaseType, JsonScalar, TypedValues, comparable, in_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

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
"""The number that stands for a JSON value that is text (see `igd_core.catalogue.attribute_types.Comparable`)."""


def arrow_type(kind: AttributeType) -> pa.DataType:
    """The Arrow type of a column of attribute type ``kind``."""
    base = _ARROW[kind.base]
    return pa.list_(base) if kind.is_list else base


def attribute_type(stored: pa.DataType) -> AttributeType:
    """The attribute type of a stored column. A column without a single value, of an earlier release, counts as text.

    Raises:
        ValueError: Arrow's type is none that attributes are stored as.
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
    """Store values in an Arrow array; a `ColumnValues` hands over its own array without a copy.

    Raises:
        pa.ArrowException, OverflowError, ValueError: a value is not of that type, or too large for it.
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


class ColumnValues(TypedValues):
    """A stored column as a sequence of JSON values; a list is a tuple, a missing value None."""

    def __init__(self, array: pa.Array) -> None:
        """``array``: of a type that `attribute_type` knows.

        Raises:
            ValueError: of another type.
        """
        self.type = attribute_type(array.type)
        kind = arrow_type(self.type)
        if self.type.is_list and array.type == kind:
            # Parquet renames a list's inner field, which Arrow's == ignores. Compare the names as well: else an
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

    def kept(self, is_kept: NDArray[np.bool_]) -> ColumnValues:
        """The values where ``is_kept``, ``(len,)``, is true, in order."""
        return ColumnValues(self.array.filter(pa.array(is_kept)))

    @overload
    def __getitem__(self, index: int) -> MetadataValue: ...
    @overload
    def __getitem__(self, index: slice) -> list[MetadataValue]: ...
    def __getitem__(self, index: int | slice) -> MetadataValue | list[MetadataValue]:
        if isinstance(index, slice):
            return [self._value(raw) for raw in self._plain[index].to_pylist()]
        return self._value(self._plain[index].as_py())

    def __iter__(self) -> Iterator[MetadataValue]:
        # In pieces: converting a million values at once holds the interpreter lock for half a second.
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
