"""Cells as Arrow columns of a few types: text is `string`, lists are `list`, whole numbers are integers.

Bytes that are not text, and lone surrogates of JSON, become NUL characters: reading such a cell later is a fault.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

_NULL = "\\N"
"""What MySQL, PostgreSQL and Hive write for a missing value."""


_NUMERIC = ({int}, {float}, {int, float}, {bool})


def text_array(cells: Sequence[str]) -> pa.Array:
    """Cells of a csv file."""
    if _NULL in cells:
        cells = ["" if cell == _NULL else cell for cell in cells]
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:
        return pa.array([_readable(cell) for cell in cells], pa.string())


def json_array(cells: Sequence[Any]) -> pa.Array:
    """Values of one key of JSON lines; values of several types become text."""
    kinds = {type(cell) for cell in cells if cell is not None}
    try:
        if kinds == {list}:
            of_parts = {type(part) for cell in cells for part in cell or () if part is not None}
            if of_parts in _NUMERIC:
                return pa.array(cells)
            lists = [None if cell is None else [_json_text(part) for part in cell] for cell in cells]
            return pa.array(lists, pa.list_(pa.string()))
        if len(kinds) <= 1 or kinds == {int, float}:
            return pa.array(cells)
        return pa.array([_json_text(cell) for cell in cells], pa.string())
    except (UnicodeEncodeError, OverflowError, pa.ArrowException):
        texts = [_json_text(cell) for cell in cells]
        return pa.array([None if text is None else _readable(text) for text in texts], pa.string())


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables, without a copy of columns that keep their type.

    A column whose type changes between them, as in JSON lines, becomes numbers or else text.
    """
    columns = {}
    for name in tables[0].column_names:
        parts = [plain(table.column(name)) for table in tables]
        kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
        to = next(iter(kinds), pa.null())
        if len(kinds) > 1:
            numeric = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
            to = pa.float64() if numeric else pa.string()
        columns[name] = pa.chunked_array([_as(part, to) for part in parts], to)
    return pa.table(columns)


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Convert a column of any file to one of a few types; any other type stays as it is."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        return _unwrapped(array)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    if str(kind).startswith(("binary", "large_binary", "fixed_size_binary")):
        return _decoded(array)
    if pa.types.is_decimal(kind) and kind.scale == 0:
        return _whole_decimals(array)
    return _plain_lists(array) if "list" in str(kind).partition("<")[0] else array


def _unwrapped(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary).take(array.indices)
    if array.type.extension_name == "arrow.uuid":
        return pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
    return plain(array.storage)


def _whole_decimals(array: pa.Array) -> pa.Array:
    texts = array.cast(pa.string())
    try:
        return texts.cast(pa.int64())
    except pa.ArrowException:  # too long for an integer: an identifier
        return texts


def _plain_lists(array: pa.Array) -> pa.Array:
    held = array.type.value_type
    simple = pa.types.is_string(held) or pa.types.is_integer(held) or pa.types.is_floating(held)
    if pa.types.is_list(array.type) and simple:
        return array
    if pa.types.is_nested(held):
        return array
    lists = [None if cell is None else [_decoded_value(part) for part in cell] for cell in array.to_pylist()]
    inner = plain(pa.array([], held)).type if not pa.types.is_null(held) else pa.string()
    return pa.array(lists, pa.list_(inner))


def _decoded(array: pa.Array) -> pa.Array:
    try:
        return array.cast(pa.binary()).cast(pa.string())
    except pa.ArrowException:
        return pa.array([_decoded_value(value) for value in array.to_pylist()], pa.string())


def _decoded_value(value: object) -> object:
    return _readable(value.decode("utf-8", "surrogateescape")) if isinstance(value, bytes) else value


def _readable(text: str) -> str:
    return "".join("\x00" if "\ud800" <= char <= "\udfff" else char for char in text)


def _as(part: pa.Array, to: pa.DataType) -> pa.Array:
    if pa.types.is_string(to) and not pa.types.is_null(part.type):
        return part if pa.types.is_string(part.type) else pa.array(map(_json_text, part.to_pylist()), pa.string())
    return part.cast(to)


def _json_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
