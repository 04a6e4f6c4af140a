"""Bombs: bundles that are sealed, and would unpack to far more than they are."""

from __future__ import annotations

import io
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import reseal
from parquet_lies import understated

from igd_core.artifact import Manifest, load_artifact
from igd_core.artifact.bounds import most_unpacked
from igd_core.artifact.counts import PartRecord
from igd_core.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

TEXT_BYTES = 1 << 16


def with_column(bundle: Path, values: pa.Array, *, compression: str) -> bytes:
    """The bundle's items with one more column."""
    table = pq.read_table(bundle / "items.parquet").append_column("meta.more", values)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression=compression)
    return sink.getvalue()


def lists_of_one_text(rows: int, total_bytes: int) -> pa.Array:
    """So many bytes of texts that are all the same one, held once."""
    entries = total_bytes // TEXT_BYTES
    texts = pa.DictionaryArray.from_arrays(np.zeros(entries, np.int32), pa.array(["x" * TEXT_BYTES]))
    return pa.ListArray.from_arrays(np.linspace(0, entries, rows + 1).astype(np.int32), texts)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "lz4", "zstd"])
def test_a_small_file_that_repeats_a_text_is_refused_before_it_is_unpacked(compression: str, bundle: Path) -> None:
    rows = pq.read_metadata(bundle / "items.parquet").num_rows
    data = with_column(bundle, lists_of_one_text(rows, 20 << 30), compression=compression)
    assert len(data) < 3 << 20
    reseal(bundle, "items.parquet", data)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ArtifactError, match=r"items.parquet: \d+ bytes that unpack to \d+ or more; at most \d+"):
        load_artifact(bundle)
    assert pa.default_memory_pool().max_memory() - before < most_unpacked(len(data))


@pytest.mark.parametrize("compression", ["gzip", "brotli", "zstd"])
def test_a_small_file_whose_footer_says_that_it_is_large_is_refused_by_its_footer(
    compression: str, bundle: Path
) -> None:
    rows = pq.read_metadata(bundle / "items.parquet").num_rows
    texts = pa.array([chr(97 + row % 26) * (80 << 20) for row in range(2)] + ["x"] * (rows - 2))
    data = with_column(bundle, texts, compression=compression)
    assert len(data) < 1 << 20
    reseal(bundle, "items.parquet", data)
    before = pa.default_memory_pool().bytes_allocated()
    with pytest.raises(ArtifactError, match="unpack"):
        load_artifact(bundle)
    assert pa.default_memory_pool().bytes_allocated() - before < 1 << 20


def test_other_rows_than_the_manifest_counts_are_refused_before_they_are_read(bundle: Path) -> None:
    table = pq.read_table(bundle / "items.parquet")
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables([table] * 3), sink)
    reseal(bundle, "items.parquet", sink.getvalue())
    with pytest.raises(ArtifactError, match=rf"{3 * len(table)} items, the manifest counts {len(table)}"):
        load_artifact(bundle)


def test_pages_that_say_more_than_the_footer_are_refused_before_they_are_unpacked(bundle: Path) -> None:
    table = pq.read_table(bundle / "items.parquet")
    texts = pa.array(["a" * (1 << 20)] * len(table))
    reseal(bundle, "items.parquet", understated(table.append_column("meta.more", texts), "meta.more"))
    with pytest.raises(ArtifactError, match=r"items.parquet: column 'meta.more': pages that unpack to .* counts 1000"):
        load_artifact(bundle)


def test_very_many_columns_are_refused(bundle: Path) -> None:
    table = pq.read_table(bundle / "items.parquet")
    ones = pa.array(np.ones(len(table), np.int8))
    for number in range(1000):
        table = table.append_column(f"meta.{number}", ones)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    reseal(bundle, "items.parquet", sink.getvalue())
    with pytest.raises(ArtifactError, match="columns; at most 1000 are read"):
        load_artifact(bundle)


@pytest.mark.parametrize("part", ["trie.safetensors", "infogain.safetensors", "items.parquet"])
@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_a_part_that_is_larger_than_what_is_counted_is_refused_unread(part: str, size: int, bundle: Path) -> None:
    manifest = Manifest.from_bytes((bundle / "manifest.json").read_bytes())
    lying = replace(manifest, parts={**manifest.parts, part: PartRecord(sha256="0" * 64, bytes=size)})
    with pytest.raises(ArtifactError, match=rf"manifest.json: {part} is {size} bytes"):
        Manifest.from_bytes(lying.to_bytes())


@pytest.mark.parametrize(("name", "value"), [("items", 2**31), ("nodes", -1), ("depth", 5000), ("edges", 10**300)])
def test_counts_that_no_bundle_can_have_are_refused(name: str, value: int, bundle: Path) -> None:
    manifest = Manifest.from_bytes((bundle / "manifest.json").read_bytes())
    lying = replace(manifest, counts=replace(manifest.counts, **{name: value}))
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=rf"manifest.json: counts.{name} is "):
            Manifest.from_bytes(lying.to_bytes())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
