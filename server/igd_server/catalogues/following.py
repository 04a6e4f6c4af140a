"""A catalogue that follows its pointer in the store: a published version takes over while requests are answered.

Each look at the pointer (`LiveCatalogue.follow_once`) goes as follows:

1. Conclude the trial of the version that is served, if it has passed or has faults.
2. Read the pointer. If it has not moved, and no refused version was allowed again, nothing else happens.
3. Ask `Takeover.permit`: load the published version, wait, or refuse it.
4. Load it and swap (`serving`); requests in progress keep the version that they began with.
5. If loading fails, refuse the version: what is served stays. If nothing is served, load the version that passed here
   last, or the one that the pointer named before.
6. If the store cannot be reached and nothing is served, load the version that passed here last from this disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.errors import InputError, QueryError, StoreError, StoreUnavailable
from igd_server.catalogues.fleet import Permit, Wait
from igd_server.catalogues.refusals import Refusal
from igd_server.catalogues.serving import Serving, log_disk_failure
from igd_server.catalogues.takeover import Takeover

if TYPE_CHECKING:
    from igd_core.store.pointers import PointerMove
    from igd_server.catalogues.attempts import Attempts
    from igd_server.catalogues.fleet import FleetMember
    from igd_server.catalogues.refusals import Refusals
    from igd_server.catalogues.served import ServedCatalogue
    from igd_server.catalogues.serving import VersionOrigin
    from igd_server.catalogues.version_folder import VersionFolder

_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 30.0
_LOOK_AT_TRIAL_S = 1.0
_SILENCE_S = 60.0
"""After so many seconds and three polls without reading the pointer, its catalogue counts as not followed."""

_UNREACHED = "the store cannot be reached"
_UNPUBLISHED = "nothing is published under this name"
_NOT_FETCHED = "the published version cannot be brought to this machine"

_log = logging.getLogger("igd.server")


class LiveCatalogue:
    """Serves the version that the pointer names, or else the version it served before.

    A version that cannot be served is refused: it is tried again only when the pointer moves, or on `reload`. The owner
    calls `follow_once` and `wait_for_next_look` in turn.

    Attributes:
        name: in the store.
        published: the version that the pointer named when it was last read.
        trouble: why the pointer cannot be followed now, for people.
        waiting: what the published version waits for, for people.
    """

    def __init__(self, name: str, folder: VersionFolder, attempts: Attempts, fleet: FleetMember) -> None:
        """Reads nothing yet."""
        self.name = name
        self.published: str | None = None
        self.trouble: str | None = None
        self.waiting: str | None = None
        self.takeover = Takeover(name, attempts, folder, fleet)
        self._serving = Serving(name, folder, fleet)
        self._folder = folder
        self._fleet = fleet
        self._wait_s: float | None = None
        self._decided: str | None = None
        self._retry_refused = False
        self._allowed_before: dict[str, int] = {}  # how often the version that failed to load had been allowed
        self._failures = 0
        self._has_looked = self._deaths_reported = False
        self._woken = asyncio.Event()
        self._taking_over = False
        self._read_at = time.monotonic()
        self._behind_since: float | None = None

    @property
    def served(self) -> ServedCatalogue | None:
        """What requests get; None before the first version is warm."""
        return self._serving.served

    @property
    def refusals(self) -> Refusals:
        """Versions that could not be served."""
        return self._serving.refusals

    @property
    def concluded(self) -> bool:
        """Whether a version is served, or none can be served now."""
        return self.served is not None or self._has_looked

    @property
    def following(self) -> bool:
        """Whether the pointer has been read lately, and nothing hinders serving the version that it names."""
        silent_s = time.monotonic() - self._read_at
        return self.trouble is None and (self._taking_over or silent_s < _SILENCE_S + 3 * self._fleet.poll_s)

    @property
    def lag_s(self) -> float:
        """Seconds for which the pointer has named another version than the served one; 0 while they agree."""
        return 0.0 if self._behind_since is None else time.monotonic() - self._behind_since

    def wake(self) -> None:
        """Read the pointer now."""
        self._woken.set()

    def reload(self) -> None:
        """Read the pointer now, and try refused versions again."""
        self._retry_refused = True
        self.wake()

    async def roll_back(self, version: str | None = None) -> PointerMove:
        """Move the store's pointer to ``version``, or to the one before; all servers follow.

        Raises:
            QueryError: there is no earlier version that servers take, or it is not stored; or somebody else has just
                moved the pointer.
            StoreError: the pointer has not moved.
        """
        try:
            move = await self._fleet.store.roll_back(self.name, version)
        except InputError as error:
            raise QueryError("version", str(error)) from None
        fields = {"catalogue": self.name, "version": move.version, "before": move.before}
        if move.passed_by:
            fields["passed_by"] = ", ".join(move.passed_by)
        _log.warning("rolled_back", extra={"fields": fields})
        self.wake()
        return move

    async def allow(self, version: str) -> None:
        """Let all servers try a version again that one of them refused or died in.

        Raises:
            InputError: the version is not stored.
            StoreError: nothing has changed.
        """
        await self._fleet.store.allow(self.name, version)
        _log.warning("version_allowed", extra={"fields": {"catalogue": self.name, "version": version}})
        self.reload()

    async def follow_once(self) -> None:
        """Read the pointer and take over the version that it names; on any failure, what is served stays."""
        self._woken.clear()
        self._wait_s = None
        try:
            if not self._deaths_reported:
                self._deaths_reported = True
                await self.takeover.report_deaths()
            await self._conclude_trial()
            await self._follow()
            await self._conclude_trial()
            self._failures = 0
        except (StoreError, OSError) as error:
            self._failures += 1
            self._note_trouble(_UNREACHED if isinstance(error, StoreUnavailable) else _NOT_FETCHED, str(error))
            try:
                await self._serve_from_disk()
            except Exception:  # noqa: BLE001 - the disk may fail as the store did
                log_failed_look(self.name)
        except Exception:  # noqa: BLE001 - the next look may succeed
            self._failures += 1
            log_failed_look(self.name)
        self._has_looked = self._has_looked or not self._failures

    async def wait_for_next_look(self) -> None:
        """Wait until woken, or until the next poll; after a failed look only briefly at first."""
        delay = self._fleet.poll_s
        if self._failures:
            delay = min(delay, _LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))
        if self.takeover.on_trial is not None:
            delay = min(delay, _LOOK_AT_TRIAL_S)
        if self._wait_s is not None:
            delay = min(delay, self._wait_s)
        try:
            async with asyncio.timeout(delay):
                await self._woken.wait()
        except TimeoutError:
            return

    async def close(self, *, engine_failed: bool) -> None:
        """End the trial, if any; call it when `follow_once` is not called any more."""
        await self.takeover.close(engine_failed=engine_failed)

    async def _follow(self) -> None:
        store = self._fleet.store
        await self.takeover.resend_verdict()
        self.published = await store.current(self.name)
        self._read_at = time.monotonic()
        self._measure_lag()
        if self.published is None:
            self._note_trouble(_UNPUBLISHED)
            await self._serve_from_disk()
            return
        allowed_again = await self._is_allowed_again(self.published)
        if self.published != self._decided or self._retry_refused or allowed_again:
            retry, self._retry_refused, self._decided = self._retry_refused, False, None
            self._taking_over = True
            try:
                decided = await self._take_over(self.published, retry=retry)
            except BaseException:
                # The store or the disk interrupted it: try again at the next look, also what was asked for meanwhile.
                self._retry_refused = self._retry_refused or retry
                raise
            finally:
                self._taking_over = False
            self._decided = self.published if decided else None
        else:
            self.waiting = None
        if self.trouble is not None:
            self.trouble = None
            _log.info("following_again", extra={"fields": {"catalogue": self.name}})
        if self.served is not None:
            await self._serving.hold(self.served.version)

    def _measure_lag(self) -> None:
        if self.published is None or self.published == self._serving.version:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()

    async def _is_allowed_again(self, version: str) -> bool:
        """Whether to retry a refused version: an operator allowed it since, or its trial passed elsewhere."""
        refusal = self.refusals.of(version)
        of_trial = refusal is not None and refusal.reason in ("attempt-died", "canary", "faults")
        if refusal is None or not (of_trial or version in self._allowed_before):
            return False
        trial = await self._fleet.store.trial(self.name, version)
        if not of_trial:  # loading failed here: what was damaged may have been healed
            return trial.allowed > self._allowed_before[version]
        return trial.state == "open" or (trial.state == "passed" and refusal.reason == "canary")

    async def _take_over(self, version: str, *, retry: bool) -> bool:
        """Serve the version, or refuse it, and serve an older one if there is nothing else; False if it must wait."""
        if self._serving.version == version:
            return True
        permit = await self._permit(version, retry=retry)
        waits = isinstance(permit, Wait)
        self._note_wait(permit if isinstance(permit, Wait) else None)
        if isinstance(permit, Permit):
            await self._serve_or_refuse(version, permit)
        if self.served is not None:
            return not waits
        if not await self._serve_older(version) and not waits:
            last_resort = await self.takeover.permit_last_resort(version)
            if last_resort is not None:
                await self._serve_or_refuse(version, last_resort)
        return not waits

    async def _permit(self, version: str, *, retry: bool) -> Permit | Wait | None:
        """Whether to load the version now; None if it is refused."""
        try:
            permit = await self.takeover.permit(version, serving=self.served is not None, again=retry)
        except InputError as error:
            permit = Refusal.of(version, error)
        if isinstance(permit, Refusal):
            self._serving.refuse(permit)
            return None
        return permit

    def _note_wait(self, wait: Wait | None) -> None:
        """Remember what the version waits for; log it when it begins."""
        self._wait_s = None if wait is None else wait.seconds
        before, self.waiting = self.waiting, None if wait is None else wait.for_what
        if wait is not None and wait.for_what != before:
            _log.info("takeover_waits", extra={"fields": {"catalogue": self.name, "detail": wait.for_what}})

    async def _serve_older(self, version: str) -> bool:
        """Serve the version that passed here last, or the one that the pointer named before; False if none can be."""
        last_served = await asyncio.to_thread(self._folder.last_served)
        for older in (last_served, await self._fleet.store.previous(self.name)):
            if older is None or older == version or older in self.refusals:
                continue
            permit = await self.takeover.permit_older(older)
            if permit is not None and await self._serve_or_refuse(older, permit):
                return True
        return False

    async def _serve_or_refuse(self, version: str, permit: Permit) -> bool:
        """Load the version and swap, or refuse it if it cannot be loaded; returns whether it is served."""
        if self._serving.version == version:
            return True
        started = time.monotonic()
        try:
            await self.takeover.begin(version, permit)
            await self._swap(await self._serving.load(version), "store", started)
        except (StoreError, OSError):
            await self.takeover.abandon()
            raise
        except Exception as error:  # noqa: BLE001 - no version, however odd, may stop the one that is served
            refusal = Refusal.of(version, error)
            self._serving.refuse(refusal, error)
            self._allowed_before = {version: permit.allowed}
            await self.takeover.conclude_refused(f"{refusal.reason}: {refusal.detail}")
            return False
        return True

    async def _conclude_trial(self) -> None:
        """End the trial if the version has passed; if it has faults, its fleet's first server goes back from it."""
        outcome = self.takeover.outcome()
        if outcome == "passed":
            try:
                await self.takeover.conclude_passed()
            except OSError as error:
                log_disk_failure(self.name, error)
        elif outcome == "faults" and self.served is not None:
            bad, fault = self.served.version, self.takeover.last_fault
            _log.warning("trial_fault", extra={"fields": {"catalogue": self.name, "version": bad, "detail": fault}})
            self.takeover.restart_trial()
            await self._go_back(bad, fault)

    async def _go_back(self, bad: str, fault: str) -> None:
        """Refuse the version with faults and serve the one that passed here last, if there is one."""
        last_served = await asyncio.to_thread(self._folder.last_served)
        if last_served is None or last_served == bad:  # popularity answers where the model fails
            return
        await self.takeover.conclude_refused(f"faults: {fault}")
        if await self._serve_or_refuse(last_served, Permit(allowed=0, judged=True)):
            refused_at = datetime.now(UTC)
            self._serving.refuse(Refusal(version=bad, reason="faults", detail=fault, refused_at=refused_at))
            self._decided = bad

    async def _serve_from_disk(self) -> None:
        """If nothing is served and the store cannot help, serve the version that passed here last."""
        version = await asyncio.to_thread(self._folder.last_served)
        if self.served is not None or version is None or version in self.refusals:
            return
        started = time.monotonic()
        permit = await self.takeover.permit_without_store(version)
        if isinstance(permit, Refusal):
            self._serving.refuse(permit)
            return
        try:
            await self.takeover.begin(version, permit)
        except OSError as error:  # the version has passed here: serve it even without a record of the attempt
            log_disk_failure(self.name, error)
        try:
            served = await self._serving.load_from_disk(version)
        except Exception as error:  # noqa: BLE001 - as above
            self._serving.refuse(Refusal.of(version, error), error)
            await self.takeover.abandon()
        else:
            await self._swap(served, "disk", started)

    async def _swap(self, served: ServedCatalogue, source: VersionOrigin, started: float) -> None:
        before = self._serving.swap(served)
        self._measure_lag()
        await self.takeover.start_trial(served.watch)
        await self._serving.record_swap(before, source, started)

    def _note_trouble(self, trouble: str, detail: str = "") -> None:
        """Remember why the pointer cannot be followed; log it when it begins."""
        if self.trouble != trouble:
            self.trouble = trouble
            _log.warning(
                "not_following",
                extra={"fields": {"catalogue": self.name, "trouble": trouble, "detail": detail}},
            )


def log_failed_look(catalogue: str) -> None:
    """Log the exception that is being handled: a look at the catalogue's pointer failed in an unforeseen way."""
    _log.exception("look_failed", extra={"fields": {"catalogue": catalogue}})
