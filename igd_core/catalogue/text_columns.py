"""Packed texts as Arrow columns, and back; no text becomes a Python object on the way."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from igd_core.catalogue.packed_texts import PackedTexts, starts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_BYTES = np.iinfo(np.int32).max
"""Of the texts in one Arrow array."""


def text_column(texts: Sequence[str], *, most_bytes: int = MOST_BYTES) -> pa.ChunkedArray:
    """Texts as a column of Arrow's ``string``, packed ones without a copy: one chunk, more above ``most_bytes``."""
    if not isinstance(texts, PackedTexts):
        return _chunked(pa.array(texts, pa.string()))
    starts, data = np.asarray(texts.at), pa.py_buffer(texts.data)
    bounds = [0]
    while bounds[-1] < len(texts):
        end = int(np.searchsorted(starts, int(starts[bounds[-1]]) + most_bytes, side="right")) - 1
        bounds.append(max(end, bounds[-1] + 1))
    chunks = [
        pa.StringArray.from_buffers(
            end - begin,
            pa.py_buffer((starts[begin : end + 1] - starts[begin]).astype(np.int32)),
            data.slice(int(starts[begin]), int(starts[end] - starts[begin])),
        )
        for begin, end in pairwise(bounds)
    ]
    return pa.chunked_array(chunks, pa.string())


def packed_texts(column: pa.ChunkedArray | pa.Array) -> PackedTexts:
    """A column of ``string`` without nulls as packed texts; its texts are copied once."""
    pieces, lengths = [], []
    for chunk in _chunked(column).chunks:
        _, at, data = chunk.buffers()
        starts = (
            np.frombuffer(at, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1] if at else np.zeros(1, np.int32)
        )
        lengths.append(np.diff(starts))
        if data is not None:
            pieces.append(memoryview(data)[int(starts[0]) : int(starts[-1])])
    whole = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)
    return PackedTexts(b"".join(pieces), starts_of(whole))


def _chunked(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column], column.type)
