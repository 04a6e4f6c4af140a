"""What the server keeps outside itself: artifacts, histories, and answers it may need again.

One protocol, three implementations under one contract suite (`tests/contract/test_store.py`): `memory` (one process,
nothing survives), `files` (one machine, no service needed) and `redis` (many servers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from igd_core.store.trials import Trial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from igd_core.store.events import Event
    from igd_core.store.pointers import PointerMove
    from igd_core.store.trials import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLimits:
    """Bounds on what is kept of one user.

    Attributes:
        max_events: the latest are kept.
        ttl_s: seconds after a user's last append at which the history is forgotten.
    """

    max_events: int = 500
    ttl_s: float = 180 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How a store is used, whichever it is.

    Attributes:
        prefix: begins every key in Redis; letters, digits and ``_.:-``.
        timeout_s: longest wait for one call; not for artifacts' parts.
        bulk_timeout_s: longest wait for one chunk of an artifact's part.
        chunk_bytes: into pieces of this size parts are cut; a little below 8 MiB, so that a chunk and its header fill
            one of the allocator's size classes and not half of the next (10 MiB).
        history: bounds on what is kept of one user.
    """

    prefix: str = "igd"
    timeout_s: float = 0.25
    bulk_timeout_s: float = 30.0
    chunk_bytes: int = (8 << 20) - 4096
    history: HistoryLimits = field(default_factory=HistoryLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """An artifact version that is stored whole.

    Attributes:
        version: content hash.
        stored_at: when it was.
        size_bytes: of its parts.
        is_current: whether the catalogue's pointer names it.
        is_previous: whether it is what a roll-back returns to.
        holders: names of servers that serve it now.
        trial: how its first server fares or fared with it.
    """

    version: str
    stored_at: datetime
    size_bytes: int
    is_current: bool
    is_previous: bool
    holders: tuple[str, ...] = ()
    trial: Trial = field(default_factory=Trial)


class ArtifactStore(Protocol):
    """Artifact versions by catalogue name, and for each catalogue one pointer to the version to serve.

    A version is visible once all its parts are stored, and a pointer only ever names a visible version.
    """

    async def add(self, directory: Path, *, catalogue: str | None = None) -> str:
        """Verify the artifact in ``directory`` and store it; returns its version.

        Adding it again changes nothing, but that stored parts which were damaged are whole again.

        Args:
            directory: as `save_artifact` wrote it.
            catalogue: the name to store it under; the manifest's when absent.

        Raises:
            ArtifactError: truncated, altered or foreign.
            InputError: the name cannot be a catalogue's.
            StoreUnavailable: nothing is visible of it.
        """
        ...

    async def activate(self, catalogue: str, version: str) -> None:
        """Move the catalogue's pointer, and tell those who listen; servers try again what one of them had refused.

        Raises:
            InputError: the version is not stored.
        """
        ...

    async def roll_back(self, catalogue: str, version: str | None = None) -> PointerMove:
        """Move the pointer back to ``version``, or to the one before, and tell those who listen.

        The version that is left is not returned to by a later roll-back, unless that names it
        (`igd_core.store.pointers.Pointer`). Nor is one that a server did not come back from: such versions
        are passed by, and `PointerMove.passed_by` names them.

        Raises:
            InputError: the version is not stored, or there is none before that no server died of; or somebody else has
                just moved the pointer.
        """
        ...

    async def current(self, catalogue: str) -> str | None:
        """The version that the pointer names."""
        ...

    async def previous(self, catalogue: str) -> str | None:
        """The version that a roll-back returns to."""
        ...

    async def catalogues(self) -> Sequence[str]:
        """Names of catalogues with a stored version, sorted."""
        ...

    async def versions(self, catalogue: str) -> Sequence[StoredVersion]:
        """Stored versions, newest first."""
        ...

    async def fetch(self, catalogue: str, version: str, parent: Path) -> Path:
        """Copy a version to ``parent / version`` unless it is there; whole and verified, or not at all.

        Raises:
            ArtifactError: what is stored is incomplete or altered; names the part.
            InputError: the version is not stored.
        """
        ...

    async def hold(self, catalogue: str, version: str, holder: str, ttl_s: float) -> None:
        """Say that ``holder`` serves a version, for the next ``ttl_s`` seconds: it is not pruned meanwhile."""
        ...

    async def trial(self, catalogue: str, version: str) -> Trial:
        """Where a version stands with the fleet (`igd_core.store.trials`); writes nothing."""
        ...

    async def begin_trial(self, catalogue: str, version: str, holder: str, ttl_s: float) -> Trial:
        """Ask to be the server that tries a version first, or say that one still is, for the next ``ttl_s`` seconds.

        Returns:
            Where it stands now: ``trying`` with this holder is a yes.

        Raises:
            InputError: the version is not stored.
        """
        ...

    async def end_trial(self, catalogue: str, version: str, holder: str, verdict: Verdict, detail: str = "") -> Trial:
        """Say how a version fared; tells those who listen. Returns where it stands now."""
        ...

    async def allow(self, catalogue: str, version: str) -> None:
        """Let servers try a version again that one refused or did not come back from; tells those who listen.

        Raises:
            InputError: the version is not stored.
        """
        ...

    async def prune(self, catalogue: str, *, keep: int) -> Sequence[str]:
        """Delete all but the ``keep`` newest versions; never the current, the previous or a held one.

        Returns:
            The versions deleted.
        """
        ...

    def changes(self) -> AsyncIterator[str]:
        """Names of catalogues whose pointer moved, or whose version was judged or allowed, until the store is closed.

        A hint: while the store cannot be reached moves are missed, so callers poll as well.
        """
        ...


class HistoryStore(Protocol):
    """Users' interactions."""

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events and keep the latest ``HistoryLimits.max_events``; all of them are recorded, or an error is raised.

        Returns:
            How many were new.
        """
        ...

    async def history(self, user_id: str) -> Sequence[Event]:
        """Events by ``(timestamp_ms, event_id)``, oldest first; none for an unknown user."""
        ...

    async def forget(self, user_id: str) -> bool:
        """Delete all that is stored under the user's id; whether there was anything."""
        ...


class ResultStore(Protocol):
    """Bytes under a key for a while; may lose them at any time."""

    async def get(self, key: str) -> bytes | None:
        """What was put under ``key``, if it is still there."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep ``value`` for ``ttl_s`` seconds."""
        ...

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        """Keep each value under its key for ``ttl_s`` seconds, in one call; an error does not say that none is kept."""
        ...


class Store(ArtifactStore, HistoryStore, ResultStore, Protocol):
    """All three. Every method raises StoreUnavailable where the store cannot be reached or answers too late."""

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
