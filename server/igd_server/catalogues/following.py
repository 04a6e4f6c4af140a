"""A catalogue that follows its pointer in the store: what is published takes over while requests are being answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.errors import InputError, QueryError, StoreError, StoreUnavailable
from igd_server.catalogues.refusals import Refusal, Refusals
from igd_server.catalogues.takeover import FleetMember, Takeover, Turn, Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.store.pointers import PointerMove
    from igd_server.catalogues.attempts import Attempts
    from igd_server.catalogues.served import ServedCatalogue
    from igd_server.catalogues.version_folder import VersionFolder

VersionOrigin: TypeAlias = Literal["store", "disk"]

_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 30.0
_HOLD_S = 60
_LOOK_AT_TRIAL_S = 1.0
_SILENCE_S = 60.0
"""And three polls more: so long the pointer may be unread before its catalogue counts as not followed."""

_UNREACHED = "the store cannot be reached"
_UNPUBLISHED = "nothing is published under this name"
_NOT_FETCHED = "the published version cannot be brought to this machine"

_log = logging.getLogger("igd.server")


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
        waiting: for what the version published waits, for people.
    """

    def __init__(self, name: str, folder: VersionFolder, attempts: Attempts, around: FleetMember) -> None:
        """Touch nothing yet."""
        self.name = name
        self.served: ServedCatalogue | None = None
        self.published: str | None = None
        self.refusals = Refusals()
        self.trouble: str | None = None
        self.waiting: str | None = None
        self.takeover = Takeover(name, attempts, folder, around)
        self._rest_s: float | None = None
        self._folder = folder
        self._around = around
        self._considered: str | None = None
        self._again = False
        self._failures = 0
        self._looked = self._looked_back = False
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
            QueryError: there is none before that servers take, or it is not stored; or somebody else has just moved
                the pointer.
            StoreError: the pointer has not moved.
        """
        try:
            move = await self._around.store.roll_back(self.name, version)
        except InputError as error:
            raise QueryError("version", str(error)) from None
        fields = {"catalogue": self.name, "version": move.version, "before": move.before}
        if move.passed_by:
            fields["passed_by"] = ", ".join(move.passed_by)
        _log.warning("rolled_back", extra={"fields": fields})
        self.wake()
        return move

    async def allow(self, version: str) -> None:
        """Let all servers try a version again that one refused or did not come back from.

        Raises:
            InputError: the version is not stored.
            StoreError: nothing has changed.
        """
        await self._around.store.allow(self.name, version)
        _log.warning("version_allowed", extra={"fields": {"catalogue": self.name, "version": version}})
        self.reload()

    async def look(self) -> None:
        """Read the pointer and go where it points; whatever fails, what is served stays."""
        self._woken.clear()
        self._rest_s = None
        try:
            if not self._looked_back:
                self._looked_back = True
                await self.takeover.look_back()
            await self._judge()
            await self._follow()
            await self._judge()
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
        if self.takeover.on_trial is not None:
            delay = min(delay, _LOOK_AT_TRIAL_S)
        if self._rest_s is not None:
            delay = min(delay, self._rest_s)
        try:
            async with asyncio.timeout(delay):
                await self._woken.wait()
        except TimeoutError:
            return

    async def close(self, *, engine_failed: bool) -> None:
        """End what is on trial; to be called when nobody looks any more."""
        await self.takeover.close(engine_failed=engine_failed)

    async def _follow(self) -> None:
        store = self._around.store
        await self.takeover.say_again()
        self.published = await store.current(self.name)
        self._read_at = time.monotonic()
        self._measure_lag()
        if self.published is None:
            self._in_trouble(_UNPUBLISHED)
            await self._serve_last()
            return
        trial = await self._allowed_again(self.published)
        if self.published != self._considered or self._again or trial:
            again, self._again, self._considered = self._again, False, None
            self._taking = True
            try:
                done = await self._take(self.published, again=again)
            except BaseException:
                self._again = again  # what the store or the disk interrupts is tried again
                raise
            finally:
                self._taking = False
            self._considered = self.published if done else None
        else:
            self.waiting = None
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

    async def _allowed_again(self, version: str) -> bool:
        """Whether what was refused because it died may be tried: an operator has said so, or it passed elsewhere."""
        refusal = self.refusals.of(version)
        if refusal is None or refusal.reason not in ("attempt-died", "canary", "faults"):
            return False
        trial = await self._around.store.trial(self.name, version)
        return trial.state == "open" or (trial.state == "passed" and refusal.reason == "canary")

    async def _take(self, version: str, *, again: bool) -> bool:
        """Serve a version, or refuse it and serve an older one if there is nothing else; False where it must wait."""
        if self.served is not None and self.served.version == version:
            return True
        turn = await self._turn(version, again=again)
        waits = isinstance(turn, Wait)
        self._wait_for(turn if isinstance(turn, Wait) else None)
        if isinstance(turn, Turn):
            await self._served_or_refused(version, turn)
        if self.served is not None:
            return not waits
        if not await self._serve_older(version) and not waits:
            last_resort = await self.takeover.last_resort(version)
            if last_resort is not None:
                await self._served_or_refused(version, last_resort)
        return not waits

    async def _turn(self, version: str, *, again: bool) -> Turn | Wait | None:
        """Whether to take it; None where it is refused."""
        try:
            turn = await self.takeover.turn(version, serving=self.served is not None, again=again)
        except InputError as error:
            turn = Refusal.of(version, error)
        if isinstance(turn, Refusal):
            self._refuse(turn)
            return None
        return turn

    def _wait_for(self, wait: Wait | None) -> None:
        """Logged when it begins."""
        self._rest_s = None if wait is None else wait.seconds
        before, self.waiting = self.waiting, None if wait is None else wait.for_what
        if wait is not None and wait.for_what != before:
            _log.info("takeover_waits", extra={"fields": {"catalogue": self.name, "detail": wait.for_what}})

    async def _serve_older(self, version: str) -> bool:
        """Serve what proved itself here last, or what the pointer named before."""
        last_served = await asyncio.to_thread(self._folder.last_served)
        for older in (last_served, await self._around.store.previous(self.name)):
            if older is None or older == version or older in self.refusals:
                continue
            turn = await self.takeover.fallback(older)
            if turn is not None and await self._served_or_refused(older, turn):
                return True
        return False

    async def _served_or_refused(self, version: str, turn: Turn) -> bool:
        if self.served is not None and self.served.version == version:
            return True
        started = time.monotonic()
        try:
            await self.takeover.begin(version, turn)
            await self._swap(await self._bring(version), "store", started)
        except (StoreError, OSError):
            await self.takeover.leave()
            raise
        except Exception as error:  # noqa: BLE001 - no version, however odd, may stop the one that is served
            refusal = Refusal.of(version, error)
            self._refuse(refusal, error)
            await self.takeover.refused(f"{refusal.reason}: {refusal.detail}")
            return False
        return True

    async def _judge(self) -> None:
        """Look how what is on trial fares; the first server of all goes back from what has faults."""
        outcome = self.takeover.judge()
        if outcome == "passed":
            try:
                await self.takeover.passed()
            except OSError as error:
                _log.warning("cache_dir_failed", extra={"fields": {"catalogue": self.name, "detail": str(error)}})
        elif outcome == "faults" and self.served is not None:
            bad, fault = self.served.version, self.takeover.last_fault
            _log.warning("trial_fault", extra={"fields": {"catalogue": self.name, "version": bad, "detail": fault}})
            self.takeover.begin_again()
            await self._go_back(bad, fault)

    async def _go_back(self, bad: str, fault: str) -> None:
        last_served = await asyncio.to_thread(self._folder.last_served)
        if last_served is None or last_served == bad:  # a popular answer is better than none
            return
        await self.takeover.refused(f"faults: {fault}")
        if await self._served_or_refused(last_served, Turn(allowed=0, judged=True)):
            refused_at = datetime.now(UTC)
            self._refuse(Refusal(version=bad, reason="faults", detail=fault, refused_at=refused_at))
            self._considered = bad

    async def _serve_last(self) -> None:
        """With nothing to serve and no store to ask: what was served here before."""
        version = await asyncio.to_thread(self._folder.last_served)
        if self.served is not None or version is None or version in self.refusals:
            return
        started = time.monotonic()
        turn = await self.takeover.without_store(version)
        if isinstance(turn, Refusal):
            self._refuse(turn)
            return
        try:
            await self.takeover.begin(version, turn)
        except OSError as error:  # it has proved itself: rather without a record than not at all
            _log.warning("cache_dir_failed", extra={"fields": {"catalogue": self.name, "detail": str(error)}})
        try:
            served = await self._around.loader.load(self.name, version, self._folder.path(version))
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(Refusal.of(version, error), error)
            await self.takeover.leave()
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

    async def _swap(self, served: ServedCatalogue, source: VersionOrigin, started: float) -> None:
        before, self.served = self.served, replace(served, name=self.name, loaded_at=datetime.now(UTC))
        if before is not None:
            self._around.versions.leave(before.version)
        self._measure_lag()
        self.refusals.forget(served.version)
        await self.takeover.serves(served.watch)
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
        keep = {served.version, *(() if before is None else (before.version,))}
        last_served = await asyncio.to_thread(self._folder.last_served)
        keep |= {last_served} - {None}
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

    def _refuse(self, refusal: Refusal, error: Exception | None = None) -> None:
        self.refusals.add(refusal)
        self._around.metrics.observe_refused_catalogue(self.name, refusal.reason)
        _log.error(
            "version_refused",
            exc_info=error if refusal.reason == "unforeseen" else None,
            extra={
                "fields": {
                    "catalogue": self.name,
                    "version": refusal.version,
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
