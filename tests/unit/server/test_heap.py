"""Memory given back to the system."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import psutil
import pytest

from server.heap import give_back_free_memory, keep_giving_back_free_memory

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
