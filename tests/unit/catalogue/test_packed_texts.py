import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.catalogue import packed_texts
from igd_core.catalogue.packed_texts import PackedTexts, starts_of
from igd_core.catalogue.text_columns import packed_texts as packed_column
from igd_core.catalogue.text_columns import text_column

TEXTS = st.lists(st.text("aB &~\x7f\x1f\n\x85é千", max_size=5), max_size=12)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_texts, "_BLOCK", 3)


@given(TEXTS, st.integers(-14, 14), st.integers(-14, 14))
def test_packed_texts_read_as_the_list_they_were_made_of(texts: list[str], begin: int, end: int) -> None:
    packed = PackedTexts.of(iter(texts))
    assert len(packed) == len(texts)
    assert list(packed) == texts
    assert packed[begin:end] == texts[begin:end]
    assert packed[begin:end:2] == texts[begin:end:2]
    assert packed == texts
    assert tuple(texts) == packed
    assert packed == PackedTexts.of(texts)
    assert packed != [*texts, ""]
    assert packed != PackedTexts.of([*texts, ""])
    assert packed.lengths().tolist() == [len(text.encode()) for text in texts]


def test_texts_that_are_cut_otherwise_are_other_texts() -> None:
    assert PackedTexts.of(["ab", "c"]) != PackedTexts.of(["a", "bc"])
    assert PackedTexts.of(["abc"]) != "abc"


@given(TEXTS, st.booleans())
def test_odd_texts_are_all_that_plain_ascii_words_are_not(texts: list[str], also: bool) -> None:
    plain = re.compile(r"[!-%'-~]+( [!-%'-~]+)*" if also else r"[!-~]+( [!-~]+)*")
    odd = PackedTexts.of(texts).odd_rows(also=b"&" if also else b"")
    assert odd.tolist() == [row for row, text in enumerate(texts) if not plain.fullmatch(text)]


@given(TEXTS, st.data())
def test_some_texts_are_changed_and_some_are_kept(texts: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    packed, where = PackedTexts.of(texts), np.array(chosen, bool)
    assert packed.changed(np.flatnonzero(where), lambda text: text[1:] + "千") == [
        text[1:] + "千" if change else text for text, change in zip(texts, chosen, strict=True)
    ]
    assert packed.kept(where) == [text for text, keep in zip(texts, chosen, strict=True) if keep]


@given(TEXTS, st.integers(1, 30), st.integers(0, 3))
def test_an_arrow_column_holds_the_same_texts_in_few_chunks(texts: list[str], most_bytes: int, left: int) -> None:
    column = text_column(PackedTexts.of(texts), most_bytes=most_bytes)
    column.validate(full=True)
    assert column.type == pa.string()
    assert column.to_pylist() == texts
    sizes = [sum(len(text.encode()) for text in chunk.to_pylist()) for chunk in column.chunks]
    assert all(size <= most_bytes or len(chunk) == 1 for size, chunk in zip(sizes, column.chunks, strict=True))
    assert text_column(texts).to_pylist() == texts
    assert packed_column(column) == texts
    assert packed_column(column.slice(left)) == texts[left:]
    assert packed_column(pa.array(texts, pa.string())) == texts


def test_the_texts_of_a_column_are_not_copied() -> None:
    packed = PackedTexts.of(["a" * 1000] * 4000)
    tracemalloc.start()
    column = text_column(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert column.nbytes > 4_000_000
    assert peak < 200_000


def test_starts_are_four_bytes_as_long_as_that_is_enough() -> None:
    most = 2**31 - 1
    assert starts_of(np.array([most - 3, 3])).dtype == np.int32
    assert starts_of(np.array([most - 3, 4])).dtype == np.int64
    assert starts_of(np.array([most - 3, 4])).tolist() == [0, most - 3, most + 1]
