"""Artifacts as folders. A database names the valid ones, and holds the pointers."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.errors import ArtifactError, StoreUnavailable
from igd_core.store.base import StoredVersion
from igd_core.store.bundles import (
    Bundle,
    Chunk,
    Layout,
    ReadChunk,
    holds_version,
    read_slice,
    receive,
    write_bundle,
)
from igd_core.store.files.trials import FilesTrials, healed, trials_in
from igd_core.store.names import (
    is_catalogue_name,
    not_stored,
    require_catalogue_name,
    require_holder,
    require_keep,
    require_shelf,
    require_version,
)
from igd_core.store.pointers import Pointer, PointerMove
from igd_core.whole_files import sync

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from pathlib import Path

    from igd_core.store.files.database import Database

_LOOK_EVERY_S = 0.5
_ORPHANED_AFTER_S = 3600.0


class FilesArtifacts(FilesTrials):
    """Implements `igd_core.store.base.ArtifactStore`."""

    def __init__(self, folders: Path, database: Database, clock: Callable[[], float], *, chunk_bytes: int) -> None:
        """``clock`` gives seconds since 1970."""
        super().__init__(database, clock)
        self._folders = folders
        self._database = database
        self._clock = clock
        self._chunk_bytes = chunk_bytes

    async def add(self, directory: Path, *, catalogue: str | None = None) -> str:
        """Copy the artifact into a folder of its own, then name that folder in the database."""
        bundle = await asyncio.to_thread(Bundle.open, directory)
        version = bundle.manifest.version
        catalogue = require_shelf(bundle.shelf(catalogue))
        known = await self._folder(catalogue, version)
        if known is not None and await asyncio.to_thread(holds_version, known, version):
            return version
        folder = self._folders / catalogue / f"{version}.{uuid.uuid4().hex[:12]}"
        await self._copy(bundle, folder)
        size, now = sum(bundle.sizes.values()), self._clock()

        def record(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO versions (catalogue, version, folder, size_bytes, stored_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET folder = excluded.folder",
                (catalogue, version, folder.name, size, now),
            )
            if bundle.manifest.model is not None:
                row = (catalogue, version, bundle.manifest.model)
                connection.execute("INSERT OR REPLACE INTO models_of_versions VALUES (?, ?, ?)", row)

        await self._database.write(record)
        return version

    async def activate(self, catalogue: str, version: str) -> None:
        """Move the pointer; `changes` notices when it next polls."""
        require_catalogue_name(catalogue)
        require_version(version)

        def move(connection: sqlite3.Connection) -> bool:
            stored = "SELECT 1 FROM versions WHERE catalogue = ? AND version = ?"
            if connection.execute(stored, (catalogue, version)).fetchone() is None:
                return False
            _point(connection, catalogue, _pointer_in(connection, catalogue).moved_to(version))
            return True

        if not await self._database.write(move):
            raise not_stored(catalogue, version)

    async def roll_back(self, catalogue: str, version: str | None = None) -> PointerMove:
        """Move the pointer back; `changes` notices when it next polls."""
        require_catalogue_name(catalogue)
        if version is not None:
            require_version(version)
        now = self._clock()

        def move(connection: sqlite3.Connection) -> PointerMove:
            before, trials = _pointer_in(connection, catalogue), trials_in(connection, catalogue, now)
            after = before.rolled_back(catalogue, version, trials)
            _point(connection, catalogue, after)
            return PointerMove.between(before, after, trials)

        return await self._database.write(move)

    async def current(self, catalogue: str) -> str | None:
        """The version that the pointer names."""
        query = "SELECT current FROM pointers WHERE catalogue = ?"
        rows = await self._database.rows(query, require_catalogue_name(catalogue))
        return rows[0][0] if rows else None

    async def previous(self, catalogue: str) -> str | None:
        """The version that a roll-back returns to."""
        require_catalogue_name(catalogue)
        now = self._clock()
        return await self._database.read(lambda connection: _returns_to(connection, catalogue, now))

    async def catalogues(self) -> Sequence[str]:
        """Names of catalogues with a stored version, sorted."""
        rows = await self._database.rows("SELECT DISTINCT catalogue FROM versions ORDER BY catalogue")
        return [catalogue for (catalogue,) in rows if is_catalogue_name(catalogue)]

    async def versions(self, catalogue: str) -> Sequence[StoredVersion]:
        """Stored versions, newest first."""
        require_shelf(catalogue)
        return await self._database.read(lambda connection: _listed(connection, catalogue, self._clock()))

    async def fetch(self, catalogue: str, version: str, parent: Path) -> Path:
        """Copy a version to ``parent / version`` unless it is there."""
        require_shelf(catalogue)
        if await asyncio.to_thread(holds_version, parent / require_version(version), version):
            return parent / version
        folder = await self._folder(catalogue, version)
        if folder is None:
            raise not_stored(catalogue, version)
        layout = await asyncio.to_thread(self._layout_of, folder)
        try:
            return await receive(version, layout, _reader(folder, layout), parent)
        except ArtifactError:
            if await self._folder(catalogue, version) != folder:  # pruned meanwhile
                raise not_stored(catalogue, version) from None
            raise

    async def hold(self, catalogue: str, version: str, holder: str, ttl_s: float) -> None:
        """Record that ``holder`` serves a version."""
        row = (require_shelf(catalogue), require_version(version), require_holder(holder))
        now = self._clock()

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM holds WHERE ends_at <= ?", (now,))
            connection.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?)", (*row, now + ttl_s))

        await self._database.write(write)

    async def prune(self, catalogue: str, *, keep: int, spare: Collection[str] = ()) -> Sequence[str]:
        """Delete all but the newest versions and those in use, and folders that an interrupted `add` left."""
        parameters = (require_shelf(catalogue), require_keep(keep), self._clock())
        spared = json.dumps(sorted(spare))

        def delete(connection: sqlite3.Connection) -> list[tuple[str, str]]:
            pruned = connection.execute(
                "DELETE FROM versions WHERE catalogue = ?1 AND version IS NOT ?4 AND sequence NOT IN"
                " (SELECT sequence FROM versions WHERE catalogue = ?1 ORDER BY sequence DESC LIMIT ?2)"
                " AND version NOT IN (SELECT current FROM pointers WHERE catalogue = ?1)"
                " AND version NOT IN (SELECT ifnull(previous, '') FROM pointers WHERE catalogue = ?1)"
                " AND version NOT IN (SELECT version FROM holds WHERE catalogue = ?1 AND ends_at > ?3)"
                " AND version NOT IN (SELECT value FROM json_each(?5))"
                " RETURNING version, folder",
                (*parameters, _returns_to(connection, catalogue, parameters[2]), spared),
            ).fetchall()
            for table in ("trials", "models_of_versions"):
                connection.execute(
                    f"DELETE FROM {table} WHERE catalogue = ?1"  # noqa: S608 - no name of a caller's
                    " AND version NOT IN (SELECT version FROM versions WHERE catalogue = ?1)",
                    parameters[:1],
                )
            return pruned

        deleted = await self._database.write(delete)
        named = await self._database.rows("SELECT folder FROM versions WHERE catalogue = ?", catalogue)
        gone = {folder for _, folder in deleted}
        await asyncio.to_thread(_sweep, self._folders / catalogue, gone, kept={folder for (folder,) in named})
        return [version for version, _ in deleted]

    async def changes(self) -> AsyncIterator[str]:
        """Names of catalogues whose pointer moved; polls twice a second."""
        known: dict[str, int] | None = None
        while not self._database.closed:
            try:
                moves = dict(await self._database.rows("SELECT catalogue, moves FROM pointers"))
            except StoreUnavailable:
                moves = known or {}
            for catalogue in [name for name in moves if known is not None and moves[name] != known.get(name)]:
                yield catalogue
            known = moves
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _copy(self, bundle: Bundle, folder: Path) -> None:
        layout = Layout.of(bundle.sizes, self._chunk_bytes)
        try:
            await write_bundle(bundle.manifest.version, layout, _reader(bundle.directory, layout), folder)
            await asyncio.to_thread(_sync_folders, folder)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise StoreUnavailable(f"{folder}: {error.strerror}") from None
            raise

    async def _folder(self, catalogue: str, version: str) -> Path | None:
        rows = await self._database.rows(
            "SELECT folder FROM versions WHERE catalogue = ? AND version = ?",
            require_shelf(catalogue),
            require_version(version),
        )
        return self._folders / catalogue / rows[0][0] if rows else None

    def _layout_of(self, folder: Path) -> Layout:
        sizes = {}
        with suppress(OSError):  # what is missing has no chunks
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        return Layout.of(sizes, self._chunk_bytes)


def _listed(connection: sqlite3.Connection, catalogue: str, now: float) -> list[StoredVersion]:
    """Stored versions, newest first."""
    current, previous = _pointer_in(connection, catalogue).current, _returns_to(connection, catalogue, now)
    trials = trials_in(connection, catalogue, now)
    rows = connection.execute(
        "SELECT version, stored_at, size_bytes, (SELECT group_concat(holder) FROM holds"
        " WHERE holds.catalogue = versions.catalogue AND holds.version = versions.version AND ends_at > ?),"
        " (SELECT model FROM models_of_versions AS bound"
        " WHERE bound.catalogue = versions.catalogue AND bound.version = versions.version)"
        " FROM versions WHERE catalogue = ? ORDER BY sequence DESC",
        (now, catalogue),
    )
    return [
        StoredVersion(
            version=version,
            stored_at=datetime.fromtimestamp(stored_at, UTC),
            size_bytes=size,
            is_current=version == current,
            is_previous=version == previous,
            holders=tuple(sorted(holders.split(","))) if holders else (),
            trial=trials[version],
            model=model,
        )
        for version, stored_at, size, holders, model in rows
    ]


def _returns_to(connection: sqlite3.Connection, catalogue: str, now: float) -> str | None:
    """The version that a roll-back goes to."""
    return _pointer_in(connection, catalogue).returns_to(trials_in(connection, catalogue, now))


def _pointer_in(connection: sqlite3.Connection, catalogue: str) -> Pointer:
    row = connection.execute(
        "SELECT current, previous, past FROM pointers LEFT JOIN pasts USING (catalogue) WHERE catalogue = ?",
        (catalogue,),
    ).fetchone()
    return Pointer() if row is None else Pointer.read(*row)


def _point(connection: sqlite3.Connection, catalogue: str, pointer: Pointer) -> None:
    before = connection.execute("SELECT current FROM pointers WHERE catalogue = ?", (catalogue,)).fetchone()
    if pointer.current is not None and before != (pointer.current,):
        healed(connection, catalogue, pointer.current)
    connection.execute(
        "INSERT INTO pointers VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET moves = moves + 1,"
        " current = excluded.current, previous = excluded.previous",
        (catalogue, pointer.current, pointer.previous),
    )
    connection.execute("INSERT OR REPLACE INTO pasts VALUES (?, ?)", (catalogue, " ".join(pointer.past)))


def _reader(directory: Path, layout: Layout) -> ReadChunk:
    async def read(chunk: Chunk, most: int) -> bytes | None:
        offset = chunk.index * layout.chunk_bytes
        return await asyncio.to_thread(read_slice, directory / chunk.name, offset, most)

    return read


def _sync_folders(folder: Path) -> None:
    """Sync folders, so that the names of new files are as durable as their contents."""
    for path in (folder, folder.parent, folder.parent.parent):
        sync(path)


def _sweep(parent: Path, gone: set[str], *, kept: set[str]) -> None:
    """Remove folders that no row names: those just pruned, and old ones of interrupted copies."""
    for folder in parent.glob("*.*"):
        if folder.name in kept:
            continue
        with suppress(OSError):  # another process sweeps too
            if folder.name in gone or time.time() - folder.stat().st_mtime > _ORPHANED_AFTER_S:
                shutil.rmtree(folder)
