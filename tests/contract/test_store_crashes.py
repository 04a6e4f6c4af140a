"""A publisher that is killed between an artifact's parts and its record: nothing of it is visible or in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from bundles import contents
from patience import PATIENCE_S
from redis_server import RedisServer
from stores import version_of

from igd_core.store.base import StoreOptions
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Dies where the record would be written.
PUBLISHER = """
import asyncio, os, pathlib, signal, sys
from igd_core.store.files.database import Database
from igd_core.store.open import open_store
from igd_core.store.redis.link import Link

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

Database.write = Link.run = die
asyncio.run(open_store(sys.argv[1]).add(pathlib.Path(sys.argv[2])))
"""


@pytest.fixture(params=["files", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "files":
        yield f"file://{tmp_path}/store"
        return
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        yield server.url


def kill_a_publisher(url: str, bundle: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", PUBLISHER, url, str(bundle)], check=False)
    assert killed.returncode == -signal.SIGKILL


async def test_a_killed_publisher_leaves_nothing_visible(url: str, pristine_bundle: Path, tmp_path: Path) -> None:
    kill_a_publisher(url, pristine_bundle)
    store = open_store(url, options=StoreOptions(timeout_s=PATIENCE_S))
    assert await store.catalogues() == []
    assert await store.versions("small") == []
    assert await store.add(pristine_bundle) == version_of(pristine_bundle)
    assert contents(await store.fetch("small", version_of(pristine_bundle), tmp_path)) == contents(pristine_bundle)
    await store.close()


async def test_pruning_sweeps_up_what_killed_publishers_left_in_a_directory(
    pristine_bundle: Path, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/store"
    kill_a_publisher(url, pristine_bundle)
    folders = tmp_path / "store" / "artifacts" / "small"
    (left,) = folders.iterdir()
    store = open_store(url, options=StoreOptions(timeout_s=PATIENCE_S))
    await store.add(pristine_bundle)
    await store.prune("small", keep=1)
    assert left.exists()  # it could be one that is being written
    an_hour_ago = time.time() - 3601
    os.utime(left, (an_hour_ago, an_hour_ago))
    await store.prune("small", keep=1)
    assert not left.exists()
    assert len(list(folders.iterdir())) == 1
    await store.close()
