"""What tests of stores share: versions to publish, events, a cluster of one node, and waiting for what will be."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from redis_server import RedisServer, patiently

from igd_core.artifact import Manifest
from igd_core.store.events import Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


def another_version(bundle: Path, directory: Path, alpha: float) -> Path:
    """A copy of ``bundle`` that is another version of the same size, more or less."""
    shutil.copytree(bundle, directory)
    manifest = Manifest.from_bytes((bundle / "manifest.json").read_bytes())
    (directory / "manifest.json").write_bytes(replace(manifest, alpha=alpha).to_bytes())
    return directory


def version_of(bundle: Path) -> str:
    return Manifest.from_bytes((bundle / "manifest.json").read_bytes()).version


def event(number: int, *, at: int | None = None, item: str | None = None) -> Event:
    """Event ``e<number>``, at ``number`` ms unless told otherwise."""
    return Event(
        event_id=f"e{number}",
        item_id=f"item-{number}" if item is None else item,
        timestamp_ms=number if at is None else at,
    )


def one_node_cluster(directory: Path) -> RedisServer:
    """A cluster that one server makes up; to be used as ``with one_node_cluster(path) as server``."""

    class Cluster(RedisServer):
        def start(self) -> None:
            super().start()
            if "cluster_slots_assigned:16384" not in self.cli("cluster", "info"):
                self.cli("cluster", "addslotsrange", "0", "16383")
            for _ in patiently("the cluster", self.log):
                if "cluster_state:ok" in self.cli("cluster", "info"):
                    return

    return Cluster(directory, cluster_enabled="yes")


def cluster_url(*servers: RedisServer) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


async def until(condition: Callable[[], Awaitable[object]], *, within_s: float = 15.0) -> float:
    """Ask again and again until the answer is true; returns how many seconds that took."""
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for lies in another process
            await asyncio.sleep(0.005)
    return time.monotonic() - started
