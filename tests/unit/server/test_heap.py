"""Memory given back to the system."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from publishing import WatchedEngine, deployed

from igd_core.store.memory import MemoryStore
from server import deployment, heap
from server.heap import give_back_free_memory, keep_giving_back_free_memory

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")


def test_what_lies_free_between_blocks_in_use_is_given_back() -> None:
    blocks = [bytearray(8192) for _ in range(20_000)]
    kept = blocks[::100]
    before = psutil.Process().memory_info().rss
    del blocks
    assert give_back_free_memory()
    assert before - psutil.Process().memory_info().rss > 100 << 20
    assert len(kept) == 200


async def test_it_is_given_back_again_and_again() -> None:
    giving = asyncio.create_task(keep_giving_back_free_memory(0.02))
    for _ in range(2):
        blocks = [bytearray(8192) for _ in range(20_000)]
        kept = blocks[::100]
        before = psutil.Process().memory_info().rss
        del blocks
        async with asyncio.timeout(10):
            while before - psutil.Process().memory_info().rss < 100 << 20:  # noqa: ASYNC110 - memory tells nobody
                await asyncio.sleep(0.02)
        assert len(kept) == 200
    giving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await giving


async def test_a_server_gives_it_back_until_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = 0

    def counted() -> bool:
        nonlocal given_back
        given_back += 1
        return True

    monkeypatch.setattr(heap, "give_back_free_memory", counted)
    monkeypatch.setattr(deployment, "_GIVE_BACK_S", 0.01)
    async with deployed(MemoryStore(), tmp_path, WatchedEngine()):
        async with asyncio.timeout(10):
            while given_back < 3:  # noqa: ASYNC110 - the heap tells nobody
                await asyncio.sleep(0.01)
    stopped_at = given_back
    await asyncio.sleep(0.1)
    assert given_back == stopped_at
