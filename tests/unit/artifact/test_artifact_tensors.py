import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from igd_core.artifact.files import EncodedPart
from igd_core.artifact.tensors import tensor_pieces

NAMES = st.text("abcxyz._019", min_size=1, max_size=6).filter(lambda name: name != "__metadata__")
ARRAYS = arrays_of.arrays(st.sampled_from([np.int32, np.float32]), arrays_of.array_shapes(min_side=0, max_dims=3))


@given(st.dictionaries(NAMES, ARRAYS, max_size=5))
def test_the_pieces_are_a_safetensors_file_to_the_byte(arrays: dict[str, np.ndarray]) -> None:
    assert b"".join(tensor_pieces(arrays)) == safetensors.numpy.save(arrays)


def test_an_array_that_is_not_contiguous_is_stored_in_its_own_order() -> None:
    whole = np.arange(12, dtype=np.int32).reshape(3, 4)
    read = safetensors.numpy.load(b"".join(tensor_pieces({"a": whole[:, ::2]})))
    assert read["a"].tolist() == whole[:, ::2].tolist()


def test_another_dtype_is_refused() -> None:
    with pytest.raises(KeyError):
        tensor_pieces({"a": np.zeros(3, np.int64)})


def test_hashing_and_writing_a_part_copies_nothing(tmp_path: Path) -> None:
    arrays = {"a": np.arange(2_000_000, dtype=np.int32), "b": np.zeros(500_000, np.float32)}
    tracemalloc.start()
    part = EncodedPart(pieces=tuple(tensor_pieces(arrays)))
    record = part.record()
    part.write(tmp_path / "part")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert record.bytes == (tmp_path / "part").stat().st_size > 10_000_000
    assert peak < 500_000
