"""Users' events in a database: those that make histories and the others, each in two tables of one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import StoreError
from igd_core.store.base import RECORD_LISTS, Forgotten
from igd_core.store.events import Event, joining
from igd_core.store.names import require_event, require_user_id

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence

    from igd_core.store.base import HistoryLimits
    from igd_core.store.files.database import Database

_EXPIRED_AT_ONCE = 16
_USERS_A_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """The tables of users and of their events."""

    users: str
    events: str


_HISTORY = _Tables(users="users", events="events")
_OTHERS = _Tables(users="other_users", events="other_events")


class FilesHistories:
    """Implements `igd_core.store.base.HistoryStore`."""

    def __init__(self, database: Database, clock: Callable[[], float], limits: HistoryLimits) -> None:
        """``clock`` gives seconds since 1970."""
        self._database = database
        self._clock = clock
        self._limits = limits

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events to a user's history."""
        return await self._append(_HISTORY, user_id, events)

    async def history(self, user_id: str) -> Sequence[Event]:
        """A user's events, oldest first."""
        return await self._events(_HISTORY, user_id)

    async def append_others(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events that make no history."""
        return await self._append(_OTHERS, user_id, events)

    async def other_events(self, user_id: str) -> Sequence[Event]:
        """Those events, oldest first."""
        return await self._events(_OTHERS, user_id)

    async def forget(self, user_id: str) -> Forgotten:
        """Delete everything about a user."""
        require_user_id(user_id)
        now = self._clock()

        def delete(connection: sqlite3.Connection) -> Forgotten:
            counts = [_deleted_events(connection, tables, user_id, now) for tables in (_HISTORY, _OTHERS)]
            ends = connection.execute("DELETE FROM records WHERE user_id = ? RETURNING list, ends_at", (user_id,))
            live = [name for name, ends_at in ends.fetchall() if ends_at > now]
            records = {name: live.count(name) for name in RECORD_LISTS}
            return Forgotten(events=counts[0], other_events=counts[1], **records)

        return await self._database.write(delete)

    async def users(self) -> AsyncIterator[Sequence[str]]:
        """All users by id, page by page."""
        after = ""
        while True:
            rows = await self._database.rows(
                "SELECT user_id FROM users WHERE user_id > ?1 AND ends_at > ?2"
                " UNION SELECT user_id FROM other_users WHERE user_id > ?1 AND ends_at > ?2"
                " UNION SELECT user_id FROM records WHERE user_id > ?1 AND ends_at > ?2 AND list = 'impressions'"
                " ORDER BY user_id LIMIT ?3",
                after,
                self._clock(),
                _USERS_A_PAGE,
            )
            if not rows:
                return
            yield [user_id for (user_id,) in rows]
            after = rows[-1][0]

    async def _append(self, tables: _Tables, user_id: str, events: Sequence[Event]) -> int:
        require_user_id(user_id)
        for event in events:
            require_event(event)
        if not events:
            return 0
        now, limits = self._clock(), self._limits

        def write(connection: sqlite3.Connection) -> int:
            _forget_the_expired(connection, tables, user_id, now)
            stored = connection.execute(
                f"SELECT event_id, timestamp_ms, item_id FROM {tables.events} WHERE user_id = ?",  # noqa: S608
                (user_id,),
            )
            known = {event.event_id: event for event in _unpacked(tables, stored.fetchall())}
            joined = joining(known, events, limits.max_events)
            rows = [(user_id, event.event_id, event.packed(), event.timestamp_ms) for event in joined]
            connection.executemany(f"INSERT INTO {tables.events} VALUES (?, ?, ?, ?)", rows)  # noqa: S608 - a constant
            oldest = sorted([*known.values(), *joined], key=lambda event: event.place)[: -limits.max_events]
            connection.executemany(
                f"DELETE FROM {tables.events} WHERE user_id = ? AND event_id = ?",  # noqa: S608
                [(user_id, event.event_id) for event in oldest],
            )
            keep = f"INSERT OR REPLACE INTO {tables.users} VALUES (?, ?)"  # noqa: S608
            connection.execute(keep, (user_id, now + limits.ttl_s))
            return len(joined)

        return await self._database.write(write)

    async def _events(self, tables: _Tables, user_id: str) -> Sequence[Event]:
        rows = await self._database.rows(
            f"SELECT event_id, timestamp_ms, item_id FROM {tables.events} JOIN {tables.users} USING (user_id)"  # noqa: S608
            " WHERE user_id = ? AND ends_at > ?",
            require_user_id(user_id),
            self._clock(),
        )
        return sorted(_unpacked(tables, rows), key=lambda event: event.place)


def _unpacked(tables: _Tables, rows: Sequence[tuple[str, int, str]]) -> list[Event]:
    """Rows of event id, time and what else an event says."""
    try:
        return [Event.unpacked(*row) for row in rows]
    except ValueError:
        raise StoreError(f"the table {tables.events!r} holds an event that cannot be read") from None


def _deleted_events(connection: sqlite3.Connection, tables: _Tables, user_id: str, now: float) -> int:
    """How many events of the user that had not expired were deleted."""
    ends = connection.execute(f"DELETE FROM {tables.users} WHERE user_id = ? RETURNING ends_at", (user_id,)).fetchall()  # noqa: S608
    number = connection.execute(f"DELETE FROM {tables.events} WHERE user_id = ?", (user_id,)).rowcount  # noqa: S608
    return number if ends and ends[0][0] > now else 0


def _forget_the_expired(connection: sqlite3.Connection, tables: _Tables, user_id: str, now: float) -> None:
    """Delete this user's events if they have expired, and those of a few other users: with every event a little."""
    expired = connection.execute(
        f"SELECT user_id FROM {tables.users} WHERE ends_at <= ?1 AND (user_id = ?2 OR user_id IN"  # noqa: S608
        f" (SELECT user_id FROM {tables.users} WHERE ends_at <= ?1 ORDER BY ends_at LIMIT ?3))",
        (now, user_id, _EXPIRED_AT_ONCE),
    ).fetchall()
    connection.executemany(f"DELETE FROM {tables.events} WHERE user_id = ?", expired)  # noqa: S608
    connection.executemany(f"DELETE FROM {tables.users} WHERE user_id = ?", expired)  # noqa: S608
