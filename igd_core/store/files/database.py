"""A SQLite database on a thread of its own, so that the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from igd_core.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS versions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, catalogue TEXT NOT NULL, version TEXT NOT NULL,
    folder TEXT NOT NULL, size_bytes INTEGER NOT NULL, stored_at REAL NOT NULL, UNIQUE (catalogue, version));
CREATE TABLE IF NOT EXISTS pointers (
    catalogue TEXT PRIMARY KEY, current TEXT NOT NULL, previous TEXT, moves INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (
    catalogue TEXT, version TEXT, holder TEXT, ends_at REAL NOT NULL,
    PRIMARY KEY (catalogue, version, holder)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS users (user_id TEXT PRIMARY KEY, ends_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS users_by_end ON users (ends_at);
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT, event_id TEXT, item_id TEXT NOT NULL, timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, event_id)) WITHOUT ROWID;
PRAGMA user_version = 1;
COMMIT;
"""
# Added later; releases that do not know it ignore it.
_TRIALS = """
CREATE TABLE IF NOT EXISTS trials (
    catalogue TEXT, version TEXT, state TEXT NOT NULL, holder TEXT NOT NULL, detail TEXT NOT NULL,
    allowed INTEGER NOT NULL, ends_at REAL NOT NULL, PRIMARY KEY (catalogue, version)) WITHOUT ROWID
"""
_RECORDS = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS other_users (user_id TEXT PRIMARY KEY, ends_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS other_users_by_end ON other_users (ends_at);
CREATE TABLE IF NOT EXISTS other_events (
    user_id TEXT, event_id TEXT, item_id TEXT NOT NULL, timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, event_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, list TEXT NOT NULL, user_id TEXT NOT NULL, ends_at REAL NOT NULL,
    data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS records_by_user ON records (user_id, list, sequence);
CREATE INDEX IF NOT EXISTS records_by_end ON records (ends_at);
CREATE TABLE IF NOT EXISTS identity (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL);
COMMIT;
"""
_LAYOUT = 1
# Added later; harmless to other releases of this layout.
_ADDED = "CREATE TABLE IF NOT EXISTS pasts (catalogue TEXT PRIMARY KEY, past TEXT NOT NULL) WITHOUT ROWID"
_MODELS = """
CREATE TABLE IF NOT EXISTS models_of_versions (
    catalogue TEXT, version TEXT, model TEXT NOT NULL, PRIMARY KEY (catalogue, version)) WITHOUT ROWID
"""
_PAUSE_S = 0.001
_Result = TypeVar("_Result")


class Database:
    """Transactions on a file that other processes may use too.

    `read` and `write` raise StoreUnavailable if the file is locked, full, read-only or too slow, and StoreError if it
    is not a database of this layout. What timed out may still have been done.

    Attributes:
        closed: whether the database has been closed.
    """

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        """Opens nothing yet; the file and its folders are created when needed."""
        self._path = path
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="igd-store")
        self._connection: sqlite3.Connection | None = None
        self.closed = False

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of ``query``."""
        return await self._run(lambda connection: connection.execute(query, parameters).fetchall())

    async def read(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run ``work``, which changes nothing, on the thread."""
        return await self._run(work)

    async def write(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run ``work`` on the thread, atomically; it is on the disk when this returns."""

        def transact(connection: sqlite3.Connection) -> _Result:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        return await self._run(transact)

    async def close(self) -> None:
        """Finish what has begun, and close the file."""
        if not self.closed:
            self.closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        if self.closed:
            raise StoreUnavailable(f"{self._path}: closed")
        deadline = time.monotonic() + self._timeout_s
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._work, work, deadline)
        done, _ = await asyncio.wait({running}, timeout=self._timeout_s)
        if not done:
            running.add_done_callback(_look_at_the_outcome)
            raise StoreUnavailable(f"{self._path}: {self._too_late()}")
        try:
            return running.result()
        except (sqlite3.OperationalError, OSError) as error:
            raise StoreUnavailable(f"{self._path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self._path}: {error}") from None

    def _work(self, work: Callable[[sqlite3.Connection], _Result], deadline: float) -> _Result:
        if time.monotonic() > deadline:  # nobody waits for it any more
            raise TimeoutError(self._too_late())
        return work(self._connection or self._connect(deadline))

    def _connect(self, deadline: float) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=self._timeout_s, isolation_level=None)
        try:
            self._log_ahead(connection, deadline)
            connection.execute("PRAGMA synchronous = FULL")  # an acknowledged write survives a power cut
            self._lay_out(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _log_ahead(self, connection: sqlite3.Connection, deadline: float) -> None:
        """Switch to a write-ahead log. If two switch a new file, SQLite fails one at once instead of waiting."""
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return

    def _lay_out(self, connection: sqlite3.Connection) -> None:
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout not in (0, _LAYOUT):
            raise StoreError(f"{self._path}: layout {layout}; this release reads {_LAYOUT}")
        if layout == 0:
            connection.executescript(SCHEMA)
        added = {"pasts": _ADDED, "trials": _TRIALS, "identity": _RECORDS, "models_of_versions": _MODELS}
        for name, made in added.items():
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone():
                connection.executescript(made)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _too_late(self) -> str:
        return f"no answer within {self._timeout_s * 1000:.0f} ms"


def _look_at_the_outcome(running: asyncio.Future[_Result]) -> None:
    """Retrieve an error that nobody waits for, so that asyncio does not report it."""
    if not running.cancelled():
        running.exception()
