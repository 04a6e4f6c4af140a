"""Trials of versions in the database: a read and a write in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_core.store.names import not_stored, require_catalogue_name, require_holder, require_version
from igd_core.store.trials import Trial, allowed_again, begun, concluded, pointed_at, seen

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from igd_core.store.files.database import Database
    from igd_core.store.trials import Verdict


class FilesTrials:
    """The methods of `igd_core.store.base.ArtifactStore` on trials."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds since 1970."""
        self._trials_database = database
        self._trials_clock = clock

    async def trial(self, catalogue: str, version: str) -> Trial:
        """The state of a version's trial."""
        rows = await self._trials_database.rows(_SELECT, require_catalogue_name(catalogue), require_version(version))
        return seen(_trial(rows), self._trials_clock())

    async def begin_trial(self, catalogue: str, version: str, holder: str, ttl_s: float) -> Trial:
        """Ask to be the first to try a version, or extend that trial."""
        now = self._trials_clock()
        require_holder(holder)
        found = await self._changed(catalogue, version, lambda trial: begun(trial, holder, now=now, ttl_s=ttl_s))
        if found is None:
            raise not_stored(catalogue, version)
        return found

    async def end_trial(self, catalogue: str, version: str, holder: str, verdict: Verdict, detail: str = "") -> Trial:
        """Record how a trial ended."""
        require_holder(holder)
        found = await self._changed(
            catalogue, version, lambda trial: concluded(trial, holder, verdict, detail), tell=True
        )
        return found or Trial()

    async def allow(self, catalogue: str, version: str) -> None:
        """Let servers try a version again."""
        if await self._changed(catalogue, version, allowed_again, tell=True) is None:
            raise not_stored(catalogue, version)

    async def _changed(
        self, catalogue: str, version: str, change: Callable[[Trial], Trial], *, tell: bool = False
    ) -> Trial | None:
        """The trial after ``change``; None if the version is not stored."""
        key = (require_catalogue_name(catalogue), require_version(version))

        def write(connection: sqlite3.Connection) -> Trial | None:
            stored = connection.execute("SELECT 1 FROM versions WHERE catalogue = ? AND version = ?", key).fetchone()
            if stored is None:
                return None
            return change_trial(connection, *key, change, tell=tell)

        return await self._trials_database.write(write)


_COLUMNS = "state, holder, detail, allowed, ends_at"
_SELECT = f"SELECT {_COLUMNS} FROM trials WHERE catalogue = ? AND version = ?"  # noqa: S608 - a constant


def change_trial(
    connection: sqlite3.Connection, catalogue: str, version: str, change: Callable[[Trial], Trial], *, tell: bool
) -> Trial:
    """Change a trial within a transaction."""
    trial = change(_trial(connection.execute(_SELECT, (catalogue, version)).fetchall()))
    row = (catalogue, version, trial.state, trial.holder, trial.detail, trial.allowed, trial.ends_at)
    connection.execute("INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    if tell:
        connection.execute("UPDATE pointers SET moves = moves + 1 WHERE catalogue = ?", (catalogue,))
    return trial


def healed(connection: sqlite3.Connection, catalogue: str, version: str) -> None:
    """Clear a refusal because the pointer moves to the version; within a transaction."""
    if connection.execute(_SELECT, (catalogue, version)).fetchone() is not None:
        change_trial(connection, catalogue, version, pointed_at, tell=False)


def trials_in(connection: sqlite3.Connection, catalogue: str, now: float) -> dict[str, Trial]:
    """The trials of all stored versions of a catalogue, newest first, as of ``now``."""
    rows = connection.execute(
        f"SELECT versions.version, {_COLUMNS} FROM versions LEFT JOIN trials USING (catalogue, version)"  # noqa: S608
        " WHERE catalogue = ? ORDER BY sequence DESC",
        (catalogue,),
    )
    return {version: Trial() if rest[0] is None else seen(_trial([rest]), now) for version, *rest in rows}


def _trial(rows: Sequence[Sequence[object]]) -> Trial:
    names = _COLUMNS.split(", ")
    return Trial(**dict(zip(names, rows[0], strict=True))) if rows else Trial()  # type: ignore[arg-type]
