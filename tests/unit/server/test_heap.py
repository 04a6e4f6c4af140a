"""Memory given back to the system."""

from __future__ import annotations

import sys

import psutil
import pytest

from server.heap import give_back_free_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")
def test_what_lies_free_between_blocks_in_use_is_given_back() -> None:
    blocks = [bytearray(8192) for _ in range(20_000)]
    kept = blocks[::100]
    before = psutil.Process().memory_info().rss
    del blocks
    assert give_back_free_memory()
    assert before - psutil.Process().memory_info().rss > 100 << 20
    assert len(kept) == 200
