"""Artifacts in Redis: chunks first, then the version's record, then the pointer."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.errors import ArtifactError, IGDError, InputError, StoreError, StoreUnavailable
from igd_core.store.base import StoredVersion
from igd_core.store.bundles import MANIFEST, Bundle, Chunk, Layout, holds_version, receive
from igd_core.store.names import (
    is_catalogue_name,
    not_stored,
    require_catalogue_name,
    require_holder,
    require_keep,
    require_version,
)
from igd_core.store.pointers import Pointer, PointerMove
from igd_core.store.redis.keys import Keys
from igd_core.store.redis.scripts import DISCARD, HOLD, LIST, POINT, PRUNE, STORE
from igd_core.store.redis.trials import RedisTrials, read_trial

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence
    from pathlib import Path

    from igd_core.store.redis.link import Link

# Chunks of an interrupted upload expire.
_UPLOAD_TTL_S = 3600
_MOST_CHUNKS = 1_000_000
_MOST_CHUNK_BYTES = 64 << 20
_MOVES_TRIED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """A stored version's record: ``SEQUENCE STORED_AT_MS {"chunk_bytes":N,"chunks":{FILE:COUNT},"bytes":N}``.

    ``sequence`` numbers the catalogue's versions in the order of arrival, whatever the clock says. A version that is
    served with a published model says so as ``"model":VERSION``.
    """

    sequence: int
    stored_at: datetime
    size_bytes: int
    layout: Layout
    model: str | None

    @staticmethod
    def written(layout: Layout, bundle: Bundle) -> str:
        """The part of the record that the publisher writes."""
        size_bytes, model = sum(bundle.sizes.values()), bundle.manifest.model
        record = {"chunk_bytes": layout.chunk_bytes, "chunks": dict(layout.counts), "bytes": size_bytes}
        return json.dumps(record if model is None else record | {"model": model})

    @staticmethod
    def read(data: bytes, version: str) -> _Record:
        try:
            sequence, stored_at_ms, written = data.decode().split(" ", 2)
            body = json.loads(written)
            counts = {name: int(count) for name, count in body["chunks"].items()}
            model = body.get("model")
            if (
                MANIFEST not in counts
                or not (model is None or isinstance(model, str))
                or not 1 <= int(body["chunk_bytes"]) <= _MOST_CHUNK_BYTES
                or min(counts.values()) < 0
                or sum(counts.values()) > _MOST_CHUNKS
            ):
                raise ValueError("out of range")  # noqa: TRY301 - one way out for all that is wrong
            return _Record(
                sequence=int(sequence),
                stored_at=datetime.fromtimestamp(int(stored_at_ms) / 1000, UTC),
                size_bytes=int(body["bytes"]),
                layout=Layout(chunk_bytes=int(body["chunk_bytes"]), counts=counts),
                model=model,
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
            raise StoreError(f"the record of version {version} cannot be read") from None


class RedisArtifacts(RedisTrials):
    """Implements `igd_core.store.base.ArtifactStore`."""

    def __init__(self, link: Link, bulk: Link, prefix: str, *, chunk_bytes: int) -> None:
        """Chunks use ``bulk``, which has longer time-outs; everything else uses ``link``."""
        super().__init__(link, prefix)
        self._link = link
        self._bulk = bulk
        self._prefix = prefix
        self._chunk_bytes = chunk_bytes
        self._catalogues = f"{prefix}:catalogues"
        self._channel = f"{prefix}:changes"

    async def add(self, directory: Path, *, catalogue: str | None = None) -> str:
        """Upload the artifact's files, then record the version."""
        bundle = await asyncio.to_thread(Bundle.open, directory)
        version = bundle.manifest.version
        catalogue = bundle.shelf(catalogue)
        keys = Keys(self._prefix, catalogue)
        known = await self._record(keys, version)
        layout = known.layout if known else Layout.of(bundle.sizes, self._chunk_bytes)
        await self._link.call("SADD", self._catalogues, catalogue)
        chunk_keys = keys.chunks(version, layout)
        ends: tuple[str | int, ...] = () if known else ("EX", _UPLOAD_TTL_S)
        try:
            for chunk, key in zip(layout.chunks(), chunk_keys, strict=True):
                await self._bulk.call(
                    "SET", key, await asyncio.to_thread(bundle.read, chunk, layout.chunk_bytes), *ends
                )
            written = _Record.written(layout, bundle)
            if not await self._bulk.run(STORE, [keys.versions, keys.pointer, *chunk_keys], [version, written]):
                raise StoreUnavailable(f"version {version} was removed by another while it was being stored")
        except IGDError:
            await self._discard(keys, version, chunk_keys)
            raise
        return version

    async def activate(self, catalogue: str, version: str) -> None:
        """Move the pointer and notify `changes`, in one step."""
        require_catalogue_name(catalogue)
        keys = Keys(self._prefix, catalogue)
        require_version(version)
        for _ in range(_MOVES_TRIED):
            seen = await self._pointer(keys)
            if await self._point(keys, catalogue, seen, seen.moved_to(version)):
                return
        raise StoreUnavailable(f"others keep moving the pointer of catalogue {catalogue!r}")

    async def roll_back(self, catalogue: str, version: str | None = None) -> PointerMove:
        """Move the pointer back and notify `changes`, unless somebody else has moved it meanwhile."""
        require_catalogue_name(catalogue)
        keys = Keys(self._prefix, catalogue)
        if version is not None:
            require_version(version)
        seen = await self._pointer(keys)
        trials = {each.version: each.trial for each, _ in await self._listed(keys)}
        after = seen.rolled_back(catalogue, version, trials)
        if not await self._point(keys, catalogue, seen, after):
            raise InputError(
                f"catalogue {catalogue!r}: somebody else has just moved the pointer from {seen.current}; look again"
            )
        return PointerMove.between(seen, after, trials)

    async def current(self, catalogue: str) -> str | None:
        """The version that the pointer names."""
        value = await self._link.call("HGET", Keys(self._prefix, catalogue).pointer, "current")
        return None if value is None else _text(value)

    async def previous(self, catalogue: str) -> str | None:
        """The version that a roll-back returns to."""
        return next((stored.version for stored in await self.versions(catalogue) if stored.is_previous), None)

    async def catalogues(self) -> Sequence[str]:
        """Names of catalogues with a stored version, sorted."""
        names = sorted(map(_text, await self._link.call("SMEMBERS", self._catalogues)))
        return [
            name
            for name in names
            if is_catalogue_name(name) and await self._link.call("HLEN", Keys(self._prefix, name).versions)
        ]

    async def versions(self, catalogue: str) -> Sequence[StoredVersion]:
        """Stored versions, newest first."""
        return [stored for stored, _ in await self._listed(Keys(self._prefix, catalogue))]

    async def fetch(self, catalogue: str, version: str, parent: Path) -> Path:
        """Copy a version to ``parent / version`` unless it is there."""
        keys = Keys(self._prefix, catalogue)
        if await asyncio.to_thread(holds_version, parent / require_version(version), version):
            return parent / version
        record = await self._record(keys, version)
        if record is None:
            raise not_stored(catalogue, version)

        async def read(chunk: Chunk, most: int) -> bytes | None:
            # One byte more than allowed shows that it is too long. No chunk is empty, so an empty answer is a missing
            # one.
            data: bytes = await self._bulk.call("GETRANGE", keys.chunk(version, chunk), 0, most)
            return data or None

        try:
            return await receive(version, record.layout, read, parent)
        except ArtifactError:
            if await self._record(keys, version) is None:  # pruned meanwhile
                raise not_stored(catalogue, version) from None
            raise

    async def hold(self, catalogue: str, version: str, holder: str, ttl_s: float) -> None:
        """Record that ``holder`` serves a version."""
        held = f"{require_version(version)}/{require_holder(holder)}"
        await self._link.run(HOLD, [Keys(self._prefix, catalogue).holds], [held, round(ttl_s * 1000)])

    async def prune(self, catalogue: str, *, keep: int, spare: Collection[str] = ()) -> Sequence[str]:
        """Delete all but the newest versions and those in use."""
        keys = Keys(self._prefix, catalogue)
        deleted = []
        for stored, layout in (await self._listed(keys))[require_keep(keep) :]:
            if stored.is_previous or stored.version in spare:
                continue
            chunk_keys = keys.chunks(stored.version, layout)
            if await self._link.run(
                PRUNE, [keys.versions, keys.pointer, keys.holds, keys.trials, *chunk_keys], [stored.version]
            ):
                deleted.append(stored.version)
        return deleted

    async def changes(self) -> AsyncGenerator[str, None]:
        """Names of catalogues whose pointer moved."""
        async with aclosing(self._link.messages(self._channel)) as messages:
            async for message in messages:
                yield _text(message)

    async def _pointer(self, keys: Keys) -> Pointer:
        return _read_pointer(await self._link.call("HMGET", keys.pointer, "current", "previous", "past"))

    async def _point(self, keys: Keys, catalogue: str, seen: Pointer, after: Pointer) -> bool:
        """Move the pointer; False if it has moved since it was read."""
        version = str(after.current)
        moved = await self._link.run(
            POINT,
            [keys.versions, keys.pointer, keys.trials],
            [version, self._channel, catalogue, seen.current or "", " ".join(after.past)],
        )
        if not moved:
            raise not_stored(catalogue, version)
        return bool(moved > 0)

    async def _record(self, keys: Keys, version: str) -> _Record | None:
        data = await self._link.call("HGET", keys.versions, require_version(version))
        return None if data is None else _Record.read(data, version)

    async def _listed(self, keys: Keys) -> list[tuple[StoredVersion, Layout]]:
        versions, fields, holds, trials = await self._link.run(
            LIST, [keys.versions, keys.pointer, keys.holds, keys.trials], []
        )
        pointer = _read_pointer(fields)
        held = [_text(hold).partition("/")[::2] for hold in holds]
        names = list(map(_text, versions[::2]))
        trial_of = dict(zip(names, map(read_trial, trials), strict=True))
        records = {name: _Record.read(data, name) for name, data in zip(names, versions[1::2], strict=True)}
        previous = pointer.returns_to(trial_of)
        return [
            (
                StoredVersion(
                    version=name,
                    stored_at=record.stored_at,
                    size_bytes=record.size_bytes,
                    is_current=name == pointer.current,
                    is_previous=name == previous,
                    holders=tuple(sorted(holder for version, holder in held if version == name)),
                    trial=trial_of[name],
                    model=record.model,
                ),
                record.layout,
            )
            for name, record in sorted(records.items(), key=lambda known: -known[1].sequence)
        ]

    async def _discard(self, keys: Keys, version: str, chunk_keys: list[str]) -> None:
        try:
            await self._bulk.run(DISCARD, [keys.versions, *chunk_keys], [version])
        except StoreError:
            return  # the remaining keys expire


def _read_pointer(fields: Sequence[bytes | None]) -> Pointer:
    return Pointer.read(*(None if field is None else _text(field) for field in fields))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
