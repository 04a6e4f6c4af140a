"""Bundles whose hashes agree and whose content does not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from bundles import at, reseal, reseal_arrays

from igd_core.artifact import Manifest, load_artifact
from igd_core.engines.fake import FakeEngine
from igd_core.errors import ArtifactError, CatalogueError
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BIG, SMALL = 2**31 - 1, -(2**31)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("row_start", at(0, 1)),
        ("row_start", at(-1, BIG)),
        ("row_start", at(3, BIG)),
        ("row_start", at(3, SMALL)),
        ("edge_token", at(0, -1)),
        ("edge_token", at(-1, 364)),
        ("edge_token", at(5, BIG)),
        ("node_first", at(2, -1)),
        ("node_first", at(2, BIG)),
        ("node_end", at(2, BIG)),
        ("node_end", at(2, 0)),
        ("leaf_node", at(0, 0)),
        ("leaf_node", at(0, -1)),
        ("leaf_node", at(0, BIG)),
        ("leaf_node", at(0, 1)),
        ("leaf_node", lambda array: array[::-1]),
        ("leaf_start", at(0, 1)),
        ("leaf_start", at(1, BIG)),
        ("leaf_start", at(1, 0)),
        ("leaf_start", at(-1, 0)),
        ("leaf_items", at(0, BIG)),
        ("leaf_items", at(0, -1)),
        ("leaf_items", np.zeros_like),
        ("level_start", at(1, 0)),
        ("level_start", at(-1, BIG)),
        ("level_start", at(0, -1)),
        ("level_start", at(2, BIG)),
    ],
)
def test_an_index_that_leads_outside_its_array_is_refused_by_name(
    bundle: Path, name: str, change: Callable[[Any], Any]
) -> None:
    reseal_arrays(bundle, "trie.safetensors", **{name: change})
    with pytest.raises(ArtifactError, match=r"trie.safetensors: \w+ is not a trie's") as caught:
        load_artifact(bundle)
    assert name in str(caught.value) or {name, str(caught.value).split()[1]} <= {"node_first", "node_end", "leaf_node"}


def test_row_starts_whose_differences_wrap_around_are_refused(bundle: Path) -> None:
    """In int32, SMALL - BIG is 1: a check of differences takes this for ascending."""

    def change(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array[1:4] = [BIG, SMALL, -1]
        return array

    reseal_arrays(bundle, "trie.safetensors", row_start=change)
    with pytest.raises(ArtifactError, match="row_start is not a trie's"):
        load_artifact(bundle)


def test_edges_that_lead_back_up_are_refused(bundle: Path) -> None:
    """Node 1 with edge 0 is its own child, and a walk down forced tokens would never end."""

    def change(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array[1] = 0
        return array

    reseal_arrays(bundle, "trie.safetensors", row_start=change)
    with pytest.raises(ArtifactError, match="row_start is not a trie's"):
        load_artifact(bundle)


@pytest.mark.parametrize("name", ["information_gain", "sibling_gain"])
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_a_gain_that_is_none_is_refused_by_name(bundle: Path, name: str, value: float) -> None:
    reseal_arrays(bundle, "infogain.safetensors", **{name: at(1, value)})
    with pytest.raises(ArtifactError, match=f"infogain.safetensors: {name} holds a negative or non-finite value"):
        load_artifact(bundle)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("trie.safetensors", "row_start"),
        ("trie.safetensors", "edge_token"),
        ("trie.safetensors", "leaf_items"),
        ("trie.safetensors", "level_start"),
        ("infogain.safetensors", "sibling_gain"),
    ],
)
def test_an_array_of_another_length_is_refused_even_unverified(
    bundle: Path, part: str, name: str, verify: bool
) -> None:
    reseal_arrays(bundle, part, **{name: lambda array: array[:-1]})
    with pytest.raises(ArtifactError, match=rf"{part}: {name} has \d+ entries"):
        load_artifact(bundle, verify=verify)


def test_counts_of_nothing_are_refused(bundle: Path) -> None:
    manifest = Manifest.from_bytes((bundle / "manifest.json").read_bytes())
    none = replace(manifest.counts, items=0, leaves=0, nodes=0, edges=0, depth=-1)
    empty = {name: np.zeros(1, dtype=np.int32) for name in ("row_start", "leaf_start", "level_start")}
    empty |= {
        name: np.zeros(0, dtype=np.int32)
        for name in ("edge_token", "node_first", "node_end", "leaf_node", "leaf_items")
    }
    reseal(bundle, "trie.safetensors", safetensors.numpy.save(empty), counts=none)
    with pytest.raises(ArtifactError, match=r"manifest.json: counts.depth is -1; 0 to"):
        load_artifact(bundle)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("header", [b"", b"{", b"\xff\xfe", b"null", b'"text"', b"[]", b"[" * 60_000, b"{}"])
def test_a_header_that_is_none_is_refused_by_part(bundle: Path, header: bytes, verify: bool) -> None:
    header += b" " * (-len(header) % 8)
    reseal(bundle, "infogain.safetensors", len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(ArtifactError, match=r"^infogain\.safetensors: "):
        load_artifact(bundle, verify=verify)


def lie(entry: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return entry | changes


def moved(entry: dict[str, Any], by: int) -> dict[str, Any]:
    return entry | {"data_offsets": [offset + by for offset in entry["data_offsets"]]}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda entry: lie(entry, dtype="F64"),
        lambda entry: lie(entry, dtype="I32"),
        lambda entry: lie(entry, dtype=["F32"]),
        lambda entry: lie(entry, shape=[]),
        lambda entry: lie(entry, shape=[*entry["shape"], 1]),
        lambda entry: lie(entry, shape=entry["shape"][0]),
        lambda entry: lie(entry, shape=[entry["shape"][0] + 1]),
        lambda entry: lie(entry, shape=[float(entry["shape"][0])]),
        lambda entry: lie(entry, shape=[-1], data_offsets=[4, 0]),
        lambda entry: lie(entry, shape=[2**80], data_offsets=[0, 2**82]),
        lambda entry: lie(entry, shape=None),
        lambda entry: lie(entry, data_offsets=[0]),
        lambda entry: lie(entry, data_offsets=None),
        lambda entry: lie(entry, data_offsets=[float(offset) for offset in entry["data_offsets"]]),
        lambda entry: moved(entry, 4),
        lambda entry: moved(entry, -1),
        lambda entry: moved(entry, 2**40),
        lambda entry: moved(entry, 2**70),
        lambda entry: moved(entry, -(2**20)),
        lambda entry: moved(entry, -entry["data_offsets"][0] - 8),
        lambda _: {},
        lambda _: None,
    ],
)
def test_a_header_that_lies_about_one_array_is_refused_by_part(
    bundle: Path, change: Callable[[dict[str, Any]], object], verify: bool
) -> None:
    """Counts agree with the manifest wherever the lie lets them, so that nothing but the lie is found."""
    data = (bundle / "infogain.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    last = max(header, key=lambda name: header[name]["data_offsets"])
    written = json.dumps(header | {last: change(header[last])}).encode()
    written += b" " * (-len(written) % 8)
    reseal(bundle, "infogain.safetensors", len(written).to_bytes(8, "little") + written + body)
    with pytest.raises(ArtifactError, match=r"^infogain\.safetensors: (?!.* entries)"):
        load_artifact(bundle, verify=verify)


@pytest.mark.parametrize("names", [["information_gain"], ["information_gain", "sibling_gain", "third"]])
def test_missing_and_further_arrays_are_refused(bundle: Path, names: list[str]) -> None:
    edges = Manifest.from_bytes((bundle / "manifest.json").read_bytes()).counts.edges
    arrays = dict.fromkeys(names, np.zeros(edges, dtype=np.float32))
    reseal(bundle, "infogain.safetensors", safetensors.numpy.save(arrays))
    with pytest.raises(ArtifactError, match=r"infogain\.safetensors: holds \[.*\], expected"):
        load_artifact(bundle)


def test_a_header_without_end_is_refused_by_its_length(bundle: Path) -> None:
    reseal(bundle, "trie.safetensors", (2**63 - 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(ArtifactError, match=r"^trie.safetensors: header of \d+ bytes"):
        load_artifact(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_id": list(range(24))}, "item_id is int64 with 0 missing, not string"),
        ({"title": [None, *"abcdefghijklmnopqrstuvw"]}, "title is string with 1 missing"),
        ({"text": [None] * 24}, "text is null with 24 missing"),
        ({"frequency": [1.5] * 24}, "frequency is double"),
        ({"frequency": [-1] * 24}, "frequency: -1 at item row 0 is negative"),
        ({"frequency": [0] * 24}, "no item was ever interacted with"),
        ({"title": None}, "title"),
    ],
)
def test_items_that_cannot_be_a_catalogue_are_refused(bundle: Path, changes: dict[str, Any], message: str) -> None:
    table = pq.read_table(bundle / "items.parquet")
    for name, values in changes.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    reseal(bundle, "items.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(ArtifactError, match=rf"items.parquet: .*{message}"):
        load_artifact(bundle)


def test_fewer_items_than_counted_are_refused(bundle: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(bundle / "items.parquet").slice(1), sink)
    reseal(bundle, "items.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(ArtifactError, match=r"items.parquet: 23 items, the manifest counts 24"):
        load_artifact(bundle)


@pytest.mark.parametrize("data", [b"", b"PAR1PAR1", b"junk" * 20])
def test_items_that_are_no_parquet_are_refused(bundle: Path, data: bytes) -> None:
    reseal(bundle, "items.parquet", data)
    with pytest.raises(ArtifactError, match=r"^items.parquet: "):
        load_artifact(bundle)


def test_damaged_pages_are_refused_even_unverified(bundle: Path) -> None:
    data = bytearray((bundle / "items.parquet").read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    (bundle / "items.parquet").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"^items.parquet: "):
        load_artifact(bundle, verify=False)


def test_an_id_that_stands_twice_is_refused_before_anything_is_served(bundle: Path) -> None:
    table = pq.read_table(bundle / "items.parquet")
    column = table.column_names.index("item_id")
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(column, "item_id", pa.array(["same"] * 24)), sink)
    reseal(bundle, "items.parquet", sink.getvalue().to_pybytes())
    artifact = load_artifact(bundle)
    with pytest.raises(CatalogueError, match="'same': this id stands on more than one row"):
        Recommender(artifact, FakeEngine())
