"""Parquet files whose footer says less than their pages hold."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pyarrow as pa

FOOTER_END = 8
"""Bytes behind a footer: its length and a mark."""


def understated(table: pa.Table, column: str, said: int = 1000) -> bytes:
    """The table as a file that unpacks, by its footer, to ``said`` bytes in one column, which has one chunk."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue()
    metadata = pq.read_metadata(io.BytesIO(data))
    group = metadata.row_group(0)
    chunk = next(each for at in range(group.num_columns) if (each := group.column(at)).path_in_schema == column)
    begin = len(data) - FOOTER_END - metadata.serialized_size
    footer = data[begin:-FOOTER_END]
    # Two fields that follow each other: what it unpacks to, and what it takes.
    packed = b"\x16" + varint(chunk.total_compressed_size)
    true = b"\x16" + varint(chunk.total_uncompressed_size) + packed
    assert footer.count(true) == 1
    footer = footer.replace(true, b"\x16" + varint(said) + packed)
    return data[:begin] + footer + len(footer).to_bytes(4, "little") + data[-4:]


def varint(value: int) -> bytes:
    """A number >= 0 as Thrift's compact protocol writes signed ones."""
    value, written = 2 * value, bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])
