"""From a published version to one that has proved itself here: whose turn it is, on record, on trial, passed or not.

An attempt begins before a version is loaded, and ends when the version has passed its trial: so many answers, or so
many seconds without a fault. Until then the disk says so (`attempts`), and of the fleet's first server the store
(`igd_core.store.trials`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.errors import IGDError, StoreError
from igd_server.catalogues.attempts import SERVING
from igd_server.catalogues.refusals import Refusal

if TYPE_CHECKING:
    from igd_core.store.base import ArtifactStore
    from igd_core.store.trials import Verdict
    from igd_server.catalogues.attempts import Attempt, Attempts
    from igd_server.catalogues.loaded import LoadedVersions
    from igd_server.catalogues.opening import Loader
    from igd_server.catalogues.version_folder import VersionFolder
    from igd_server.catalogues.watch import AnswerWatch
    from igd_server.observe.metrics import Metrics

LIVES = 3
"""Attempts that may die before a version is given up that has proved itself here, or that is all there is."""

_CLOSING_S = 2.0

_log = logging.getLogger("igd.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRules:
    """How careful a fleet is with new versions.

    Attributes:
        seconds: of serving without a fault after which a version has passed.
        answers: of the model after which it has, if that is sooner.
        hold: the other servers wait until the first one's version has passed; else until it serves.
        spread_s: within which the other servers take over, each at a time of its own.
        lease_s: seconds after which a server that tries a version and is not heard of is taken for dead.
    """

    seconds: float
    answers: int
    hold: bool
    spread_s: float
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetMember:
    """This server as one of a fleet: what its live catalogues share.

    Attributes:
        store: where the pointers are.
        loader: brings versions into the engine.
        versions: those that are in it.
        metrics: told of swaps and refusals.
        holder: this server's name in the store.
        poll_s: seconds between looks at a pointer.
        rules: how new versions are tried.
    """

    store: ArtifactStore
    loader: Loader
    versions: LoadedVersions
    metrics: Metrics
    holder: str
    poll_s: float
    rules: TrialRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What this server may do with a version now.

    Attributes:
        allowed: how often the version has been allowed again.
        leads: this is the server that tries it for all; its verdict is the fleet's.
        judged: the fleet's verdict is there, and good.
    """

    allowed: int
    leads: bool = False
    judged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """It is not this server's turn; ``for_what`` is for people, ``seconds`` until it may be, if that is known."""

    for_what: str
    seconds: float | None = None


Outcome: TypeAlias = Literal["on trial", "passed", "faults"]


@dataclass(slots=True, kw_only=True)
class _OnTrial:
    """An attempt of this process; ``since`` and the counts are None until the version serves."""

    version: str
    attempt: Attempt
    turn: Turn
    over: asyncio.Event
    watch: AnswerWatch | None = None
    since: float = 0.0
    answers: int = 0
    faults: int = 0


class Takeover:
    """Turns, attempts and trials of one catalogue on one server."""

    def __init__(self, name: str, attempts: Attempts, folder: VersionFolder, around: FleetMember) -> None:
        """Touch nothing yet."""
        self._name = name
        self._attempts = attempts
        self._folder = folder
        self._store = around.store
        self._holder = around.holder
        self._rules = around.rules
        self._metrics = around.metrics
        self._on_trial: _OnTrial | None = None
        self._unsaid: tuple[str, Verdict, str] | None = None
        self._due: tuple[str, float] = ("", 0.0)
        self._renewing: asyncio.Task[None] | None = None
        self._telling = asyncio.Lock()

    @property
    def on_trial(self) -> str | None:
        """The version that has not passed yet."""
        return None if self._on_trial is None else self._on_trial.version

    async def look_back(self) -> None:
        """Say what earlier processes have left; to be called once, before all else."""
        dead = await asyncio.to_thread(self._attempts.dead)
        self._metrics.show_attempts_died(self._name, len(dead))
        for attempt in dead:
            facts = {"version": attempt.version, "stage": attempt.stage, "began_at": attempt.began_at.isoformat()}
            _log.error("attempt_died", extra={"fields": {"catalogue": self._name, **facts}})
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._attempts.sweep)

    async def turn(self, version: str, *, serving: bool, again: bool = False) -> Turn | Wait | Refusal:
        """Whether this server may take the version that is published.

        Args:
            version: that the pointer names.
            serving: there is another version to serve meanwhile.
            again: an operator has asked to try what was refused.

        Raises:
            InputError: it is not stored.
            StoreError: the store cannot say.
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
                return Turn(allowed=trial.allowed, leads=True)
        if not proven and trial.state in ("refused", "died"):
            return _refused(version, "canary", f"{trial.state} on {trial.holder}: {trial.detail}")
        if not proven and trial.state == "trying":
            return Wait(for_what=f"{trial.holder} tries version {version} first")
        return self._in_its_own_time(version, serving=serving) or Turn(
            allowed=trial.allowed, judged=trial.state == "passed"
        )

    async def fallback(self, version: str) -> Turn | None:
        """Leave to serve an older version, where there is nothing else; None where one should not."""
        trial = await self._store.trial(self._name, version)
        proven = await self._is_proven(version)
        if await self._died_here(version, trial.allowed, lives=LIVES if proven else 1) is not None:
            return None
        if not proven and trial.state in ("refused", "died"):
            return None
        return Turn(allowed=trial.allowed, judged=True)

    async def last_resort(self, version: str) -> Turn | None:
        """Leave to try once more what died here, where there is nothing else at all; None where it died too often."""
        trial = await self._store.trial(self._name, version)
        died = len(await asyncio.to_thread(self._attempts.dead, version))
        return Turn(allowed=trial.allowed, leads=True) if 0 < died < LIVES else None

    async def without_store(self, version: str) -> Turn | Refusal:
        """Whether to serve what proved itself here, with no store to ask."""
        return await self._died_here(version, None, lives=LIVES) or Turn(allowed=0, judged=True)

    async def begin(self, version: str, turn: Turn) -> None:
        """Put it on record, before anything is read.

        Raises:
            OSError: the disk cannot take it; nothing must be loaded.
        """
        await self.leave()
        try:
            attempt = await asyncio.to_thread(self._attempts.begin, version, allowed=turn.allowed)
        except OSError:
            if turn.leads:
                await self._say(version, "left")
            raise
        self._on_trial = _OnTrial(version=version, attempt=attempt, turn=turn, over=asyncio.Event())
        if turn.leads:
            self._renewing = asyncio.create_task(self._renew(version, self._on_trial.over))

    async def serves(self, watch: AnswerWatch) -> None:
        """The version answers from now on."""
        trial = self._on_trial
        if trial is None:
            return
        trial.watch, trial.since = watch, time.monotonic()
        trial.answers, trial.faults = watch.answers, watch.faults
        await asyncio.to_thread(trial.attempt.note, SERVING)
        if trial.turn.leads and not self._rules.hold:
            await self._say(trial.version, "passed")

    def judge(self) -> Outcome | None:
        """How the trial goes; None where nothing is on trial."""
        trial = self._on_trial
        if trial is None or trial.watch is None:
            return None
        if trial.turn.leads and self._rules.hold and trial.watch.faults > trial.faults:
            return "faults"
        long_enough = time.monotonic() - trial.since >= self._rules.seconds
        often_enough = trial.watch.answers - trial.answers >= self._rules.answers
        return "passed" if long_enough or often_enough else "on trial"

    @property
    def last_fault(self) -> str:
        """Of the version on trial."""
        return "" if self._on_trial is None or self._on_trial.watch is None else self._on_trial.watch.last_fault

    def begin_again(self) -> None:
        """There is nothing to go back to: the trial goes on from here."""
        trial = self._on_trial
        if trial is not None and trial.watch is not None:
            trial.since, trial.answers, trial.faults = time.monotonic(), trial.watch.answers, trial.watch.faults

    async def passed(self) -> None:
        """The version has proved itself: it is the one to return to, and the others may take it.

        Raises:
            OSError: the disk cannot take it; to be called again.
        """
        trial = self._on_trial
        if trial is None:
            return
        await asyncio.to_thread(self._folder.remember, trial.version)
        await asyncio.to_thread(self._attempts.forget, trial.version)
        self._end()
        self._metrics.show_attempts_died(self._name, len(await asyncio.to_thread(self._attempts.dead)))
        _log.info("version_passed", extra={"fields": {"catalogue": self._name, "version": trial.version}})
        if not trial.turn.judged:
            await self._say(trial.version, "passed")

    async def refused(self, detail: str) -> None:
        """The version cannot be served, and this process has seen why."""
        trial = self._on_trial
        self._end()
        if trial is not None and not trial.turn.judged:
            await self._say(trial.version, "refused", detail)

    async def leave(self) -> None:
        """Give up without a verdict: another server, or a later look, may try."""
        trial = self._on_trial
        self._end()
        if trial is not None and trial.turn.leads:
            await self._say(trial.version, "left")

    async def say_again(self) -> None:
        """Tell the store what it could not be told."""
        if self._unsaid is not None:
            await self._say(*self._unsaid)

    async def close(self, *, engine_failed: bool) -> None:
        """End: well, unless the engine has ended in the attempt, which counts as one that never ended."""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSING_S):
                await self._close(engine_failed=engine_failed)
        self._end()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))

    async def _close(self, *, engine_failed: bool) -> None:
        trial, outcome = self._on_trial, self.judge()
        if trial is None:
            return
        if engine_failed:
            trial.attempt.leave()
            if trial.turn.leads:
                await self._say(trial.version, "died", "the engine ended")
        elif outcome == "passed":
            await self.passed()
        elif outcome == "on trial" and await asyncio.to_thread(self._folder.last_served) is None:
            # Nothing has proved itself here yet; with the store away this is better than nothing.
            await asyncio.to_thread(self._folder.remember, trial.version)
        await self.leave()

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

    def _in_its_own_time(self, version: str, *, serving: bool) -> Wait | None:
        """Servers that have something to serve take over one here, one there."""
        if not serving or not self._rules.spread_s:
            return None
        now = time.monotonic()
        if self._due[0] != version:
            self._due = (version, now + random.uniform(0, self._rules.spread_s))  # noqa: S311 - nobody's secret
        left = self._due[1] - now
        return Wait(for_what=f"its own time to take version {version}", seconds=left) if left > 0 else None

    async def _renew(self, version: str, over: asyncio.Event) -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rules.lease_s / 4):
                    await over.wait()
            async with self._telling:
                if not over.is_set():
                    with contextlib.suppress(IGDError):
                        await self._store.begin_trial(self._name, version, self._holder, self._rules.lease_s)

    async def _say(self, version: str, verdict: Verdict, detail: str = "") -> None:
        """Tell the store; what it cannot be told now is told later."""
        self._unsaid = (version, verdict, detail)
        async with self._telling:  # or a renewal on its way would come after it
            with contextlib.suppress(StoreError):
                await self._store.end_trial(self._name, version, self._holder, verdict, detail)
                self._unsaid = None


def _refused(version: str, reason: Literal["attempt-died", "canary"], detail: str) -> Refusal:
    return Refusal(version=version, reason=reason, detail=detail[:300], refused_at=datetime.now(UTC))
