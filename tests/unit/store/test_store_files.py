"""The files store where the disk, another process or the clock misbehaves."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import pytest
from bundles import contents
from publishing import PATIENT
from stores import another_version, event, version_of

from igd_core.errors import ArtifactError, InputError, StoreError, StoreUnavailable
from igd_core.store.base import HistoryLimits, StoreOptions
from igd_core.store.files import FilesStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TIMEOUT_S = 2.0


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[FilesStore]:
    options = StoreOptions(timeout_s=TIMEOUT_S, history=HistoryLimits(ttl_s=100))
    opened = FilesStore(tmp_path / "store", options, clock=clock)
    yield opened
    await opened.close()


async def test_a_locked_database_is_unavailable_in_time(store: FilesStore, tmp_path: Path) -> None:
    await store.append("ann", [event(1)])
    other = sqlite3.connect(tmp_path / "store" / "store.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"store\.sqlite"):
        await store.append("ann", [event(2)])
    assert time.monotonic() - started < TIMEOUT_S + 20.0
    assert await store.history("ann") == [event(1)]  # readers do not wait for writers
    other.execute("ROLLBACK")
    other.close()
    assert await store.append("ann", [event(2)]) == 1


async def test_a_new_store_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    for number in range(30):
        stores = [FilesStore(tmp_path / str(number), PATIENT) for _ in range(4)]
        assert await asyncio.gather(*(store.append("ann", [event(n)]) for n, store in enumerate(stores))) == [1] * 4
        assert len(await stores[0].history("ann")) == 4
        for store in stores:
            await store.close()


async def test_calls_that_nobody_waits_for_any_more_are_not_begun(store: FilesStore) -> None:
    await store.ping()
    busy, done = threading.Event(), []
    blocked = asyncio.ensure_future(store._database.write(lambda _: busy.wait(10)))
    await asyncio.sleep(0.05)
    waiting = [store._database.write(lambda _: done.append(1)) for _ in range(5)]
    outcomes = await asyncio.gather(blocked, *waiting, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    busy.set()
    while True:
        try:
            await store.ping()
            break
        except StoreUnavailable:
            continue
    assert done == []


async def test_a_write_that_fails_half_way_writes_nothing(store: FilesStore) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO users VALUES ('ann', 1e12)")
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        await store._database.write(fail)
    assert await store._database.rows("SELECT * FROM users") == []


async def test_a_full_disk_is_unavailable_and_leaves_nothing(
    store: FilesStore, pristine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreUnavailable, match="No space left on device"):
            await store.add(pristine_bundle)
    assert list((tmp_path / "store" / "artifacts" / "small").iterdir()) == []
    assert await store.versions("small") == []
    version = await store.add(pristine_bundle)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            await store.fetch("small", version, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_place_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    store = FilesStore(tmp_path / "file", PATIENT)
    with pytest.raises(StoreUnavailable, match="file"):
        await store.ping()
    await store.close()


async def test_a_file_that_is_no_database_or_of_another_release_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"something else entirely " * 100)
    store = FilesStore(tmp_path, PATIENT)
    with pytest.raises(StoreError, match="not a database"):
        await store.ping()
    await store.close()
    (tmp_path / "newer").mkdir()
    made = sqlite3.connect(tmp_path / "newer" / "store.sqlite")
    made.execute("PRAGMA user_version = 7")
    made.close()
    store = FilesStore(tmp_path / "newer", PATIENT)
    with pytest.raises(StoreError, match="layout 7; this release reads 1"):
        await store.ping()
    await store.close()


@pytest.mark.parametrize("part", ["manifest.json", "trie.safetensors", "items.parquet"])
async def test_a_damaged_version_is_not_fetched_and_publishing_it_again_heals_it(
    store: FilesStore, pristine_bundle: Path, tmp_path: Path, part: str
) -> None:
    version = await store.add(pristine_bundle)
    (folder,) = (tmp_path / "store" / "artifacts" / "small").iterdir()
    data = bytearray((folder / part).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / part).write_bytes(data)
    with pytest.raises(ArtifactError, match=part.replace(".", r"\.")):
        await store.fetch("small", version, tmp_path / "cache")
    (folder / part).unlink()
    with pytest.raises(ArtifactError, match=part.replace(".", r"\.")):
        await store.fetch("small", version, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert await store.add(pristine_bundle) == version
    assert contents(await store.fetch("small", version, tmp_path / "cache")) == contents(pristine_bundle)


async def test_a_version_that_is_pruned_under_a_reader_is_not_stored(
    store: FilesStore, pristine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await store.add(pristine_bundle)
    folder = await store._folder("small", version)
    assert folder is not None
    await store.prune("small", keep=0)
    real = store._folder
    answers = iter([folder])

    async def late(catalogue: str, version: str) -> Path | None:
        return next(answers, None) or await real(catalogue, version)

    monkeypatch.setattr(store, "_folder", late)
    with pytest.raises(InputError, match="is not stored"):
        await store.fetch("small", version, tmp_path / "cache")


async def test_histories_and_holds_end_by_the_clock_and_survive_its_jumps(
    store: FilesStore, clock: Clock, pristine_bundle: Path, tmp_path: Path
) -> None:
    first = await store.add(another_version(pristine_bundle, tmp_path / "first", alpha=0.9))
    clock.now -= 86_400  # what is stored later is newer all the same
    second = await store.add(pristine_bundle)
    assert [stored.version for stored in await store.versions("small")] == [second, first]
    await store.append("ann", [event(1)])
    await store.hold("small", first, "me", 50)
    clock.now += 49
    assert await store.history("ann") == [event(1)]
    assert await store.prune("small", keep=1) == []
    clock.now += 2
    assert await store.prune("small", keep=1) == [first]
    clock.now -= 3600
    assert await store.history("ann") == [event(1)]
    clock.now += 3600 + 60
    assert await store.history("ann") == []
    assert not await store.forget("ann")


async def test_expired_histories_are_deleted_as_others_grow(store: FilesStore, clock: Clock, tmp_path: Path) -> None:
    for number in range(40):
        await store.append(f"user-{number}", [event(1), event(2)])
    clock.now += 101
    for number in range(3):
        await store.append("ann", [event(number)])
    database = sqlite3.connect(tmp_path / "store" / "store.sqlite")
    assert database.execute("SELECT count(*) FROM users").fetchone() == (1,)
    assert database.execute("SELECT count(*) FROM events").fetchone() == (3,)
    database.close()


async def test_a_store_that_was_copied_elsewhere_works(
    store: FilesStore, pristine_bundle: Path, tmp_path: Path
) -> None:
    version = await store.add(pristine_bundle)
    await store.activate("small", version)
    await store.close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    shutil.rmtree(tmp_path / "store")
    copy = FilesStore(tmp_path / "copy", PATIENT)
    assert await copy.current("small") == version == version_of(pristine_bundle)
    assert contents(await copy.fetch("small", version, tmp_path / "cache")) == contents(pristine_bundle)
    await copy.close()
