"""A catalogue's versions on this machine's disk: those fetched from the store, and which one was served last."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.store.names import require_version
from igd_core.whole_files import replaced_file

if TYPE_CHECKING:
    from igd_core.store.base import ArtifactStore

_LAST_SERVED = ".last-served"
_FETCHED = ".fetched-"
_VERSION = re.compile(r"[0-9a-f]{16}")
_SCRATCH = re.compile(r"\.[0-9a-f]{16}-.+")  # what stores call an incomplete fetch
_ABANDONED_AFTER_S = 3600.0


class VersionFolder:
    """``PARENT/VERSION`` for each version, and marker files beside them. Methods that are not async block.

    Only versions that were fetched into it are deleted: an operator's own artifacts may be there too. Several servers
    may share it: they follow the same pointers, and a server that serves a version keeps it mapped.
    """

    def __init__(self, parent: Path) -> None:
        """``parent`` need not exist yet."""
        self._parent = parent

    def path(self, version: str) -> Path:
        """Path of a version, whether or not it is there.

        Raises:
            InputError: ``version`` is not a version's name.
        """
        return self._parent / require_version(version)

    async def fetch(self, store: ArtifactStore, catalogue: str, version: str) -> Path:
        """Fetch a version, unless it is here already and complete.

        Raises:
            ArtifactError: the stored version is incomplete or altered.
            InputError: it is not stored.
            StoreError: the store, or this disk, cannot do it now.
            OSError: this disk cannot take it.
        """
        await asyncio.to_thread(
            self._mark, version
        )  # first: if the server is killed meanwhile, the mark leads to what it left
        return await store.fetch(catalogue, version, self._parent)

    def last_served(self) -> str | None:
        """The version that passed its trial here last, if its files are still here."""
        try:
            version = (self._parent / _LAST_SERVED).read_text(encoding="ascii").strip()
            return version if _VERSION.fullmatch(version) and self.path(version).is_dir() else None
        except (OSError, UnicodeDecodeError):  # also of `is_dir`, as on a disk or a share that fails
            return None

    def remember(self, version: str) -> None:
        """Record that this version passed its trial here; atomic.

        Raises:
            OSError: this disk cannot take it.
        """
        with replaced_file(self._parent / _LAST_SERVED) as file:
            file.write(version + "\n")

    def prune(self, keep: Collection[str]) -> None:
        """Delete fetched versions except ``keep``, and what interrupted fetches left."""
        for mark in self._parent.glob(f"{_FETCHED}*"):
            version = mark.name.removeprefix(_FETCHED)
            if _VERSION.fullmatch(version) and version not in keep:
                shutil.rmtree(self._parent / version, ignore_errors=True)
                mark.unlink(missing_ok=True)
        for left in self._parent.glob(".*"):
            if _SCRATCH.fullmatch(left.name) and _age_s(left) > _ABANDONED_AFTER_S:
                shutil.rmtree(left, ignore_errors=True)

    def _mark(self, version: str) -> None:
        if not self.path(version).exists():
            self._parent.mkdir(parents=True, exist_ok=True)
            (self._parent / f"{_FETCHED}{version}").touch()


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
