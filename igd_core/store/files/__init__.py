"""A store in one directory: artifacts as folders, everything else in a SQLite database beside them.

::

    ROOT/store.sqlite                              versions, pointers, holds, histories, records
    ROOT/artifacts/CATALOGUE/VERSION.SOMETHING/    a bundle; valid once a row of the database names it

For the processes of one machine: SQLite's locks do not work on network file systems.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from igd_core.store.base import StoreOptions
from igd_core.store.files.artifacts import FilesArtifacts
from igd_core.store.files.database import Database
from igd_core.store.files.histories import FilesHistories
from igd_core.store.files.records import FilesRecords
from igd_core.store.memory import MemoryResults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FilesStore"]


class FilesStore(FilesArtifacts, FilesHistories, FilesRecords, MemoryResults):
    """Implements `igd_core.store.base.Store`; results are in this process's memory, and lost with it."""

    def __init__(
        self, root: Path, options: StoreOptions | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Opens nothing yet. ``clock`` gives seconds since 1970; holds, histories, records and results expire by it."""
        options = options or StoreOptions()
        self._database = Database(root / "store.sqlite", timeout_s=options.timeout_s)
        FilesArtifacts.__init__(self, root / "artifacts", self._database, clock, chunk_bytes=options.chunk_bytes)
        FilesHistories.__init__(self, self._database, clock, options.history)
        FilesRecords.__init__(self, self._database, clock)
        MemoryResults.__init__(self, clock)

    async def ping(self) -> None:
        """Return if the database can be read."""
        await self._database.rows("SELECT 1 FROM versions LIMIT 1")

    async def close(self) -> None:
        """Close the database."""
        await self._database.close()
