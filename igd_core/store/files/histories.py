"""Users' events in a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_core.store.events import Event
from igd_core.store.names import require_event, require_user_id

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from igd_core.store.base import HistoryLimits
    from igd_core.store.files.database import Database

_EXPIRED_AT_ONCE = 16


class FilesHistories:
    """Implements `igd_core.store.base.HistoryStore`."""

    def __init__(self, database: Database, clock: Callable[[], float], limits: HistoryLimits) -> None:
        """``clock`` gives seconds since 1970."""
        self._database = database
        self._clock = clock
        self._limits = limits

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events to a user's history."""
        require_user_id(user_id)
        rows = [(user_id, event.event_id, event.item_id, event.timestamp_ms) for event in map(require_event, events)]
        if not rows:
            return 0
        now, limits = self._clock(), self._limits

        def write(connection: sqlite3.Connection) -> int:
            _forget_the_expired(connection, user_id, now)
            before = connection.total_changes
            connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", rows)
            new = connection.total_changes - before
            connection.execute(
                "DELETE FROM events WHERE user_id = ?1 AND event_id NOT IN (SELECT event_id FROM events"
                " WHERE user_id = ?1 ORDER BY timestamp_ms DESC, event_id DESC LIMIT ?2)",
                (user_id, limits.max_events),
            )
            connection.execute("INSERT OR REPLACE INTO users VALUES (?, ?)", (user_id, now + limits.ttl_s))
            return new

        return await self._database.write(write)

    async def history(self, user_id: str) -> Sequence[Event]:
        """A user's events, oldest first."""
        rows = await self._database.rows(
            "SELECT event_id, item_id, timestamp_ms FROM events JOIN users USING (user_id)"
            " WHERE user_id = ? AND ends_at > ? ORDER BY timestamp_ms, event_id",
            require_user_id(user_id),
            self._clock(),
        )
        return [Event(event_id=event, item_id=item, timestamp_ms=timestamp) for event, item, timestamp in rows]

    async def forget(self, user_id: str) -> bool:
        """Delete a user's history."""
        had_any = bool(await self.history(user_id))

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,))
            connection.execute("DELETE FROM users WHERE user_id = ?", (user_id,))

        await self._database.write(delete)
        return had_any


def _forget_the_expired(connection: sqlite3.Connection, user_id: str, now: float) -> None:
    """Delete this user's history if it has expired, and those of a few other users: with every event a little."""
    expired = connection.execute(
        "SELECT user_id FROM users WHERE ends_at <= ?1 AND (user_id = ?2 OR user_id IN"
        " (SELECT user_id FROM users WHERE ends_at <= ?1 ORDER BY ends_at LIMIT ?3))",
        (now, user_id, _EXPIRED_AT_ONCE),
    ).fetchall()
    connection.executemany("DELETE FROM events WHERE user_id = ?", expired)
    connection.executemany("DELETE FROM users WHERE user_id = ?", expired)
