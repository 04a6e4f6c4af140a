"""Artifacts on disk: written atomically, verified part by part, and memory-mapped."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from igd_core.artifact.bounds import MAX_HEADER_BYTES, ItemColumns, check_items
from igd_core.artifact.bundle import Artifact
from igd_core.artifact.counts import PartRecord
from igd_core.artifact.manifest import FORMAT, MAX_MANIFEST_BYTES, PART_NAMES, SCORER_PART, Manifest
from igd_core.artifact.structure import check_structure
from igd_core.artifact.tensors import tensor_pieces
from igd_core.catalogue.attribute_columns import ColumnValues, array_of
from igd_core.catalogue.gain import InfoGainTable
from igd_core.catalogue.items import Catalogue
from igd_core.catalogue.text_columns import packed_texts, text_column
from igd_core.catalogue.trie import TokenTrie
from igd_core.errors import ArtifactError, CatalogueError, DataError
from igd_core.replaced_outputs import require_only
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from igd_core.scorers.record import ScorerPart, ScorerRecord

_MANIFEST = "manifest.json"
_METADATA_PREFIX = "meta."
_DTYPES = {"I32": np.dtype("<i4"), "F32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPart:
    """A part's bytes: ``pieces``, which are the memory of the arrays themselves where they can be."""

    pieces: tuple[bytes | memoryview, ...]

    @property
    def data(self) -> bytes:
        """All bytes, copied."""
        return b"".join(self.pieces)

    def record(self) -> PartRecord:
        """The part's record in the manifest; hashes it."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(piece)
        return PartRecord(sha256=digest.hexdigest(), bytes=sum(map(len, self.pieces)))

    def write(self, path: Path) -> None:
        """Write it to a file."""
        with path.open("wb") as file:
            file.writelines(self.pieces)


def encode_parts(
    catalogue: Catalogue, trie: TokenTrie, gains: InfoGainTable, scorer: ScorerPart | None = None
) -> dict[str, EncodedPart]:
    """Serialise the parts, three or with a scorer's arrays four; the same inputs give the same bytes."""
    parts: dict[str, list[bytes | memoryview]] = {
        "trie.safetensors": tensor_pieces(trie.arrays()),
        "infogain.safetensors": tensor_pieces(gains.arrays()),
        "items.parquet": [_items_to_parquet(catalogue)],
    }
    if scorer is not None:
        parts[SCORER_PART] = tensor_pieces(scorer.arrays())
    return {name: EncodedPart(pieces=tuple(pieces)) for name, pieces in parts.items()}


def save_artifact(artifact: Artifact, directory: Path, *, replace: bool = False) -> None:
    """Write the bundle so that ``directory`` appears complete or not at all.

    If the directory already holds this version, nothing is written.

    Raises:
        ArtifactError: ``directory`` exists and holds something else, and ``replace`` is False.
        DataError: it is to be replaced, and `require_replaceable` refuses that.
    """
    if directory.exists():
        if _holds_version(directory, artifact.version):
            return
        if replace:
            require_replaceable(directory)
        elif not directory.is_dir() or any(directory.iterdir()):
            raise ArtifactError(f"{directory}: exists and is not this version; choose another, or replace it")
    with replaced_folder(directory) as new:
        scorer = None if artifact.scorer is None else artifact.scorer.part
        for name, part in encode_parts(artifact.catalogue, artifact.trie, artifact.gains, scorer).items():
            part.write(new / name)
        (new / _MANIFEST).write_bytes(artifact.manifest.to_bytes())


def require_replaceable(directory: Path) -> None:
    """Refuse to replace what is neither missing, nor empty, nor an artifact with nothing beside it.

    Raises:
        DataError: names what would be lost.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise DataError(f"{directory}: is a file, not a folder")
    if not any(directory.iterdir()):
        return
    if not _is_artifact(directory):
        raise DataError(f"{directory}: holds no {_MANIFEST} of an {FORMAT}, so --force leaves it alone")
    require_only(directory, {_MANIFEST, *PART_NAMES, SCORER_PART}, "an artifact")


def _is_artifact(directory: Path) -> bool:
    """Whether its manifest says so; other folders of ours have one of that name, too, and parts may be damaged."""
    try:
        manifest = json.loads(_read_bounded(directory / _MANIFEST))
    except (ArtifactError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def load_artifact(directory: str | Path, *, verify: bool = True) -> Artifact:
    """Open a bundle; arrays are mapped from the files, so processes on one machine share them.

    Args:
        directory: holds ``manifest.json`` and the parts it names.
        verify: hash every part and check the arrays' structure. False checks sizes, shapes and dtypes alone; for a
            directory that this machine has verified before.

    Raises:
        ArtifactError: names the part and the reason, and has the directory.
    """
    directory = Path(directory)
    manifest = _read_bounded(directory / _MANIFEST)
    try:
        return _loaded(directory, Manifest.from_bytes(manifest), verify=verify)
    except ArtifactError as error:
        error.directory = directory
        raise


def _loaded(directory: Path, manifest: Manifest, *, verify: bool) -> Artifact:
    for name, record in manifest.parts.items():
        _check_part(directory / name, record, hashed=verify)
    trie = _load_trie(directory / "trie.safetensors", manifest, verify=verify)
    gains = _load_gains(directory / "infogain.safetensors", manifest, verify=verify)
    catalogue = _items_from_parquet(directory / "items.parquet", manifest)
    if len(catalogue) != manifest.counts.items:
        raise ArtifactError(f"items.parquet: {len(catalogue)} items, the manifest counts {manifest.counts.items}")
    scorer = None
    if manifest.scorer is not None:
        scorer = _load_scorer(directory / SCORER_PART, manifest.scorer, manifest.counts.items, verify=verify)
    try:
        return Artifact.assemble(manifest, catalogue, trie, gains, scorer)
    except CatalogueError as error:
        raise ArtifactError(f"items.parquet: {error}") from None


def _holds_version(directory: Path, version: str) -> bool:
    try:
        manifest = Manifest.from_bytes(_read_bounded(directory / _MANIFEST))
        for name, record in manifest.parts.items():
            _check_part(directory / name, record, hashed=True)
    except ArtifactError:
        return False
    return manifest.version == version


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; is this an artifact's directory?") from None
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None


def _check_part(path: Path, record: PartRecord, *, hashed: bool) -> None:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise ArtifactError(f"{path.name}: {size} bytes, the manifest says {record.bytes}; truncated or altered")
        if hashed:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != record.sha256:
                raise ArtifactError(
                    f"{path.name}: sha256 {digest[:12]}, the manifest says {record.sha256[:12]}; altered"
                )
    except OSError as error:
        raise ArtifactError(f"{path.name}: {error.strerror}") from None


def _map_tensors(
    path: Path, expected: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, NDArray[Any]]:
    """Map a safetensors file. ``expected`` gives each tensor's dtype name; any other tensor is refused.

    ``shapes`` are what they must have; None for one axis of any length.

    safetensors' own numpy reader copies. The map is private (mode "c"): torch takes the arrays as writable without a
    copy, and nothing is written to the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ArtifactError(f"{path.name}: header of {length} bytes")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            if set(header) != set(expected):
                raise ArtifactError(f"{path.name}: holds {sorted(header)}, expected {sorted(expected)}")
            arrays = {}
            for name, dtype in expected.items():
                shape, (begin, end) = header[name]["shape"], header[name]["data_offsets"]
                if shapes is not None and shape != [*shapes[name]]:
                    raise ArtifactError(f"{path.name}: {name} is {shape}, expected {[*shapes[name]]}")
                if shapes is None:
                    (_,) = shape
                count = math.prod(shape)
                offset, itemsize = 8 + length + begin, _DTYPES[dtype].itemsize
                if header[name]["dtype"] != dtype or end - begin != count * itemsize:
                    raise ArtifactError(f"{path.name}: {name} is {header[name]['dtype']} x {count}, expected {dtype}")
                if not 0 <= begin <= end <= size - 8 - length or offset % itemsize:
                    raise ArtifactError(f"{path.name}: {name} lies at bytes {begin} to {end}")
                arrays[name] = np.asarray(
                    np.memmap(path, dtype=_DTYPES[dtype], mode="c", offset=offset, shape=tuple(shape))
                )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{path.name}: not a safetensors file of this format ({error})") from None
    return arrays


def _load_trie(path: Path, manifest: Manifest, *, verify: bool) -> TokenTrie:
    trie = TokenTrie(**_map_tensors(path, dict.fromkeys(TokenTrie.__slots__, "I32")))
    counts = manifest.counts
    shapes = {
        "row_start": counts.nodes + 1,
        "edge_token": counts.edges,
        "node_first": counts.nodes,
        "node_end": counts.nodes,
        "leaf_node": counts.leaves,
        "leaf_start": counts.leaves + 1,
        "leaf_items": counts.items,
        "level_start": counts.depth + 2,
    }
    if min(shapes.values()) < 1 or counts.depth < 1:
        raise ArtifactError(f"{path.name}: the manifest counts no path ({counts})")
    for name, array in trie.arrays().items():
        if len(array) != shapes[name]:
            raise ArtifactError(f"{path.name}: {name} has {len(array)} entries, the manifest counts {shapes[name]}")
    if verify:
        check_structure(trie, manifest.vocab_size, path.name)
    return trie


def _load_gains(path: Path, manifest: Manifest, *, verify: bool) -> InfoGainTable:
    gains = InfoGainTable(**_map_tensors(path, dict.fromkeys(InfoGainTable.__slots__, "F32")))
    for name, array in gains.arrays().items():
        if len(array) != manifest.counts.edges:
            raise ArtifactError(f"{path.name}: {name} has {len(array)} entries, the trie {manifest.counts.edges} edges")
        if verify and not (np.isfinite(array).all() and array.min() >= 0):
            raise ArtifactError(f"{path.name}: {name} holds a negative or non-finite value")
    return gains


def _load_scorer(path: Path, record: ScorerRecord, num_items: int, *, verify: bool) -> ScorerPart:
    layout = record.tensors_of_all(num_items)
    arrays = _map_tensors(
        path, {name: dtype for name, (dtype, _) in layout.items()}, {name: shape for name, (_, shape) in layout.items()}
    )
    part = record.part_of_all(arrays, num_items)
    if verify and (fault := part.fault(num_items)) is not None:
        raise ArtifactError(f"{path.name}: {fault} is not a scorer's of {num_items} items")
    return part


def _items_to_parquet(catalogue: Catalogue) -> memoryview:
    columns: dict[str, Any] = {
        "item_id": text_column(catalogue.item_ids),
        "title": text_column(catalogue.titles),
        "frequency": pa.array(catalogue.frequency, pa.int64()),
    }
    if catalogue.texts is not catalogue.titles and catalogue.texts != catalogue.titles:
        columns["text"] = text_column(catalogue.texts)
    for name, values in catalogue.metadata.items():
        try:
            columns[_METADATA_PREFIX + name] = array_of(values, catalogue.types[name])
        except (pa.ArrowException, OverflowError, ValueError) as error:
            raise CatalogueError(f"metadata column {name!r}: its values are not of one kind ({error})") from None
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getbuffer()


def _items_from_parquet(path: Path, manifest: Manifest) -> Catalogue:
    try:
        check_items(path, manifest.counts, manifest.parts[path.name].bytes)
        with ItemColumns(path) as columns:
            titles = packed_texts(_required(columns, "title", pa.string()))
            metadata = {
                name.removeprefix(_METADATA_PREFIX): ColumnValues(columns.read(name).combine_chunks())
                for name in columns.names
                if name.startswith(_METADATA_PREFIX)
            }
            return Catalogue(
                item_ids=packed_texts(_required(columns, "item_id", pa.string())),
                titles=titles,
                texts=packed_texts(_required(columns, "text", pa.string())) if "text" in columns.names else titles,
                frequency=_required(columns, "frequency", pa.int64()).to_numpy(),
                metadata=metadata,
                types={name: column.type for name, column in metadata.items()},
            )
    except (pa.ArrowException, OSError, KeyError, ValueError, CatalogueError) as error:
        raise ArtifactError(f"items.parquet: {error}") from None


def _required(columns: ItemColumns, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    column = columns.read(name)
    if column.type != kind or column.null_count:
        raise ArtifactError(f"items.parquet: {name} is {column.type} with {column.null_count} missing, not {kind}")
    return column
