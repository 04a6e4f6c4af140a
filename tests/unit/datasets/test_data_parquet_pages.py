"""What a Parquet file unpacks to is known before it is unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_lies import understated, varint

from igd_core.catalogue.items import Catalogue
from igd_core.cli.main import main
from igd_core.datasets import parquet_pages
from igd_core.datasets.interactions_file import count_items
from igd_core.datasets.items_file import read_items
from igd_core.datasets.parquet_pages import PageFault, check_pages
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[pa.MemoryPool]:
    """Counts what Arrow takes from now on."""
    before = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counting)
    yield counting
    pa.set_memory_pool(before)


def test_pages_of_more_than_the_footer_counts_are_refused_unread(tmp_path: Path, pool: pa.MemoryPool) -> None:
    path = tmp_path / "items.parquet"
    table = pa.table({"item_id": ["1"], "title": ["One"], "note": ["a" * (8 * MIB)]})
    path.write_bytes(understated(table, "note"))
    assert path.stat().st_size < 64 << 10
    del table
    held = pool.bytes_allocated()
    told = rf"items.parquet: column 'note': pages that unpack to {8 * MIB + 10} bytes, and the footer counts 1000$"
    with pytest.raises(DataError, match=told):
        read_items(path)
    assert pool.max_memory() - held < 10 * MIB  # the table above; nothing since
    before = pool.max_memory()
    assert count_items(path, Catalogue.build(item_ids=["1"], titles=["One"])).frequency.tolist() == [1]
    assert pool.max_memory() == before


def test_a_text_that_is_held_once_and_repeated_is_measured_before_it_is(tmp_path: Path, pool: pa.MemoryPool) -> None:
    path = tmp_path / "items.parquet"
    rows = 3000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["a" * (400 << 10)])
    names = pa.array([str(row) for row in range(rows)])
    pq.write_table(pa.table({"item_id": names, "title": names, "note": texts}), path)
    assert path.stat().st_size < MIB
    with pytest.raises(DataError, match=rf"column 'note': {rows} rows of {rows * (400 << 10)} bytes; at most"):
        read_items(path)
    assert pool.max_memory() < 64 * MIB


def test_a_page_larger_than_any_writer_makes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ["1"], "title": ["a" * 5000]}), path, use_dictionary=False)
    assert read_items(path).catalogue.titles == ("a" * 5000,)
    monkeypatch.setattr(parquet_pages, "MOST_PAGE_BYTES", 4096)
    with pytest.raises(DataError, match="column 'title': a page of 5010 bytes; at most 4096 are read"):
        read_items(path)


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "none"},
        {"compression": "gzip", "data_page_version": "2.0"},
        {"compression": "zstd", "use_dictionary": False, "data_page_size": 100},
        {"compression": "snappy", "data_page_size": 64, "dictionary_pagesize_limit": 128, "write_page_index": True},
        {"compression": "brotli", "data_page_version": "2.0", "write_page_checksum": True, "row_group_size": 7},
        {"use_dictionary": False, "column_encoding": {"title": "DELTA_BYTE_ARRAY"}},
    ],
)
def test_what_writers_write_is_read(tmp_path: Path, how: dict[str, Any]) -> None:
    path, rows = tmp_path / "items.parquet", 60
    columns: dict[str, list[Any]] = {
        "item_id": [str(row) for row in range(rows)],
        "title": [f"Title {row} " + "x" * (row % 9) for row in range(rows)],
        "genres": [[f"genre {row % 3}", "all"][: row % 3] for row in range(rows)],
        "price": [row / 4 if row % 5 else None for row in range(rows)],
    }
    pq.write_table(pa.table(columns), path, **how)
    catalogue = read_items(path).catalogue
    assert list(catalogue.titles) == [title.strip() for title in columns["title"]]
    assert list(catalogue.metadata["genres"]) == [tuple(genres) for genres in columns["genres"]]
    assert list(catalogue.metadata["price"]) == columns["price"]


def test_bytes_that_are_no_text_are_told_by_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "items.parquet"
    broken = pa.array([b"One", b"T\xffo"], pa.binary()).view(pa.string())
    for title in (broken, broken.dictionary_encode()):
        pq.write_table(pa.table({"item_id": ["1", "2"], "title": title}), path)
        arguments = ["build", "--items", str(path), "--interactions", str(path), "--tokenizer", "x", "--out", "y"]
        assert main(arguments) == 2
        assert "row 2: title 'T\\x00o' holds a NUL byte or bytes that are no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"", "no header of a page"),
        (b"\x19" * 40, "no header of a page"),  # a list
        (b"\x15" + b"\xff" * 40, "no header of a page"),  # a number that does not end
        (b"\x1c" * 40, "no header of a page"),  # structures within structures
        (b"\x18\xff\xff\xff\xff\x0f\x00", "no header of a page"),  # a text of 4 GiB
        (b"\x00", "a page of -1 bytes that unpack to -1"),
    ],
)
def test_a_page_that_is_none_is_told(tmp_path: Path, header: bytes, told: str) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"title": ["One"]}), path, use_dictionary=False)
    footer = pq.read_metadata(path)
    begin = footer.row_group(0).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:begin] + header + (data[begin + len(header) :] if header else b"\x15"))
    with pytest.raises(PageFault, match=told):
        check_pages(path, footer, [0])


def test_numbers_are_written_as_the_protocol_has_them() -> None:
    assert [varint(value) for value in (0, 1, 63, 64, 300)] == [b"\x00", b"\x02", b"~", b"\x80\x01", b"\xd8\x04"]
