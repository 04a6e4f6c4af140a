"""Size limits of a bundle's parts, packed and unpacked. They follow from the manifest's counts and are checked first.

A part's hash does not protect: whoever wrote it may have written a bomb. A column of one long text a million times is a
few kilobytes of Parquet, and gigabytes of memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from igd_core.datasets.parquet_pages import PageFault, check_pages
from igd_core.errors import ArtifactError
from igd_core.scorers.network import MAX_ITEMS
from igd_core.scorers.options import MAX_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from igd_core.artifact.counts import Counts, PartRecord
    from igd_core.scorers.record import ScorerRecord

MAX_COUNT = 2**31 - 1
MAX_DEPTH = 4096
MAX_HEADER_BYTES = 1 << 16
MAX_COLUMNS = 1000
_SLACK_BYTES = 64 << 20
_PACKED_BYTES_AN_ITEM = 64 << 10
_UNPACKED_TIMES = 64
_ENTRY_BYTES = 4


def check_sizes(counts: Counts, parts: Mapping[str, PartRecord], *, scorer: ScorerRecord | None = None) -> None:
    """Check that the manifest's sizes are possible for a bundle, each alone and all together.

    ``scorer`` is what it says of its scorer, if it has one.

    Raises:
        ArtifactError: names the field and its value.
    """
    for name in counts.__slots__:
        value, most = getattr(counts, name), MAX_DEPTH if name == "depth" else MAX_COUNT
        if not 0 <= value <= most:
            raise ArtifactError(f"manifest.json: counts.{name} is {value}; 0 to {most} can be")
    most_entries = min(MAX_COUNT, counts.items * MAX_ENTRIES)
    for kind in () if scorer is None else scorer.kinds:
        if kind.entries is not None and not 0 <= kind.entries <= most_entries:
            raise ArtifactError(f"manifest.json: scorer.entries is {kind.entries}; 0 to {most_entries} can be")
        if kind.network is not None and counts.items > MAX_ITEMS:
            raise ArtifactError(
                f"manifest.json: counts.items is {counts.items}; a scorer's network knows {MAX_ITEMS} at most"
            )
    scorer_values = 0 if scorer is None else scorer.num_values(counts.items)
    tries = 3 * counts.nodes + counts.edges + 2 * counts.leaves + counts.items + counts.depth + 4
    most_bytes = {
        "trie.safetensors": _ENTRY_BYTES * tries + 8 + MAX_HEADER_BYTES,
        "infogain.safetensors": 2 * _ENTRY_BYTES * counts.edges + 8 + MAX_HEADER_BYTES,
        "scorer.safetensors": _ENTRY_BYTES * scorer_values + 8 + MAX_HEADER_BYTES,
        "items.parquet": _PACKED_BYTES_AN_ITEM * counts.items + _SLACK_BYTES,
    }
    for name, record in parts.items():
        if not 0 <= record.bytes <= most_bytes.get(name, 0):
            most = most_bytes.get(name, 0)
            raise ArtifactError(f"manifest.json: {name} is {record.bytes} bytes; what it counts are at most {most}")


def check_items(path: Path, counts: Counts, packed_bytes: int) -> None:
    """Check what a Parquet file of items unpacks to, without unpacking texts that it repeats.

    The footer is checked first, then the headers of the pages, which must agree with it. Then the file is read with
    each distinct text once, and the total is computed from that.

    Raises:
        ArtifactError: the file has other rows than the manifest counts, too many columns, more bytes than a part of
            ``packed_bytes`` may unpack to, or a page larger than the footer says.
        ArrowException: it is no Parquet file.
    """
    most = most_unpacked(packed_bytes)
    with pq.ParquetFile(path) as file:
        footer = file.metadata
        if footer.num_rows != counts.items:
            raise ArtifactError(f"items.parquet: {footer.num_rows} items, the manifest counts {counts.items}")
        if footer.num_columns > MAX_COLUMNS:
            raise ArtifactError(f"items.parquet: {footer.num_columns} columns; at most {MAX_COLUMNS} are read")
        columns = [
            footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns)
        ]
        said = sum(max(column.total_uncompressed_size, 0) for column in columns)
        if said > most or any(not 0 <= column.num_values <= MAX_COUNT for column in columns):
            raise _bomb(said, packed_bytes)
        try:
            check_pages(path, footer, range(footer.num_columns))
        except PageFault as error:
            raise ArtifactError(f"items.parquet: {error}") from None
        texts = {column.path_in_schema for column in columns if column.physical_type == "BYTE_ARRAY"}
    with pq.ParquetFile(path, read_dictionary=sorted(texts)) as file:
        unpacked = 0
        for group in range(footer.num_row_groups):
            for name in file.schema_arrow.names:
                column = file.read_row_group(group, columns=[name], use_threads=False).column(name)
                unpacked += sum(_unpacked_bytes(chunk) for chunk in column.chunks)
                if unpacked > most:
                    raise _bomb(unpacked, packed_bytes)


class ItemColumns:
    """The columns of a Parquet file of items, read one at a time so that only one is in memory twice.

    They are read on this thread: several threads would keep 25 MB of memory that they have freed.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ArrowException: it is no Parquet file.
        """
        # `pq.read_table` imports pandas if it is installed: 25 MB and a second.
        self._file = pq.ParquetFile(path)
        self.names: list[str] = self._file.schema_arrow.names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, name: str) -> pa.ChunkedArray:
        """One column.

        Raises:
            ArrowException: it is damaged.
            KeyError: there is none of this name, or two.
        """
        return self._file.read(columns=[name], use_threads=False).column(name)


def most_unpacked(packed_bytes: int) -> int:
    """The most bytes that a part of ``packed_bytes`` may unpack to."""
    return _SLACK_BYTES + _UNPACKED_TIMES * packed_bytes


def _unpacked_bytes(array: pa.Array) -> int:
    if isinstance(array, pa.ListArray):
        return _ENTRY_BYTES * (len(array) + 1) + _unpacked_bytes(array.flatten())
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return (pc.sum(lengths.cast(pa.int64())).as_py() or 0) + _ENTRY_BYTES * (len(array) + 1)
    return int(array.nbytes)


def _bomb(unpacked: int, packed_bytes: int) -> ArtifactError:
    return ArtifactError(
        f"items.parquet: {packed_bytes} bytes that unpack to {unpacked} or more; at most {most_unpacked(packed_bytes)}"
    )
