"""Artifacts on their way into a store and out again: split into chunks, and rejoined atomically."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from igd_core.artifact import Manifest, load_artifact
from igd_core.artifact.manifest import MAX_MANIFEST_BYTES
from igd_core.errors import ArtifactError, StoreError
from igd_core.store.names import MODELS
from igd_core.store.published_models import FORMAT as MODEL_FORMAT
from igd_core.store.published_models import ModelManifest, read_body
from igd_core.whole_files import sync_file

if TYPE_CHECKING:
    from igd_core.artifact.counts import PartRecord

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a bundle's file: number ``index``, from 0, of the file ``name``."""

    name: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a bundle's files are split into chunks.

    Attributes:
        chunk_bytes: size of every chunk but the last of a file.
        counts: number of chunks, by file.
    """

    chunk_bytes: int
    counts: Mapping[str, int]

    @staticmethod
    def of(sizes: Mapping[str, int], chunk_bytes: int) -> Layout:
        """The layout of files of these sizes, in bytes."""
        return Layout(chunk_bytes=chunk_bytes, counts={name: -(-size // chunk_bytes) for name, size in sizes.items()})

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk, file by file."""
        for name, count in self.counts.items():
            for index in range(count):
                yield Chunk(name=name, index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified directory of an artifact, or of a published model.

    Attributes:
        directory: its path.
        manifest: its manifest.
        sizes: bytes of each file: the parts, then the manifest.
    """

    directory: Path
    manifest: Manifest | ModelManifest
    sizes: Mapping[str, int]

    @staticmethod
    def open(directory: Path) -> Bundle:
        """Verify ``directory``, an artifact's as `load_artifact` does, a model's by its hashes. Blocking.

        Raises:
            ArtifactError: truncated, altered or foreign.
        """
        manifest = _verified(directory)
        sizes = {name: record.bytes for name, record in manifest.parts.items()}
        sizes[MANIFEST] = len(manifest.to_bytes())
        return Bundle(directory=directory, manifest=manifest, sizes=sizes)

    def shelf(self, catalogue: str | None) -> str:
        """What it is stored under: ``catalogue``, by default the artifact's own name; `MODELS` for a model."""
        return MODELS if isinstance(self.manifest, ModelManifest) else catalogue or self.manifest.name

    def read(self, chunk: Chunk, chunk_bytes: int) -> bytes:
        """A chunk's bytes. Blocking.

        Raises:
            ArtifactError: the file has become shorter, or cannot be read.
        """
        expected = min(chunk_bytes, self.sizes[chunk.name] - chunk.index * chunk_bytes)
        data = read_slice(self.directory / chunk.name, chunk.index * chunk_bytes, expected)
        if data is None or len(data) != expected:
            raise ArtifactError(f"{self.directory / chunk.name}: altered while it was being stored")
        return data


ReadChunk = Callable[[Chunk, int], Awaitable[bytes | None]]
"""Returns a chunk's bytes, at most slightly more than asked for; None if it is missing."""


def read_slice(path: Path, offset: int, length: int) -> bytes | None:
    """Read bytes of a file; None if it cannot be read. Blocking."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError:
        return None


def manifest_of(data: bytes) -> Manifest | ModelManifest:
    """Parse the manifest of an artifact or of a published model.

    Raises:
        ArtifactError: neither, or altered.
    """
    if read_body(data).get("format") == MODEL_FORMAT:
        return ModelManifest.from_bytes(data)
    return Manifest.from_bytes(data)


def _verified(directory: Path) -> Manifest | ModelManifest:
    try:
        with (directory / MANIFEST).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError:
        return load_artifact(directory).manifest  # which says what is wrong
    if read_body(data).get("format") != MODEL_FORMAT:
        return load_artifact(directory).manifest
    manifest = ModelManifest.from_bytes(data)
    if not holds_version(directory, manifest.version):
        raise ArtifactError(f"{directory}: a file of model {manifest.version} is missing or altered")
    return manifest


def holds_version(directory: Path, version: str) -> bool:
    """Whether ``directory`` holds that version, unaltered. Blocking; reads all of it."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            manifest = manifest_of(file.read(MAX_MANIFEST_BYTES + 1))
        if manifest.version != version:
            return False
        for name, record in manifest.parts.items():
            with (directory / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                    return False
    except (ArtifactError, OSError):
        return False
    return True


async def receive(version: str, layout: Layout, read: ReadChunk, parent: Path) -> Path:
    """Rejoin a bundle in ``parent / version``, replacing what is there; returns that path.

    Raises:
        ArtifactError: a chunk is missing, or a file differs from its manifest; names it.
        StoreError: the disk cannot hold it.
    """
    try:
        scratch = await asyncio.to_thread(_make_scratch, parent, version)
        try:
            await write_bundle(version, layout, read, scratch / "new")
            await asyncio.to_thread(_swap_in, scratch / "new", parent / version, scratch / "old")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{parent / version}: {error.strerror}") from None
    return parent / version


async def write_bundle(version: str, layout: Layout, read: ReadChunk, directory: Path) -> None:
    """Write a bundle's files into the new ``directory``, verify each, and sync them to the disk.

    Raises:
        ArtifactError: a chunk is missing, or a file differs from its manifest; names it.
        OSError: the disk cannot hold it.
    """
    manifest = manifest_of(await _read_manifest(layout, read))
    if manifest.version != version:
        raise ArtifactError(f"{MANIFEST}: of version {manifest.version}, stored as {version}")
    await asyncio.to_thread(directory.mkdir, parents=True)
    for name, record in manifest.parts.items():
        count = layout.counts.get(name, 0)
        if count != -(-record.bytes // layout.chunk_bytes):
            raise ArtifactError(f"{name}: stored in {count} chunks, the manifest says {record.bytes} bytes")
        # Not in a thread: if this task were cancelled meanwhile, nobody would close the file.
        with (directory / name).open("wb") as file:
            await _write_part(file, name, record, layout, read)
    await asyncio.to_thread(_write_synced, directory / MANIFEST, manifest.to_bytes())


async def _read_manifest(layout: Layout, read: ReadChunk) -> bytes:
    count = layout.counts.get(MANIFEST, 0)
    if count > -(-MAX_MANIFEST_BYTES // layout.chunk_bytes):
        raise ArtifactError(f"{MANIFEST}: stored in {count} chunks of {layout.chunk_bytes} bytes; that is too long")
    most = min(layout.chunk_bytes, MAX_MANIFEST_BYTES)
    chunks = [await _read_or_fail(read, Chunk(name=MANIFEST, index=index), most) for index in range(count)]
    return b"".join(chunks)


async def _write_part(file: IO[bytes], name: str, record: PartRecord, layout: Layout, read: ReadChunk) -> None:
    digest = hashlib.sha256()
    left = record.bytes

    def take(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    for index in range(layout.counts[name]):
        data = await _read_or_fail(read, Chunk(name=name, index=index), min(layout.chunk_bytes, left))
        if len(data) != min(layout.chunk_bytes, left):
            raise ArtifactError(f"{name}: chunk {index} has {len(data)} bytes; truncated or altered")
        left -= len(data)
        await asyncio.to_thread(take, data)
    if digest.hexdigest() != record.sha256:
        raise ArtifactError(
            f"{name}: sha256 {digest.hexdigest()[:12]}, the manifest says {record.sha256[:12]}; altered"
        )
    await asyncio.to_thread(sync_file, file)


async def _read_or_fail(read: ReadChunk, chunk: Chunk, most: int) -> bytes:
    data = await read(chunk, most)
    if data is None:
        raise ArtifactError(f"{chunk.name}: chunk {chunk.index} is missing in the store")
    return data


def _make_scratch(parent: Path, version: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=parent, prefix=f".{version}-"))


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        sync_file(file)


def _swap_in(new: Path, target: Path, aside: Path) -> None:
    """Rename ``new`` to ``target``; a damaged copy is moved aside, another process's intact copy stays."""
    if target.exists():
        if holds_version(target, target.name):
            return
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        if not holds_version(target, target.name):
            raise
