"""A catalogue that follows its pointer in the store: what is published takes over while requests are being answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.errors import InputError, QueryError, StoreError, StoreUnavailable
from server.refusals import Refusal, Refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.store.base import ArtifactStore
    from igd_core.store.pointers import PointerMove
    from server.loaded import LoadedVersions
    from server.loading import Loader, ServedCatalogue
    from server.metrics import Metrics
    from server.version_folder import VersionFolder

Source: TypeAlias = Literal["store", "disk"]

_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 30.0
_HOLD_S = 60
_SILENCE_S = 60.0
"""And three polls more: so long the pointer may be unread before its catalogue counts as not followed."""

_UNREACHED = "the store cannot be reached"
_UNPUBLISHED = "nothing is published under this name"
_NOT_FETCHED = "the published version cannot be brought to this machine"

_log = logging.getLogger("igd.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the live catalogues of one server share.

    Attributes:
        store: where the pointers are.
        loader: brings versions into the engine.
        versions: those that are in it.
        metrics: told of swaps and refusals.
        holder: this server's name in the store.
        poll_s: seconds between looks at a pointer.
    """

    store: ArtifactStore
    loader: Loader
    versions: LoadedVersions
    metrics: Metrics
    holder: str
    poll_s: float


class LiveCatalogue:
    """Serves what the pointer names, or else what it served before.

    A version that cannot be served is refused: tried again only when the pointer moves, or on `reload`. Whoever owns
    this calls `look` and `rest` in turn.

    Attributes:
        name: in the store.
        served: what requests get; None before the first version is warm.
        published: what the pointer named when it was last read.
        refusals: versions that could not be served.
        trouble: why the pointer cannot be followed now, for people.
    """

    def __init__(self, name: str, folder: VersionFolder, around: Surroundings) -> None:
        """Touch nothing yet."""
        self.name = name
        self.served: ServedCatalogue | None = None
        self.published: str | None = None
        self.refusals = Refusals()
        self.trouble: str | None = None
        self._folder = folder
        self._around = around
        self._considered: str | None = None
        self._again = False
        self._failures = 0
        self._looked = False
        self._woken = asyncio.Event()
        self._taking = False
        self._read_at = time.monotonic()
        self._behind_since: float | None = None

    @property
    def concluded(self) -> bool:
        """Whether something is served, or is known not to be servable now."""
        return self.served is not None or self._looked

    @property
    def following(self) -> bool:
        """Whether the pointer has been read lately, and nothing hinders going where it points."""
        silent_s = time.monotonic() - self._read_at
        return self.trouble is None and (self._taking or silent_s < _SILENCE_S + 3 * self._around.poll_s)

    @property
    def lag_s(self) -> float:
        """Seconds for which the pointer has named another version than the one that is served; 0 while they agree."""
        return 0.0 if self._behind_since is None else time.monotonic() - self._behind_since

    def wake(self) -> None:
        """Look at the pointer now."""
        self._woken.set()

    def reload(self) -> None:
        """Look at the pointer now, and try again what was refused."""
        self._again = True
        self.wake()

    async def roll_back(self, version: str | None = None) -> PointerMove:
        """Move the store's pointer to ``version``, or to the one before; all servers follow.

        Raises:
            QueryError: there is none before, or it is not stored; or somebody else has just moved the pointer.
            StoreError: the pointer has not moved.
        """
        try:
            move = await self._around.store.roll_back(self.name, version)
        except InputError as error:
            raise QueryError("version", str(error)) from None
        fields = {"catalogue": self.name, "version": move.version, "before": move.before}
        _log.warning("rolled_back", extra={"fields": fields})
        self.wake()
        return move

    async def look(self) -> None:
        """Read the pointer and go where it points; whatever fails, what is served stays."""
        self._woken.clear()
        try:
            await self._follow()
            self._failures = 0
        except (StoreError, OSError) as error:
            self._failures += 1
            self._in_trouble(_UNREACHED if isinstance(error, StoreUnavailable) else _NOT_FETCHED, str(error))
            await self._serve_last()
        except Exception:  # noqa: BLE001 - the next look may go better
            self._failures += 1
            _log.exception("look_failed", extra={"fields": {"catalogue": self.name}})
        self._looked = self._looked or not self._failures

    async def rest(self) -> None:
        """Wait for the next look: until woken, or for a while; a short one at first when the last look failed."""
        delay = self._around.poll_s
        if self._failures:
            delay = min(delay, _LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))
        try:
            async with asyncio.timeout(delay):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _follow(self) -> None:
        store = self._around.store
        self.published = await store.current(self.name)
        self._read_at = time.monotonic()
        self._measure_lag()
        if self.published is None:
            self._in_trouble(_UNPUBLISHED)
            await self._serve_last()
            return
        if self.published != self._considered or self._again:
            self._again, self._considered = False, None  # what the store or the disk interrupts is tried again
            self._taking = True
            try:
                await self._take(self.published)
            finally:
                self._taking = False
            self._considered = self.published
        if self.trouble is not None:
            self.trouble = None
            _log.info("following_again", extra={"fields": {"catalogue": self.name}})
        if self.served is not None:
            await self._hold(self.served.version)

    def _measure_lag(self) -> None:
        served = None if self.served is None else self.served.version
        if self.published is None or self.published == served:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()

    async def _take(self, version: str) -> None:
        """Serve a version, or refuse it and serve an older one if there is nothing else."""
        if await self._served_or_refused(version) or self.served is not None:
            return
        last_served = await asyncio.to_thread(self._folder.last_served)
        for older in (last_served, await self._around.store.previous(self.name)):
            if older is None or older == version or older in self.refusals:
                continue
            if await self._served_or_refused(older):
                return

    async def _served_or_refused(self, version: str) -> bool:
        if self.served is not None and self.served.version == version:
            return True
        started = time.monotonic()
        try:
            await self._swap(await self._bring(version), "store", started)
        except (StoreError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - no version, however odd, may stop the one that is served
            self._refuse(version, error)
            return False
        return True

    async def _serve_last(self) -> None:
        """With nothing to serve and no store to ask: what was served here before."""
        version = await asyncio.to_thread(self._folder.last_served)
        if self.served is not None or version is None or version in self.refusals:
            return
        started = time.monotonic()
        try:
            served = await self._around.loader.load(self.name, version, self._folder.path(version))
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(version, error)
        else:
            await self._swap(served, "disk", started)

    async def _bring(self, version: str) -> ServedCatalogue:
        """The version in the engine, with this catalogue as one user of it."""
        held = self._around.versions.join(version)  # another catalogue serves it, or requests still run on it
        if held is not None:
            return held
        await self._hold(version)
        directory = await self._folder.fetch(self._around.store, self.name, version)
        return await self._around.loader.load(self.name, version, directory)

    async def _swap(self, served: ServedCatalogue, source: Source, started: float) -> None:
        await self._on_disk(lambda: self._folder.remember(served.version))  # first: it may be the last thing we do
        before, self.served = self.served, replace(served, name=self.name, loaded_at=datetime.now(UTC))
        if before is not None:
            self._around.versions.leave(before.version)
        self._measure_lag()
        self.refusals.forget(served.version)
        seconds = time.monotonic() - started
        self._around.metrics.observe_swap(self.name, seconds)
        facts = {
            "model": served.model_id,
            "model_fingerprint": served.model.fingerprint(),
            "items": len(served.catalogue),
            "source": source,
        }
        _log.info(
            "catalogue_served",
            extra={
                "fields": {"catalogue": self.name, "version": served.version, **facts, "seconds": round(seconds, 3)}
            },
        )
        keep = {served.version} if before is None else {served.version, before.version}
        await self._on_disk(lambda: self._folder.prune(keep))

    async def _on_disk(self, change: Callable[[], None]) -> None:
        """Change the folder; requests do not depend on it."""
        try:
            await asyncio.to_thread(change)
        except OSError as error:
            _log.warning("cache_dir_failed", extra={"fields": {"catalogue": self.name, "detail": str(error)}})

    async def _hold(self, version: str) -> None:
        """Keep a version from being pruned. A store that is full or read-only cannot, and is followed all the same."""
        ttl_s = _HOLD_S + round(2 * self._around.poll_s)
        with contextlib.suppress(InputError, StoreError):
            await self._around.store.hold(self.name, version, self._around.holder, ttl_s)

    def _refuse(self, version: str, error: Exception) -> None:
        refusal = Refusal.of(version, error)
        self.refusals.add(refusal)
        self._around.metrics.observe_refused_catalogue(self.name, refusal.reason)
        _log.error(
            "version_refused",
            exc_info=error if refusal.reason == "unforeseen" else None,
            extra={
                "fields": {
                    "catalogue": self.name,
                    "version": version,
                    "reason": refusal.reason,
                    "detail": refusal.detail,
                    "served": None if self.served is None else self.served.version,
                }
            },
        )

    def _in_trouble(self, trouble: str, detail: str = "") -> None:
        """Logged when it begins."""
        if self.trouble != trouble:
            self.trouble = trouble
            _log.warning(
                "not_following",
                extra={"fields": {"catalogue": self.name, "trouble": trouble, "detail": detail}},
            )
