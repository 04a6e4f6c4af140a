"""Files that flags and settings name, read whole: a wrong path may lead to a pipe, a device or a file of any length."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES = 1 << 20


def require_regular(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which would be waited for; opening a folder fails by itself.

    Raises:
        DataError: it is one.
        OSError: there is nothing there, or it may not be looked at.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: is no regular file")


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a small file holds.

    Raises:
        DataError: it is no regular file, or longer than ``most`` bytes.
        OSError: it cannot be read.
    """
    require_regular(path)
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(f"{path}: longer than {most:,} bytes")
    return data
