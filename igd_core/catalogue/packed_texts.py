"""Many texts packed into one byte string, with where each begins; a Python string is made when one is read."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_BLOCK = 1 << 16  # texts that are Python objects, or under NumPy's masks, at once
_SPACE, _LAST_PRINTABLE = 0x20, 0x7E


class PackedTexts(Sequence[str]):
    """A sequence of texts that takes the bytes of each and 4 more, or 8 if all are 2 GiB or more.

    Equal to any sequence of the same texts.

    Attributes:
        data: all texts, UTF-8.
        at: ``(len + 1,)`` integers; text i is ``data[at[i]:at[i + 1]]``. A memoryview: Python reads its numbers faster
            than NumPy's.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: bytes, at: NDArray[np.integer]) -> None:
        self.data = data
        self.at = at.data

    @staticmethod
    def of(texts: Iterable[str]) -> PackedTexts:
        """Pack these texts; texts that are packed already come back as they are.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        if isinstance(texts, PackedTexts):
            return texts
        blocks, lengths = [], array("q")
        rest = iter(texts)
        while block := [text.encode() for text in islice(rest, _BLOCK)]:
            lengths.extend(map(len, block))
            blocks.append(b"".join(block))
        return PackedTexts(b"".join(blocks), starts_of(np.array(lengths, np.int64)))

    def __len__(self) -> int:
        return len(self.at) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            if step == 1:
                return list(self._between(begin, max(begin, end)))
            return [self[row] for row in range(begin, end, step)]
        row = index if index >= 0 else index + len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return str(self.data[self.at[row] : self.at[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        return self._between(0, len(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedTexts):
            return self is other or (self.data == other.data and np.array_equal(self._starts(), other._starts()))
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each text, ``(len,)`` int64."""
        return np.diff(self._starts()).astype(np.int64, copy=False)

    def odd_rows(self, *, also: bytes = b"") -> NDArray[np.int64]:
        """Rows of the texts that are not plain, ascending, ``(m,)`` int64.

        Plain texts are of printable ASCII, not empty, without a space at an end, two in a row, or a byte of ``also``.
        Whoever checks or cleans texts need look at the others alone: 0.1 us a text instead of 1 or more.
        """
        is_odd = np.ones(256, bool)
        is_odd[_SPACE : _LAST_PRINTABLE + 1] = False
        is_odd[list(also)] = True
        starts, codes = self._starts(), np.frombuffer(self.data, np.uint8)
        found = []
        for begin in range(0, len(self), _BLOCK):
            at = starts[begin : begin + _BLOCK + 1]
            block, at = codes[at[0] : at[-1]], (at - at[0]).astype(np.int64, copy=False)
            odd = at[1:] == at[:-1]
            odd[np.searchsorted(at, np.flatnonzero(is_odd[block]), side="right") - 1] = True
            spaces = np.flatnonzero(block == _SPACE)
            odd[np.searchsorted(at, spaces[1:][np.diff(spaces) == 1], side="right") - 1] = True
            if len(block):
                inside = ~odd  # an empty text has no first byte
                odd[inside] = (block[at[:-1][inside]] == _SPACE) | (block[at[1:][inside] - 1] == _SPACE)
            found.append(np.flatnonzero(odd) + begin)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def changed(self, rows: NDArray[np.int64], change: Callable[[str], str]) -> PackedTexts:
        """These texts, with ``change(text)`` in place of those in ``rows``, which ascend."""
        if not len(rows):
            return self
        lengths = self.lengths().copy()
        blocks = []
        bounds = np.searchsorted(rows, np.arange(0, len(self) + _BLOCK, _BLOCK)).tolist()
        for first, (begin, end) in zip(range(0, len(self), _BLOCK), pairwise(bounds), strict=True):
            pieces, done = [], self.at[first]
            for row in rows[begin:end].tolist():
                text = change(self[row]).encode()
                pieces += [self.data[done : self.at[row]], text]
                done = self.at[row + 1]
                lengths[row] = len(text)
            pieces.append(self.data[done : self.at[min(first + _BLOCK, len(self))]])
            blocks.append(b"".join(pieces))
        return PackedTexts(b"".join(blocks), starts_of(lengths))

    def kept(self, is_kept: NDArray[np.bool_]) -> PackedTexts:
        """The texts where ``is_kept``, ``(len,)``, is true, in order."""
        lengths, codes = self.lengths(), np.frombuffer(self.data, np.uint8)
        blocks = []
        for begin in range(0, len(self), _BLOCK):
            end = min(begin + _BLOCK, len(self))
            held = np.repeat(is_kept[begin:end], lengths[begin:end])
            blocks.append(codes[self.at[begin] : self.at[end]][held].tobytes())
        return PackedTexts(b"".join(blocks), starts_of(lengths[is_kept]))

    def _between(self, begin: int, end: int) -> Iterator[str]:
        data = self.data
        for first, last in pairwise(self.at[begin : end + 1]):
            yield str(data[first:last], "utf-8")

    def _starts(self) -> NDArray[np.integer]:
        return np.asarray(self.at)


def starts_of(lengths: NDArray[np.number]) -> NDArray[np.integer]:
    """``(n + 1,)``: where each text begins, and where the last one ends; int32 if that is enough."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts.astype(np.int32) if starts[-1] <= np.iinfo(np.int32).max else starts
