"""Many texts packed into one byte string, with where each begins; a Python string is made when one is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PackedTexts(Sequence[str]):
    """A sequence of texts that takes the bytes of each and 4 more.

    Attributes:
        data: all texts, UTF-8.
        at: ``(len + 1,)`` integers; text i is ``data[at[i]:at[i + 1]]``. A memoryview: Python reads its numbers faster
            than NumPy's.
    """

    def __init__(self, data: bytes, at: NDArray[np.integer]) -> None:
        self.data = data
        self.at = at.data

    @staticmethod
    def of(texts: Sequence[str]) -> PackedTexts:
        """Pack these texts; texts that are packed already come back as they are."""
        if isinstance(texts, PackedTexts):
            return texts
        encoded = [text.encode() for text in texts]
        at = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(each) for each in encoded], out=at[1:])
        return PackedTexts(b"".join(encoded), at)

    def __len__(self) -> int:
        return len(self.at) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index if index >= 0 else index + len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return str(self.data[self.at[row] : self.at[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for begin, end in pairwise(self.at):
            yield str(self.data[begin:end], "utf-8")
