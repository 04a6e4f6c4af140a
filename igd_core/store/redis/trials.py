"""Trials of versions in Redis: one script a step, by Redis's own clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, get_args

from igd_core.errors import StoreError
from igd_core.store.names import not_stored, require_holder, require_version
from igd_core.store.redis.keys import Keys
from igd_core.store.redis.scripts import ALLOW, BEGIN_TRIAL, END_TRIAL, TRIAL
from igd_core.store.trials import Trial, TrialState, one_line

if TYPE_CHECKING:
    from igd_core.store.redis.link import Link
    from igd_core.store.trials import Verdict


class RedisTrials:
    """The methods of `igd_core.store.base.ArtifactStore` on trials."""

    def __init__(self, link: Link, prefix: str) -> None:
        self._trials_link = link
        self._trials_prefix = prefix
        self._trials_channel = f"{prefix}:changes"

    async def trial(self, catalogue: str, version: str) -> Trial:
        """The state of a version's trial."""
        keys = self._keys_of(catalogue)
        return read_trial(await self._trials_link.run(TRIAL, [keys.trials], [require_version(version)]))

    async def begin_trial(self, catalogue: str, version: str, holder: str, ttl_s: float) -> Trial:
        """Ask to be the first to try a version, or extend that trial."""
        keys = self._keys_of(catalogue)
        ttl_ms = round(ttl_s * 1000)
        found = await self._trials_link.run(
            BEGIN_TRIAL, [keys.versions, keys.trials], [require_version(version), require_holder(holder), ttl_ms]
        )
        if found is None:
            raise not_stored(catalogue, version)
        return read_trial(found)

    async def end_trial(self, catalogue: str, version: str, holder: str, verdict: Verdict, detail: str = "") -> Trial:
        """Record how a trial ended."""
        keys = self._keys_of(catalogue)
        said = [verdict, one_line(detail), self._trials_channel, catalogue]
        arguments = [require_version(version), require_holder(holder), *said]
        return read_trial(await self._trials_link.run(END_TRIAL, [keys.versions, keys.trials], arguments))

    async def allow(self, catalogue: str, version: str) -> None:
        """Let servers try a version again."""
        keys = self._keys_of(catalogue)
        arguments = [require_version(version), self._trials_channel, catalogue]
        if not await self._trials_link.run(ALLOW, [keys.versions, keys.trials], arguments):
            raise not_stored(catalogue, version)

    def _keys_of(self, catalogue: str) -> Keys:
        return Keys(self._trials_prefix, catalogue)


def read_trial(data: bytes) -> Trial:
    """Parse the answer of the scripts.

    Raises:
        StoreError: the key holds something else.
    """
    try:
        state, ends_ms, allowed, holder, detail = data.decode().split(" ", 4)
        if state not in get_args(TrialState):
            raise ValueError(state)  # noqa: TRY301 - one way out for all that is wrong
        return Trial(
            state=cast("TrialState", state),
            holder="" if holder == "-" else holder,
            detail=detail,
            allowed=int(allowed),
            ends_at=int(ends_ms) / 1000,
        )
    except ValueError:
        raise StoreError(f"the trial {data[:64]!r} cannot be read") from None
