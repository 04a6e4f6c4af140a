"""Whether this server may load a published version, and the version's trial until it has passed, failed or died.

The order of a takeover: `permit` (may it be loaded?), `begin` (an attempt is on record, before anything is read),
`start_trial` (it serves), `outcome` (so many answers, or so many seconds, without a fault), then `conclude_passed` or
`conclude_refused`. Until then this server's disk has the attempt (`attempts`), in case the process dies in it, and if
this server is the first of its fleet, the store has the trial (`igd_core.store.trials`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.cancellation import cancel_and_wait
from igd_core.errors import IGDError, StoreError
from igd_server.catalogues.attempts import SERVING
from igd_server.catalogues.fleet import Permit, Wait
from igd_server.catalogues.refusals import Refusal

if TYPE_CHECKING:
    from igd_core.store.trials import Verdict
    from igd_server.catalogues.attempts import Attempt, Attempts
    from igd_server.catalogues.fleet import FleetMember
    from igd_server.catalogues.served import AnswerWatch
    from igd_server.catalogues.version_folder import VersionFolder

LIVES = 3
"""How often a server may die in a version that has passed here before, or that is the only one, until it is refused."""

_CLOSING_S = 2.0

_log = logging.getLogger("igd.server")


Outcome: TypeAlias = Literal["on trial", "passed", "faults"]


@dataclass(slots=True, kw_only=True)
class _OnTrial:
    """The version on trial; ``watch`` is None, and the numbers mean nothing, until it serves."""

    version: str
    attempt: Attempt
    permit: Permit
    over: asyncio.Event
    watch: AnswerWatch | None = None
    since: float = 0.0
    answers: int = 0
    faults: int = 0


class Takeover:
    """Permits, attempts and trials of one catalogue on this server."""

    def __init__(self, name: str, attempts: Attempts, folder: VersionFolder, fleet: FleetMember) -> None:
        """Reads nothing yet."""
        self._name = name
        self._attempts = attempts
        self._folder = folder
        self._store = fleet.store
        self._holder = fleet.holder
        self._rules = fleet.rules
        self._metrics = fleet.metrics
        self._on_trial: _OnTrial | None = None
        self._unsent: tuple[str, Verdict, str] | None = None
        self._takes_over_at: tuple[str, float] = ("", 0.0)
        self._renewing: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    @property
    def on_trial(self) -> str | None:
        """The version on trial, if any."""
        return None if self._on_trial is None else self._on_trial.version

    async def report_deaths(self) -> None:
        """Log the attempts in which earlier processes died; call it once, before all else."""
        dead = await asyncio.to_thread(self._attempts.dead)
        self._metrics.show_attempts_died(self._name, len(dead))
        for attempt in dead:
            facts = {"version": attempt.version, "stage": attempt.stage, "began_at": attempt.began_at.isoformat()}
            _log.error("attempt_died", extra={"fields": {"catalogue": self._name, **facts}})
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._attempts.sweep)

    async def permit(self, version: str, *, serving: bool, again: bool = False) -> Permit | Wait | Refusal:
        """Whether this server may load the published version now.

        Args:
            version: the pointer names it.
            serving: whether another version is served meanwhile.
            again: an operator has asked to try refused versions again.

        Raises:
            InputError: the version is not stored.
            StoreError: the store cannot tell.
        """
        trial = await self._store.trial(self._name, version)
        if again and trial.state == "refused":
            await self._store.allow(self._name, version)
            trial = await self._store.trial(self._name, version)
        proven = await self._is_proven(version)
        refusal = await self._died_here(version, trial.allowed, lives=LIVES if proven else 1)
        if refusal is not None:
            if not proven and trial.state != "passed":
                await self._store.end_trial(self._name, version, self._holder, "died", refusal.detail)
            return refusal
        if not proven and trial.state not in ("passed", "refused", "died"):
            trial = await self._store.begin_trial(self._name, version, self._holder, self._rules.lease_s)
            if trial.state == "trying" and trial.holder == self._holder:
                return Permit(allowed=trial.allowed, leads=True)
        if not proven and trial.state in ("refused", "died"):
            return _refused(version, "canary", f"{trial.state} on {trial.holder}: {trial.detail}")
        if not proven and trial.state == "trying":
            return Wait(for_what=f"{trial.holder} tries version {version} first")
        return self._spread_out(version, serving=serving) or Permit(
            allowed=trial.allowed, judged=trial.state == "passed"
        )

    async def permit_older(self, version: str) -> Permit | None:
        """Whether to load an older version because nothing is served; None if not."""
        trial = await self._store.trial(self._name, version)
        proven = await self._is_proven(version)
        if await self._died_here(version, trial.allowed, lives=LIVES if proven else 1) is not None:
            return None
        if not proven and trial.state in ("refused", "died"):
            return None
        return Permit(allowed=trial.allowed, judged=True)

    async def permit_last_resort(self, version: str) -> Permit | None:
        """Whether to try a version again in which this server died, as there is no other; None if it died too often."""
        trial = await self._store.trial(self._name, version)
        died = len(await asyncio.to_thread(self._attempts.dead, version))
        return Permit(allowed=trial.allowed, leads=True) if 0 < died < LIVES else None

    async def permit_without_store(self, version: str) -> Permit | Refusal:
        """Whether to load a version that has passed here before, while the store cannot be reached."""
        return await self._died_here(version, None, lives=LIVES) or Permit(allowed=0, judged=True)

    async def begin(self, version: str, permit: Permit) -> None:
        """Record an attempt, before anything of the version is read.

        Raises:
            OSError: the disk cannot take the record; nothing must be loaded.
        """
        await self.abandon()
        begin = partial(self._attempts.begin, version, allowed=permit.allowed)
        recording = asyncio.get_running_loop().run_in_executor(None, begin)
        try:
            attempt = await asyncio.shield(recording)
        except OSError:
            if permit.leads:
                await self._send_verdict(version, "left")
            raise
        except asyncio.CancelledError:  # the thread goes on: what it records would be read as a death
            await _end_recorded(recording)
            raise
        self._on_trial = _OnTrial(version=version, attempt=attempt, permit=permit, over=asyncio.Event())
        if permit.leads:
            self._renewing = asyncio.create_task(self._renew(version, self._on_trial.over))

    async def start_trial(self, watch: AnswerWatch) -> None:
        """The version serves from now on; ``watch`` counts its answers and faults."""
        trial = self._on_trial
        if trial is None:
            return
        trial.watch, trial.since = watch, time.monotonic()
        trial.answers, trial.faults = watch.answers, watch.faults
        await asyncio.to_thread(trial.attempt.note, SERVING)
        if trial.permit.leads and not self._rules.hold:
            await self._send_verdict(trial.version, "passed")

    def outcome(self) -> Outcome | None:
        """How the trial stands; None if nothing is on trial."""
        trial = self._on_trial
        if trial is None or trial.watch is None:
            return None
        if trial.permit.leads and self._rules.hold and trial.watch.faults > trial.faults:
            return "faults"
        long_enough = time.monotonic() - trial.since >= self._rules.seconds
        often_enough = trial.watch.answers - trial.answers >= self._rules.answers
        return "passed" if long_enough or often_enough else "on trial"

    @property
    def last_fault(self) -> str:
        """The last fault of the version on trial, in one line."""
        return "" if self._on_trial is None or self._on_trial.watch is None else self._on_trial.watch.last_fault

    def restart_trial(self) -> None:
        """Begin the trial anew, as there is no version to go back to."""
        trial = self._on_trial
        if trial is not None and trial.watch is not None:
            trial.since, trial.answers, trial.faults = time.monotonic(), trial.watch.answers, trial.watch.faults

    async def conclude_passed(self) -> None:
        """End the trial: the version is the one to return to from now on, and other servers may load it.

        Raises:
            OSError: the disk cannot take the record; call this again later.
        """
        trial = self._on_trial
        if trial is None:
            return
        await asyncio.to_thread(self._folder.remember, trial.version)
        await asyncio.to_thread(self._attempts.forget, trial.version)
        self._end()
        self._metrics.show_attempts_died(self._name, len(await asyncio.to_thread(self._attempts.dead)))
        _log.info("version_passed", extra={"fields": {"catalogue": self._name, "version": trial.version}})
        if not trial.permit.judged:
            await self._send_verdict(trial.version, "passed")

    async def conclude_refused(self, detail: str) -> None:
        """End the trial: the version cannot be served; ``detail`` says why."""
        trial = self._on_trial
        self._end()
        if trial is not None and not trial.permit.judged:
            await self._send_verdict(trial.version, "refused", detail)

    async def abandon(self) -> None:
        """End the attempt without a verdict: another server may try the version, or this one later."""
        trial = self._on_trial
        self._end()
        if trial is not None and trial.permit.leads:
            await self._send_verdict(trial.version, "left")

    async def resend_verdict(self) -> None:
        """Send the store the verdict that it could not take before, if any."""
        if self._unsent is not None:
            await self._send_verdict(*self._unsent)

    async def close(self, *, engine_failed: bool) -> None:
        """End the attempt. If the engine failed in it, it stays on record as one in which the server died."""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSING_S):
                await self._close(engine_failed=engine_failed)
        self._end()
        if self._renewing is not None:
            await cancel_and_wait((self._renewing,))

    async def _close(self, *, engine_failed: bool) -> None:
        trial, outcome = self._on_trial, self.outcome()
        if trial is None:
            return
        if engine_failed:
            trial.attempt.abandon()
            if trial.permit.leads:
                await self._send_verdict(trial.version, "died", "the engine ended")
        elif outcome == "passed":
            await self.conclude_passed()
        elif outcome == "on trial" and await asyncio.to_thread(self._folder.last_served) is None:
            # No version has passed here yet; without the store, this one is better than none.
            await asyncio.to_thread(self._folder.remember, trial.version)
        await self.abandon()

    def _end(self) -> None:
        if self._on_trial is not None:
            self._on_trial.attempt.end()
            self._on_trial.over.set()
        self._on_trial = None

    async def _is_proven(self, version: str) -> bool:
        return await asyncio.to_thread(self._folder.last_served) == version

    async def _died_here(self, version: str, allowed: int | None, *, lives: int) -> Refusal | None:
        if allowed:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._attempts.forget, version, before=allowed)
        dead = await asyncio.to_thread(self._attempts.dead)
        self._metrics.show_attempts_died(self._name, len(dead))
        own = [attempt for attempt in dead if attempt.version == version and attempt.allowed >= (allowed or 0)]
        if len(own) < lives:
            return None
        times = f"{len(own)} times, last " if len(own) > 1 else ""
        return _refused(version, "attempt-died", f"a server's process ended {times}{own[-1].stage}")

    def _spread_out(self, version: str, *, serving: bool) -> Wait | None:
        """Servers that serve something take over at random times, not all at once."""
        if not serving or not self._rules.spread_s:
            return None
        now = time.monotonic()
        if self._takes_over_at[0] != version:
            self._takes_over_at = (version, now + random.uniform(0, self._rules.spread_s))  # noqa: S311 - nobody's secret
        left = self._takes_over_at[1] - now
        return Wait(for_what=f"its own time to take version {version}", seconds=left) if left > 0 else None

    async def _renew(self, version: str, over: asyncio.Event) -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rules.lease_s / 4):
                    await over.wait()
            async with self._sending:
                if not over.is_set():
                    with contextlib.suppress(IGDError):
                        await self._store.begin_trial(self._name, version, self._holder, self._rules.lease_s)

    async def _send_verdict(self, version: str, verdict: Verdict, detail: str = "") -> None:
        """Send the store a verdict; if it cannot take it now, `resend_verdict` sends it later."""
        self._unsent = (version, verdict, detail)
        async with self._sending:  # else a renewal under way could arrive after it
            with contextlib.suppress(StoreError):
                await self._store.end_trial(self._name, version, self._holder, verdict, detail)
                self._unsent = None


async def _end_recorded(recording: asyncio.Future[Attempt]) -> None:
    """Wait for the record of an attempt, and end it; further cancellations do not hurry a disk."""
    while not recording.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((recording,))
    if recording.exception() is None:
        recording.result().end()


def _refused(version: str, reason: Literal["attempt-died", "canary"], detail: str) -> Refusal:
    return Refusal(version=version, reason=reason, detail=detail[:300], refused_at=datetime.now(UTC))
