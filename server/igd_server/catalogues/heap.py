"""Keep this process's memory small: return free pages, and exempt lasting objects from garbage collection."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys

_COLLECT_EVERY = (5_000, 10, 10)


def give_back_free_memory() -> bool:
    """Make glibc return free pages from within its arenas; it would keep most of them. False without glibc.

    Versions that were unloaded and passes of the model leave many holes: of 860 MiB resident, this returned 80 to 110
    after each swap, in 15 ms. It does not hold Python's lock; call it in a thread.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    return bool(trim(ctypes.c_size_t(0)))


def settle_collector() -> None:
    """Exempt all objects of a started server from Python's garbage collector; call it once.

    Hundreds of thousands of objects of torch, pydantic and the routes live until the end. Searching them again and
    again took a sixth of the time of a cached answer (tests/bench/hot_path.py). This call takes some tenths of a
    second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_EVERY)


async def keep_giving_back_free_memory(every_s: float) -> None:
    """Call it every ``every_s`` seconds until cancelled.

    Concurrent requests leave holes as well: each pass of the model needs tens of megabytes, with small blocks that stay
    between them.
    """
    while True:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(give_back_free_memory)
