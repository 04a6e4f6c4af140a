"""This process's memory: what is free in it is given back, and what stays is not searched for garbage."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys

_COLLECT_EVERY = (5_000, 10, 10)


def give_back_free_memory() -> bool:
    """Have glibc return free pages from within its arenas; it would keep most of them. False where there is no glibc.

    A retired version and the passes of the model leave many holes: of 860 MiB resident, this gave back 80 to 110 after
    each swap, in 15 ms. It holds no lock of Python's; call it in a thread.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, as musl
        return False
    return bool(trim(ctypes.c_size_t(0)))


def settle_collector() -> None:
    """Set apart all that a started server consists of, so that Python's collector leaves it alone; once a process.

    Hundreds of thousands of objects of torch, pydantic and the routes stay to the end. To look through them again and
    again was a sixth of what a cached answer cost (tests/bench/hot_path.py). It takes some tenths of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_EVERY)


async def keep_giving_back_free_memory(every_s: float) -> None:
    """Do so every ``every_s`` seconds until cancelled.

    Requests that run at once leave holes as well: the passes of their model need tens of megabytes each, and between
    these lie small blocks that stay.
    """
    while True:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(give_back_free_memory)
