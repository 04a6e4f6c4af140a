"""Memory given back to the system."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from igd_server.catalogues import deployment, heap
from igd_server.catalogues.heap import give_back_free_memory, keep_giving_back_free_memory
from patience import PATIENCE_S
from publishing import WatchedEngine, deployed, edition, live_deployment, publish, serves

from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer

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
        async with asyncio.timeout(PATIENCE_S):
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
        async with asyncio.timeout(PATIENCE_S):
            while given_back < 3:  # noqa: ASYNC110 - the heap tells nobody
                await asyncio.sleep(0.01)
    stopped_at = given_back
    await asyncio.sleep(0.1)
    assert given_back == stopped_at


def test_the_collector_leaves_alone_what_a_started_server_consists_of() -> None:
    """In a process of its own: it is for a process's whole life."""
    program = """
import gc
from igd_server.catalogues.heap import settle_collector

class Ring:
    def __init__(self):
        self.ring = self

kept = [Ring() for _ in range(1000)]
Ring()  # garbage of the start is not kept for ever
settle_collector()
assert gc.get_freeze_count() >= 1000, gc.get_freeze_count()
assert not any(isinstance(found, Ring) for found in gc.get_objects()), "searched again and again"
assert gc.collect() < 100, "garbage was set apart with the rest"
for _ in range(20_000):
    Ring()
assert sum(isinstance(found, Ring) for found in gc.get_objects()) < 10_000, "later garbage stays"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


async def test_a_deployment_says_once_that_it_is_ready(tmp_path: Path, tokenizer: TitleTokenizer) -> None:
    store, said = MemoryStore(), list[str | None]()
    deployment = live_deployment(store, tmp_path / "cache", WatchedEngine())
    deployment.on_ready = lambda: said.append(deployment.why_not_ready())
    await deployment.start()
    assert not said, "nothing is served yet"
    for number in (1, 2):
        version = await publish(store, edition(tokenizer, number), tmp_path)
        await serves(deployment, version)
    assert said == [None]
    await deployment.close()
