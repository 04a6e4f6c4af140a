"""A column of text as its bytes and where each begins: no Python string until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import pyarrow as pa

_PIECE = 1024


class Texts(Sequence[str]):
    """Texts in one byte string: 4 bytes for each, and its own.

    Attributes:
        data: all texts, UTF-8.
        at: ``(len + 1,)`` int32; text i is ``data[at[i]:at[i + 1]]``. A memoryview: Python reads its numbers faster
            than NumPy's, and a text from its bytes faster than an Arrow scalar.
    """

    def __init__(self, column: pa.ChunkedArray | pa.Array) -> None:
        """``column``: of type string, nothing missing."""
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        _, at, data = whole.buffers()
        self.data: bytes = b"" if data is None else data.to_pybytes()
        self.at = memoryview(at).cast("i")[whole.offset : whole.offset + len(whole) + 1]
        buffers = [None, at, pa.py_buffer(self.data)]
        self._values = pa.Array.from_buffers(pa.string(), len(whole), buffers, offset=whole.offset)

    @staticmethod
    def of(texts: Sequence[str]) -> Texts:
        """These texts; themselves if they are held so already."""
        return texts if isinstance(texts, Texts) else Texts(pa.array(texts, pa.string()))

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [str(value) for value in self._values[index].to_pylist()]
        row = index if index >= 0 else index + len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return str(self.data[self.at[row] : self.at[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        # Piece by piece: converting a million at once keeps the interpreter's lock, and so stops the event loop of a
        # server that loads a new version, for half a second.
        for begin in range(0, len(self), _PIECE):
            yield from self._values.slice(begin, _PIECE).to_pylist()
