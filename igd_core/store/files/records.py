"""Lists of bytes of each user in a database, and the name of its content."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from igd_core.store.names import require_user_id

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from igd_core.store.base import RecordList
    from igd_core.store.files.database import Database

_EXPIRED_AT_ONCE = 64


class FilesRecords:
    """Implements `igd_core.store.base.RecordStore`."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds since 1970."""
        self._records_database = database
        self._records_clock = clock

    async def add_records(
        self, name: RecordList, records: Mapping[str, Sequence[bytes]], *, keep: int, ttl_s: float
    ) -> None:
        """Add to lists of users, and delete a few of the records that have ended, whoever's."""
        now = self._records_clock()
        rows = [(name, require_user_id(user), now + ttl_s, each) for user, added in records.items() for each in added]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM records WHERE sequence IN"
                " (SELECT sequence FROM records WHERE ends_at <= ? ORDER BY ends_at LIMIT ?)",
                (now, _EXPIRED_AT_ONCE),
            )
            connection.executemany("INSERT INTO records (list, user_id, ends_at, data) VALUES (?, ?, ?, ?)", rows)
            connection.executemany(
                "DELETE FROM records WHERE list = ?1 AND user_id = ?2 AND sequence <= (SELECT sequence FROM records"
                " WHERE list = ?1 AND user_id = ?2 ORDER BY sequence DESC LIMIT 1 OFFSET ?3)",
                [(name, user, keep) for user in records],
            )

        await self._records_database.write(write)

    async def records(self, name: RecordList, user_id: str) -> Sequence[bytes]:
        """A user's list, oldest first."""
        rows = await self._records_database.rows(
            "SELECT data FROM records WHERE list = ? AND user_id = ? AND ends_at > ? ORDER BY sequence",
            name,
            require_user_id(user_id),
            self._records_clock(),
        )
        return [data for (data,) in rows]

    async def identity(self) -> str:
        """The name of the database's content."""

        def write(connection: sqlite3.Connection) -> str:
            connection.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (uuid.uuid4().hex,))
            return str(connection.execute("SELECT name FROM identity").fetchone()[0])

        return await self._records_database.write(write)
