"""What a server stores outside itself: artifacts, users' histories, and answers that it may give again.

One protocol, three implementations under one contract suite (`tests/contract/test_store.py`): `memory` (one process,
nothing survives), `files` (one machine, no service needed) and `redis` (many servers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

from igd_core.store.trials import Trial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from igd_core.store.events import Event
    from igd_core.store.pointers import PointerMove
    from igd_core.store.trials import Verdict


RecordList: TypeAlias = Literal["impressions", "links", "precomputed"]
"""Lists of bytes of a user: what answers showed, under which other keys something was stored for the user, and lists of
items made in advance."""
RECORD_LISTS: tuple[RecordList, ...] = get_args(RecordList)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """How much of a user a store has deleted; false if nothing.

    Attributes:
        events: that made the history.
        other_events: that did not.
        impressions: answers that were on record.
        links: names of what was stored under other keys.
        precomputed: lists of items made in advance.
    """

    events: int = 0
    other_events: int = 0
    impressions: int = 0
    links: int = 0
    precomputed: int = 0

    def __bool__(self) -> bool:
        """Whether there was anything."""
        return any((self.events, self.other_events, self.impressions, self.links, self.precomputed))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLimits:
    """Bounds on what is stored of one user.

    Attributes:
        max_events: older events are deleted; of those that make no history as many are kept.
        ttl_s: a history is deleted this many seconds after its user's last event.
    """

    max_events: int = 500
    ttl_s: float = 180 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How a store is used, of whatever kind.

    Attributes:
        prefix: begins every key in Redis; letters, digits and ``_.:-``.
        timeout_s: longest wait for one call, except for artifacts' parts.
        bulk_timeout_s: longest wait for one chunk of an artifact's part.
        chunk_bytes: size of the pieces of an artifact's parts; a little below 8 MiB, so that a chunk and its header fit
            one of the allocator's size classes and do not take half of the next (10 MiB).
        history: bounds on what is stored of one user.
    """

    prefix: str = "igd"
    timeout_s: float = 0.25
    bulk_timeout_s: float = 30.0
    chunk_bytes: int = (8 << 20) - 4096
    history: HistoryLimits = field(default_factory=HistoryLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A stored artifact version, complete.

    Attributes:
        version: content hash.
        stored_at: when it was stored.
        size_bytes: of its parts.
        is_current: whether the catalogue's pointer names it.
        is_previous: whether a roll-back would return to it.
        holders: names of the servers that serve it now.
        trial: how the first server that tried it fares, or fared.
        model: the published model that it is served with; None for the server's own.
    """

    version: str
    stored_at: datetime
    size_bytes: int
    is_current: bool
    is_previous: bool
    holders: tuple[str, ...] = ()
    trial: Trial = field(default_factory=Trial)
    model: str | None = None


class ArtifactStore(Protocol):
    """Artifact versions by catalogue, and for each catalogue a pointer to the version to serve; and published models.

    Models are versions of `igd_core.store.names.MODELS`, which has no pointer.

    A version becomes visible when all its parts are stored; a pointer names only visible versions.
    """

    async def add(self, directory: Path, *, catalogue: str | None = None) -> str:
        """Verify the artifact or the published model in ``directory`` and store it; returns its version.

        If it is stored already, nothing changes, except that damaged parts are replaced.

        Args:
            directory: an artifact as `save_artifact` wrote it, or what `published_models.staged` made.
            catalogue: the name to store it under; by default the manifest's. Means nothing for a model.

        Raises:
            ArtifactError: truncated, altered or foreign.
            InputError: the name cannot be a catalogue's.
            StoreUnavailable: the version is not visible.
        """
        ...

    async def activate(self, catalogue: str, version: str) -> None:
        """Move the catalogue's pointer and notify listeners; servers try again what one of them had refused.

        Raises:
            InputError: the version is not stored.
        """
        ...

    async def roll_back(self, catalogue: str, version: str | None = None) -> PointerMove:
        """Move the pointer back to ``version``, or to the one before, and notify listeners.

        A later roll-back does not return to the version that this one leaves, unless it names it
        (`igd_core.store.pointers.Pointer`). Nor does it return to a version in which a server died: such versions are
        skipped, and `PointerMove.passed_by` names them.

        Raises:
            InputError: the version is not stored; no earlier one is left in which no server died; or the pointer has
                just been moved by someone else.
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
        """Copy a version to ``parent / version`` unless it is there; complete and verified, or not at all.

        Raises:
            ArtifactError: what is stored is incomplete or altered; names the part.
            InputError: the version is not stored.
        """
        ...

    async def hold(self, catalogue: str, version: str, holder: str, ttl_s: float) -> None:
        """Record that ``holder`` serves a version for the next ``ttl_s`` seconds; it is not pruned meanwhile."""
        ...

    async def trial(self, catalogue: str, version: str) -> Trial:
        """The state of a version's trial (`igd_core.store.trials`); writes nothing."""
        ...

    async def begin_trial(self, catalogue: str, version: str, holder: str, ttl_s: float) -> Trial:
        """Ask to be the first server to try a version, or extend that trial, for the next ``ttl_s`` seconds.

        Returns:
            The trial's state now: ``trying`` with this holder means yes.

        Raises:
            InputError: the version is not stored.
        """
        ...

    async def end_trial(self, catalogue: str, version: str, holder: str, verdict: Verdict, detail: str = "") -> Trial:
        """Record how a trial ended and notify listeners; returns the trial's state now."""
        ...

    async def allow(self, catalogue: str, version: str) -> None:
        """Let servers try a version again that one of them refused or died in; notifies listeners.

        Raises:
            InputError: the version is not stored.
        """
        ...

    async def prune(self, catalogue: str, *, keep: int, spare: Collection[str] = ()) -> Sequence[str]:
        """Delete all but the ``keep`` newest versions; never the current, the previous, a held one or one of ``spare``.

        Returns:
            The versions deleted.
        """
        ...

    def changes(self) -> AsyncIterator[str]:
        """Names of catalogues whose pointer moved or whose version was judged or allowed, until the store is closed.

        Only a hint: while the store is unreachable events are lost, so callers poll as well.
        """
        ...


class HistoryStore(Protocol):
    """Users' interactions."""

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events one after another, and keep the latest ``HistoryLimits.max_events``; all of them or raises.

        Returns:
            How many of them joined. Those that were known, or no later than the oldest event of a list that is full,
            do not: `igd_core.store.events.joining`.
        """
        ...

    async def history(self, user_id: str) -> Sequence[Event]:
        """Events by time, of one time as they were accepted, oldest first; none for an unknown user."""
        ...

    async def append_others(self, user_id: str, events: Sequence[Event]) -> int:
        """The same for events that make no history, which so push nothing out of it."""
        ...

    async def other_events(self, user_id: str) -> Sequence[Event]:
        """Those events in the same order."""
        ...

    async def forget(self, user_id: str) -> Forgotten:
        """Delete everything stored about a user, records included; returns how much there was."""
        ...


class RecordStore(Protocol):
    """Lists of bytes of each user."""

    async def add_records(
        self, name: RecordList, records: Mapping[str, Sequence[bytes]], *, keep: int, ttl_s: float
    ) -> None:
        """Add to the lists of users, by user id; after an error some may be added, or added twice.

        Args:
            name: which list of each user.
            records: what to add, oldest first.
            keep: older records beyond so many of a user are deleted.
            ttl_s: seconds for which a record is kept.
        """
        ...

    async def records(self, name: RecordList, user_id: str) -> Sequence[bytes]:
        """A user's list, oldest first; none for an unknown user."""
        ...


class ResultStore(Protocol):
    """Bytes under a key for a limited time; they may be lost at any time."""

    async def get(self, key: str) -> bytes | None:
        """The value under ``key``; None if there is none."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Store ``value`` for ``ttl_s`` seconds."""
        ...

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        """Store each value under its key for ``ttl_s`` seconds, in one call; after an error some may be stored."""
        ...

    async def drop(self, keys: Sequence[str]) -> int:
        """Delete what is stored under these keys; returns of how many there was something."""
        ...


class Store(ArtifactStore, HistoryStore, RecordStore, ResultStore, Protocol):
    """Artifacts, histories, records and results. All methods raise StoreUnavailable if no answer comes in time."""

    async def identity(self) -> str:
        """A random name of this store's content, made when first asked for: 32 hexadecimal digits."""
        ...

    def users(self) -> AsyncIterator[Sequence[str]]:
        """Ids of all users of whom events or impressions are stored, page by page; some may come more than once.

        Who is there from the first page to the last comes; who is added or forgotten meanwhile may.
        """
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
