"""JSON lines: one object a line."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.datasets.arrays import json_array
from igd_core.datasets.encodings import Encoding, encoding_of
from igd_core.datasets.faults import shown
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from igd_core.datasets.faults import Faults
    from igd_core.datasets.sources import Reading, Source

MAX_LINE_CHARS = 64 << 20
_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonFile:
    """A file of JSON lines.

    Attributes:
        columns: keys of the first thousand objects, or of all.
        notes: what a person should know about how the file is read.
        source: the file.
        encoding: of the file.
    """

    columns: Sequence[str]
    notes: Sequence[str]
    source: Source
    encoding: Encoding

    def batches(
        self, positions: Sequence[int], batch_rows: int, faults: Faults
    ) -> Iterator[tuple[NDArray[np.int64], list[pa.Array]]]:
        """Line numbers, and the values of the keys at these positions; notes lines that are not an object.

        Raises:
            DataError: the rest of the file cannot be read.
        """
        names = [self.columns[place] for place in positions]
        objects = _objects(self.source, self.encoding, faults)
        while batch := list(itertools.islice(objects, batch_rows)):
            numbers = np.array([number for number, _ in batch], np.int64)
            yield numbers, [json_array([entry.get(name) for _, entry in batch]) for name in names]


def open_json(source: Source, reading: Reading, *, every_key: bool = False) -> JsonFile:
    """Open a file of JSON lines; its columns are the keys of the first thousand objects, or of all.

    Raises:
        DataError: the file cannot be read, or none of its first lines is an object.
    """
    encoding = encoding_of(source, reading.encoding)
    names: dict[str, None] = {}
    first = ""
    for line in itertools.islice(_lines(source, encoding), None if every_key else _LOOKED_AT):
        entry = _object(line)
        if not names and isinstance(entry, dict) and entry and all(isinstance(value, dict) for value in entry.values()):
            raise DataError(
                f"{source.name}: one JSON object of columns; JSON is read as one object a row, each on a line"
            )
        names |= dict.fromkeys(entry if isinstance(entry, dict) else ())
        first = first or line.strip()
    if not names:
        raise DataError(f"{source.name}: row 1: {shown(first)} is no JSON object")
    notes = [encoding.note] if encoding.note else []
    return JsonFile(columns=list(names), notes=notes, source=source, encoding=encoding)


def _objects(source: Source, encoding: Encoding, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(source, encoding), start=1):
        if line.isspace():
            continue
        entry = _object(line)
        if isinstance(entry, dict):
            yield number, entry
        else:
            faults.add("", entry, [number], [shown(line.strip())])


def _lines(source: Source, encoding: Encoding) -> Iterator[str]:
    with source.open() as raw:
        text = encoding.text_of(raw)
        try:
            while line := text.readline(MAX_LINE_CHARS):
                if len(line) == MAX_LINE_CHARS and line[-1] not in "\r\n":
                    raise DataError(f"{source.name}: a line is longer than {MAX_LINE_CHARS >> 20} Mi characters")
                yield line
        finally:
            text.detach()


def _object(line: str) -> dict[str, Any] | str:
    """The object of one line, or what is wrong with the line."""
    try:
        entry = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return "is not JSON"
    return entry if isinstance(entry, dict) else "is no JSON object"


def _no_number(constant: str) -> None:
    raise ValueError(constant)
