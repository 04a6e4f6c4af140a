"""Saved artifacts to compare, to damage, and to seal again so that they lie consistently."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from igd_core.artifact import Artifact, Manifest
from igd_core.artifact.counts import PartRecord
from igd_core.artifact.manifest import PART_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILES = ("manifest.json", *PART_NAMES)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_same_artifact(one: Artifact, other: Artifact) -> None:
    assert one.manifest == other.manifest
    assert one.version == other.version
    for name, array in one.trie.arrays().items():
        assert np.array_equal(array, other.trie.arrays()[name])
    for name, floats in one.gains.arrays().items():
        assert np.array_equal(floats, other.gains.arrays()[name])
    for column in ("item_ids", "titles", "texts", "frequency"):
        assert list(getattr(one.catalogue, column)) == list(getattr(other.catalogue, column))
    assert {name: list(column) for name, column in one.catalogue.metadata.items()} == {
        name: list(column) for name, column in other.catalogue.metadata.items()
    }
    for name in ("leaf_of_item", "leaf_prior"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def reseal(bundle: Path, part: str, data: bytes, **manifest_changes: Any) -> None:
    """Put ``data`` in the place of a part and make the manifest agree."""
    (bundle / part).write_bytes(data)
    manifest = Manifest.from_bytes((bundle / "manifest.json").read_bytes())
    record = PartRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    sealed = replace(manifest, parts={**manifest.parts, part: record}, **manifest_changes)
    (bundle / "manifest.json").write_bytes(sealed.to_bytes())


def reseal_arrays(bundle: Path, part: str, **changes: Any) -> None:
    arrays = {name: array.copy() for name, array in safetensors.numpy.load_file(bundle / part).items()}
    arrays |= {name: np.asarray(value(arrays[name]), dtype=arrays[name].dtype) for name, value in changes.items()}
    reseal(bundle, part, safetensors.numpy.save(arrays))


def at(position: int, value: int | float) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def change(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array[position] = value
        return array

    return change
