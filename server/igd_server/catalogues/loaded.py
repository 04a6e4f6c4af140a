"""The catalogue versions in the engine, each as long as it is used."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_server.catalogues.heap import give_back_free_memory

if TYPE_CHECKING:
    from igd_core.search.engine import Engine
    from igd_server.catalogues.served import ServedCatalogue

_LONGEST_UNLOAD_S = 5.0

_log = logging.getLogger("igd.server")


@dataclass(slots=True, kw_only=True)
class _Loaded:
    served: ServedCatalogue
    users: int


class LoadedVersions:
    """A version stays in the engine while a catalogue serves it or a request runs on it; then it is unloaded.

    A catalogue that serves a version is one of its users, and so is every request; two catalogues may serve the same.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loaded: dict[str, _Loaded] = {}
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def add(self, served: ServedCatalogue) -> None:
        """Add a version that the engine has loaded; the caller is its only user."""
        self._loaded[served.version] = _Loaded(served=served, users=1)

    def join(self, version: str) -> ServedCatalogue | None:
        """Become a user of a version; None if it is not loaded."""
        loaded = self._loaded.get(version)
        if loaded is None:
            return None
        loaded.users += 1
        return loaded.served

    def leave(self, version: str) -> None:
        """Stop being a user; the last one to leave unloads the version."""
        loaded = self._loaded[version]
        loaded.users -= 1
        if loaded.users == 0:
            del self._loaded[version]
            if not self._closed:
                self._unloading[version] = asyncio.get_running_loop().create_task(self._unload(version))

    async def unloaded(self, version: str) -> None:
        """Wait until the engine is not unloading this version."""
        if version in self._unloading:
            await asyncio.wait((self._unloading[version],))

    async def close(self) -> None:
        """Wait a while for versions that are being unloaded; after that the engine's end unloads all."""
        self._closed = True
        if self._unloading:
            await asyncio.wait(self._unloading.values(), timeout=_LONGEST_UNLOAD_S)

    async def _unload(self, version: str) -> None:
        try:
            await self._engine.unload(version)
            await asyncio.to_thread(give_back_free_memory)
            _log.info("version_unloaded", extra={"fields": {"version": version}})
        except Exception:  # noqa: BLE001 - nobody waits for this task
            _log.exception("unload_failed", extra={"fields": {"version": version}})
        finally:
            del self._unloading[version]
