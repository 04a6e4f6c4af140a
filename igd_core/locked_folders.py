"""A folder that one process writes at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILE = ".lock"
"""In the folder; it stays there. Not the folder itself is locked: NFS locks only what can be written."""


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Within the block no other process writes the folder ``--out``, which is made if it is missing.

    The kernel ends the lock with the process, however that ends.

    Raises:
        DataError: another process is writing it, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise DataError(f"out: {path} is a file, not a folder") from None
    except OSError as error:
        raise DataError(f"out: {path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(f"out: {path}: another process is writing it") from None
    finally:
        os.close(lock)
