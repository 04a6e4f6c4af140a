"""Memory that is free inside this process, given back to the system."""

from __future__ import annotations

import ctypes
import sys


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
