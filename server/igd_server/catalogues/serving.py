"""The version that a live catalogue serves: versions are loaded, swapped and refused here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.artifact import Manifest
from igd_core.errors import InputError, ModelError, StoreError
from igd_core.store.bundles import MANIFEST
from igd_server.catalogues.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_server.catalogues.fleet import FleetMember
    from igd_server.catalogues.refusals import Refusal
    from igd_server.catalogues.served import ServedCatalogue
    from igd_server.catalogues.version_folder import VersionFolder

VersionOrigin: TypeAlias = Literal["store", "disk"]

_HOLD_S = 60

_log = logging.getLogger("igd.server")


class Serving:
    """What one live catalogue serves, and what it has refused.

    Attributes:
        served: what requests get; None before the first version is warm.
        refusals: versions that could not be served.
    """

    def __init__(self, name: str, folder: VersionFolder, fleet: FleetMember) -> None:
        """Loads nothing yet."""
        self.served: ServedCatalogue | None = None
        self.refusals = Refusals()
        self._name = name
        self._folder = folder
        self._fleet = fleet

    @property
    def version(self) -> str | None:
        """The version that is served."""
        return None if self.served is None else self.served.version

    async def load(self, version: str) -> ServedCatalogue:
        """Load a stored version into the engine; this catalogue becomes one of its users.

        Raises:
            ArtifactError: damaged, foreign, or made for another tokenizer or model.
            ModelError: the published model that it names cannot be loaded, or not on this server.
            InputError: not stored.
            EngineError: the engine cannot run it.
            StoreError: the store, or this disk, cannot do it now.
            OSError: this disk cannot take it.
        """
        held = self._fleet.versions.join(version)  # another catalogue serves it, or requests still run on it
        if held is not None:
            return self._checked(held)
        await self.hold(version)
        directory = await self._folder.fetch(self._fleet.store, self._name, version)
        model = await asyncio.to_thread(_model_named_in, directory)
        self._fleet.models.check(self._name, model)
        await self._fleet.models.fetch(model)
        return await self._fleet.loader.load(self._name, version, directory)

    async def load_from_disk(self, version: str) -> ServedCatalogue:
        """As `load`, from what this machine fetched before; asks no store."""
        return await self._fleet.loader.load(self._name, version, self._folder.path(version))

    def _checked(self, held: ServedCatalogue) -> ServedCatalogue:
        try:
            self._fleet.models.check(self._name, held.artifact.manifest.model)
        except ModelError:
            self._fleet.versions.leave(held.version)
            raise
        return held

    def swap(self, served: ServedCatalogue) -> str | None:
        """Let requests get this version from now on; returns the version before."""
        before, self.served = self.served, replace(served, name=self._name, loaded_at=datetime.now(UTC))
        self.refusals.forget(served.version)
        if before is None:
            return None
        self._fleet.versions.leave(before.version)
        return before.version

    async def record_swap(self, before: str | None, source: VersionOrigin, started: float) -> None:
        """Count and log a swap that began at ``started`` (`time.monotonic`), and delete versions of no more use."""
        served = self.served
        if served is None:
            return
        seconds = time.monotonic() - started
        self._fleet.metrics.observe_swap(self._name, seconds)
        facts = {
            "model": served.model_id,
            "model_fingerprint": served.model.fingerprint(),
            "published_model": served.artifact.manifest.model,
            "items": len(served.catalogue),
            "source": source,
        }
        _log.info(
            "catalogue_served",
            extra={
                "fields": {"catalogue": self._name, "version": served.version, **facts, "seconds": round(seconds, 3)}
            },
        )
        needed = (served.version, before, await asyncio.to_thread(self._folder.last_served))
        keep = {version for version in needed if version is not None}
        await self._on_disk(lambda: self._folder.prune(keep))
        await self._on_disk(self._fleet.models.prune)

    async def hold(self, version: str) -> None:
        """Keep a version from being pruned; a full or read-only store cannot, which does not hinder serving it."""
        ttl_s = _HOLD_S + round(2 * self._fleet.poll_s)
        with contextlib.suppress(InputError, StoreError):
            await self._fleet.store.hold(self._name, version, self._fleet.holder, ttl_s)

    def refuse(self, refusal: Refusal, error: Exception | None = None) -> None:
        """Record, count and log that a version is not served; with the traceback if the reason is a mistake of ours."""
        self.refusals.add(refusal)
        self._fleet.metrics.observe_refused_catalogue(self._name, refusal.reason)
        _log.error(
            "version_refused",
            exc_info=error if refusal.reason == "unforeseen" else None,
            extra={
                "fields": {
                    "catalogue": self._name,
                    "version": refusal.version,
                    "reason": refusal.reason,
                    "detail": refusal.detail,
                    "served": self.version,
                }
            },
        )

    async def _on_disk(self, change: Callable[[], None]) -> None:
        """Change the folder; requests do not depend on it, so an error is only logged."""
        try:
            await asyncio.to_thread(change)
        except OSError as error:
            log_disk_failure(self._name, error)


def _model_named_in(directory: Path) -> str | None:
    """The published model that a fetched version names. Blocking."""
    return Manifest.from_bytes((directory / MANIFEST).read_bytes()).model


def log_disk_failure(catalogue: str, error: OSError) -> None:
    """Log that the folder of a catalogue's versions could not be changed."""
    _log.warning("cache_dir_failed", extra={"fields": {"catalogue": catalogue, "detail": str(error)}})
