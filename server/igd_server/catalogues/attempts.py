"""Attempts to serve a version, recorded on this machine's disk: so the next process knows in which ones a process died.

An attempt is a file that its process holds locked (``flock``). The kernel releases the lock when the process ends,
however it ends; so a file that can be locked belongs to an attempt in which a process died. Clocks, process ids and the
file's content do not matter: several servers, in containers of their own, may share the folder, and a damaged or empty
file counts as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.store.names import require_version
from igd_core.whole_files import sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOADING = "while it was being loaded"
SERVING = "in its first answers"
_NAME = re.compile(r"([0-9a-f]{16})\.(\d{1,18})\.[0-9a-f]{8}")
_UNNAMED = ".new-"
_MOST_KEPT = 64
_MOST_READ = 64


class Attempt:
    """An attempt of this process, until `end`, or the process's end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """``descriptor`` holds the lock."""
        self._path = path
        self._descriptor: int | None = descriptor

    def note(self, stage: str) -> None:
        """Record the stage, for people; a full disk does not matter."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, stage.encode(), 0)

    def end(self) -> None:
        """The attempt succeeded, or failed with an error that was handled. May be called again."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._close()

    def abandon(self) -> None:
        """Leave the attempt on record as one in which a process died: the engine has failed, and the process will."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadAttempt:
    """An attempt in which a process died.

    Attributes:
        version: of the catalogue.
        allowed: how often an operator had allowed the version again before.
        stage: how far the attempt had come, for people.
        began_at: by the clock of that time.
    """

    version: str
    allowed: int
    stage: str
    began_at: datetime


class Attempts:
    """The attempts on one catalogue's versions, in their own folder. All methods block."""

    def __init__(self, folder: Path) -> None:
        """``folder`` need not exist yet."""
        self._folder = folder

    def begin(self, version: str, *, allowed: int) -> Attempt:
        """Record an attempt; it is on the disk when this returns.

        Raises:
            InputError: ``version`` is not a version's name.
            OSError: the folder cannot be written to, or its file system has no locks.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"{require_version(version)}.{allowed}.{secrets.token_hex(4)}"
        unnamed = self._folder / f"{_UNNAMED}{target.name}"
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            attempt = Attempt(target, descriptor)
            attempt.note(LOADING)
            os.fsync(descriptor)
            unnamed.rename(target)  # from now on it counts, and it is locked
            sync(self._folder)
        except BaseException:
            for path in (unnamed, target):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return attempt

    def dead(self, version: str | None = None) -> list[DeadAttempt]:
        """Attempts in which a process died, of one version or of all, oldest first; an unreadable file counts."""
        found = [_read(path, match) for path, match in self._files() if version in (None, match[1])]
        return sorted((dead for dead in found if dead is not None), key=lambda dead: dead.began_at)

    def forget(self, version: str, *, before: int | None = None) -> None:
        """Delete a version's dead attempts; with ``before``, only those from before it was allowed so often.

        Raises:
            OSError: the folder cannot be written to.
        """
        for path, match in self._files():
            if match[1] == version and (before is None or int(match[2]) < before) and _read(path, match) is not None:
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete files of no more use: those that never got their name, and the oldest if there are very many.

        Raises:
            OSError: the folder cannot be written to.
        """
        dead = sorted((path.stat().st_mtime, path) for path, match in self._files() if _read(path, match) is not None)
        for _, path in dead[:-_MOST_KEPT]:
            path.unlink(missing_ok=True)
        for path in self._folder.glob(f"{_UNNAMED}*"):
            if not _is_locked(path):  # a process about to lock it fails to rename it, and tries again
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[Path, re.Match[str]]]:
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                match = _NAME.fullmatch(path.name)
                if match is not None:
                    yield path, match


def _read(path: Path, match: re.Match[str]) -> DeadAttempt | None:
    """The dead attempt in a file; None if its process is alive, or the file has been deleted."""
    began_at, stage = datetime.now(UTC), ""
    try:
        if _is_locked(path):
            return None
        began_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        with path.open("rb") as file:
            stage = file.read(_MOST_READ).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, OverflowError):
        pass
    known = stage if stage in (LOADING, SERVING) else "in an attempt of which no more is known"
    return DeadAttempt(version=match[1], allowed=int(match[2]), stage=known, began_at=began_at)


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
