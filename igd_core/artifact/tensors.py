"""Arrays as a safetensors file, in pieces that can be hashed and written without a copy of the arrays.

`safetensors.numpy.save` returns the same bytes joined, with two more copies of all arrays in memory.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_NAMES = {np.dtype("<i4"): "I32", np.dtype("<f4"): "F32"}
_ALIGNED_TO = 8


def tensor_pieces(arrays: Mapping[str, NDArray[Any]]) -> list[bytes | memoryview]:
    """The header, and each array's own memory; joined, what `safetensors.numpy.save` returns.

    Args:
        arrays: int32 or float32, of any shape, by names of ASCII letters, digits, dots and underscores.

    Raises:
        KeyError: an array of another dtype.
    """
    header: dict[str, Any] = {}
    pieces: list[bytes | memoryview] = []
    end = 0
    # Arrays of wide types come first; of these two, which are equally wide, float32.
    for name, array in sorted(arrays.items(), key=lambda each: (_NAMES[each[1].dtype], each[0])):
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        if array.size:
            pieces.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_TO)
    return [len(text).to_bytes(8, "little") + text, *pieces]
