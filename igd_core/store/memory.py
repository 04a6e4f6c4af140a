"""A store in this process's memory: for tests, and for trying the server. Nothing outlives the process."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.store.base import RECORD_LISTS, Forgotten, StoredVersion, StoreOptions
from igd_core.store.bundles import Bundle, Chunk, Layout, holds_version, receive
from igd_core.store.events import joining
from igd_core.store.names import (
    is_catalogue_name,
    not_stored,
    require_catalogue_name,
    require_event,
    require_holder,
    require_keep,
    require_result_key,
    require_shelf,
    require_user_id,
    require_version,
)
from igd_core.store.pointers import Pointer, PointerMove
from igd_core.store.trials import Trial, allowed_again, begun, concluded, pointed_at, seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from igd_core.store.base import RecordList
    from igd_core.store.events import Event
    from igd_core.store.trials import Verdict

    _Histories = OrderedDict[str, tuple[float, dict[str, Event]]]

MAX_RESULTS = 100_000


@dataclass(slots=True, kw_only=True)
class _Stored:
    layout: Layout
    chunks: dict[Chunk, bytes]
    sequence: int
    stored_at: datetime
    model: str | None


@dataclass(slots=True, kw_only=True)
class _Shelf:
    """One catalogue; ``holds`` maps (version, holder) to the end of the hold."""

    versions: dict[str, _Stored] = field(default_factory=dict)
    pointer: Pointer = field(default_factory=Pointer)
    holds: dict[tuple[str, str], float] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)


class MemoryResults:
    """Bytes under a key for a limited time; the oldest are dropped beyond ``most``."""

    def __init__(self, clock: Callable[[], float], most: int = MAX_RESULTS) -> None:
        """``clock`` gives seconds."""
        self._clock = clock
        self._most = most
        self._results: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    async def get(self, key: str) -> bytes | None:
        """The value under ``key``; None if there is none."""
        ends, value = self._results.get(require_result_key(key), (0.0, b""))
        return value if ends > self._clock() else None

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Store ``value`` for ``ttl_s`` seconds."""
        self._results[require_result_key(key)] = (self._clock() + ttl_s, value)
        self._results.move_to_end(key)
        while len(self._results) > self._most:
            self._results.popitem(last=False)

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        """Store each value for ``ttl_s`` seconds."""
        for key, value in values.items():
            await self.put(key, value, ttl_s)

    async def drop(self, keys: Sequence[str]) -> int:
        """Delete what is stored under these keys."""
        now, found = self._clock(), [self._results.pop(require_result_key(key), None) for key in set(keys)]
        return sum(each is not None and each[0] > now for each in found)


class MemoryStore(MemoryResults):
    """Implements `igd_core.store.base.Store`."""

    def __init__(self, options: StoreOptions | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds; holds, histories and results expire by it."""
        super().__init__(clock)
        self._options = options or StoreOptions()
        self._shelves: dict[str, _Shelf] = {}
        self._listeners: set[asyncio.Queue[str | None]] = set()
        self._stored = 0
        # The user with the oldest last event comes first.
        self._histories: _Histories = OrderedDict()
        self._others: _Histories = OrderedDict()
        # A record is the time at which it ends, and its bytes.
        self._records: dict[RecordList, dict[str, list[tuple[float, bytes]]]] = {name: {} for name in RECORD_LISTS}
        self._identity = uuid.uuid4().hex

    async def add(self, directory: Path, *, catalogue: str | None = None) -> str:
        """Store a copy of the artifact's files."""
        bundle = await asyncio.to_thread(Bundle.open, directory)
        version = bundle.manifest.version
        shelf = self._shelves.setdefault(require_shelf(bundle.shelf(catalogue)), _Shelf())
        layout = Layout.of(bundle.sizes, self._options.chunk_bytes)
        chunks = {chunk: await asyncio.to_thread(bundle.read, chunk, layout.chunk_bytes) for chunk in layout.chunks()}
        if version in shelf.versions:
            shelf.versions[version].chunks = chunks
        else:
            self._stored += 1
            shelf.versions[version] = _Stored(
                layout=layout,
                chunks=chunks,
                sequence=self._stored,
                stored_at=datetime.now(UTC),
                model=bundle.manifest.model,
            )
        return version

    async def activate(self, catalogue: str, version: str) -> None:
        """Move the pointer, and wake `changes`."""
        require_catalogue_name(catalogue)
        self._find(catalogue, version)
        shelf = self._shelves[catalogue]
        self._point(shelf, shelf.pointer.moved_to(version))
        self._tell(catalogue)

    async def roll_back(self, catalogue: str, version: str | None = None) -> PointerMove:
        """Move the pointer back, and wake `changes`."""
        require_catalogue_name(catalogue)
        shelf = self._shelf(catalogue)
        if version is not None:
            require_version(version)
        before, trials = shelf.pointer, self._trials(shelf)
        self._point(shelf, before.rolled_back(catalogue, version, trials))
        self._tell(catalogue)
        return PointerMove.between(before, shelf.pointer, trials)

    async def current(self, catalogue: str) -> str | None:
        """The version that the pointer names."""
        return self._shelf(catalogue).pointer.current

    async def previous(self, catalogue: str) -> str | None:
        """The version that a roll-back returns to."""
        shelf = self._shelf(catalogue)
        return shelf.pointer.returns_to(self._trials(shelf))

    async def catalogues(self) -> Sequence[str]:
        """Names of catalogues with a stored version, sorted."""
        return sorted(name for name, shelf in self._shelves.items() if shelf.versions and is_catalogue_name(name))

    async def versions(self, catalogue: str) -> Sequence[StoredVersion]:
        """Stored versions, newest first."""
        shelf = self._shelf(catalogue)
        trials = self._trials(shelf)
        previous = shelf.pointer.returns_to(trials)
        return [
            StoredVersion(
                version=version,
                stored_at=shelf.versions[version].stored_at,
                size_bytes=sum(map(len, shelf.versions[version].chunks.values())),
                is_current=version == shelf.pointer.current,
                is_previous=version == previous,
                holders=self._holders(shelf, version),
                trial=trial,
                model=shelf.versions[version].model,
            )
            for version, trial in trials.items()
        ]

    async def fetch(self, catalogue: str, version: str, parent: Path) -> Path:
        """Copy a version to ``parent / version`` unless it is there."""
        require_shelf(catalogue)
        if await asyncio.to_thread(holds_version, parent / require_version(version), version):
            return parent / version
        stored = self._find(catalogue, version)

        async def read(chunk: Chunk, _: int) -> bytes | None:
            return stored.chunks.get(chunk)

        return await receive(version, stored.layout, read, parent)

    async def hold(self, catalogue: str, version: str, holder: str, ttl_s: float) -> None:
        """Record that ``holder`` serves a version."""
        shelf = self._shelves.setdefault(require_shelf(catalogue), _Shelf())
        shelf.holds[require_version(version), require_holder(holder)] = self._clock() + ttl_s

    async def trial(self, catalogue: str, version: str) -> Trial:
        """The state of a version's trial."""
        return seen(self._trial(self._shelf(catalogue), require_version(version)), self._clock())

    async def begin_trial(self, catalogue: str, version: str, holder: str, ttl_s: float) -> Trial:
        """Ask to be the first to try a version, or extend that trial."""
        self._find(catalogue, version)
        shelf, now = self._shelves[catalogue], self._clock()
        trial = begun(self._trial(shelf, version), require_holder(holder), now=now, ttl_s=ttl_s)
        shelf.trials[version] = trial
        return trial

    async def end_trial(self, catalogue: str, version: str, holder: str, verdict: Verdict, detail: str = "") -> Trial:
        """Record how a trial ended."""
        require_holder(holder)
        shelf = self._shelf(catalogue)
        before = self._trial(shelf, require_version(version))
        if version not in shelf.versions:
            return before
        shelf.trials[version] = concluded(before, holder, verdict, detail)
        self._tell(catalogue)
        return shelf.trials[version]

    async def allow(self, catalogue: str, version: str) -> None:
        """Let servers try a version again."""
        self._find(catalogue, version)
        shelf = self._shelves[catalogue]
        shelf.trials[version] = allowed_again(self._trial(shelf, version))
        self._tell(catalogue)

    async def prune(self, catalogue: str, *, keep: int, spare: Collection[str] = ()) -> Sequence[str]:
        """Delete all but the newest versions and those in use."""
        shelf = self._shelf(catalogue)
        deleted = [
            stored.version
            for stored in (await self.versions(catalogue))[require_keep(keep) :]
            if not (stored.is_current or stored.is_previous or stored.holders or stored.version in spare)
        ]
        for version in deleted:
            del shelf.versions[version]
            shelf.trials.pop(version, None)
        return deleted

    async def changes(self) -> AsyncIterator[str]:
        """Names of catalogues whose pointer moved."""
        listener: asyncio.Queue[str | None] = asyncio.Queue()
        self._listeners.add(listener)
        try:
            while (name := await listener.get()) is not None:
                yield name
        finally:
            self._listeners.discard(listener)

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events to a user's history."""
        return self._append(self._histories, user_id, events)

    async def history(self, user_id: str) -> Sequence[Event]:
        """A user's events, oldest first."""
        return self._events(self._histories, user_id)

    async def append_others(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events that make no history."""
        return self._append(self._others, user_id, events)

    async def other_events(self, user_id: str) -> Sequence[Event]:
        """Those events, oldest first."""
        return self._events(self._others, user_id)

    async def forget(self, user_id: str) -> Forgotten:
        """Delete everything about a user."""
        forgotten = Forgotten(
            events=len(await self.history(user_id)),
            other_events=len(await self.other_events(user_id)),
            **{name: len(await self.records(name, user_id)) for name in RECORD_LISTS},
        )
        for events in (self._histories, self._others):
            events.pop(user_id, None)
        for lists in self._records.values():
            lists.pop(user_id, None)
        return forgotten

    async def add_records(
        self, name: RecordList, records: Mapping[str, Sequence[bytes]], *, keep: int, ttl_s: float
    ) -> None:
        """Add to lists of users; lists that have ended are dropped a few at a time."""
        now = self._clock()
        lists = self._records[name]
        for user_id, added in records.items():
            live = [each for each in lists.pop(require_user_id(user_id), []) if each[0] > now]
            lists[user_id] = [*live, *((now + ttl_s, record) for record in added)][-keep:]
        while lists:
            user_id, oldest = next(iter(lists.items()))
            if oldest and oldest[-1][0] > now:
                return
            del lists[user_id]

    async def records(self, name: RecordList, user_id: str) -> Sequence[bytes]:
        """A user's list, oldest first."""
        now = self._clock()
        return [record for ends, record in self._records[name].get(require_user_id(user_id), []) if ends > now]

    async def identity(self) -> str:
        """The name of this object's content."""
        return self._identity

    async def users(self) -> AsyncIterator[Sequence[str]]:
        """All users, on one page."""
        yield list(dict.fromkeys([*self._histories, *self._others, *self._records["impressions"]]))

    async def ping(self) -> None:
        """Memory always answers."""

    async def close(self) -> None:
        """End `changes`; there is nothing to release."""
        for listener in self._listeners:
            listener.put_nowait(None)

    def _tell(self, catalogue: str) -> None:
        for listener in self._listeners:
            listener.put_nowait(catalogue)

    def _point(self, shelf: _Shelf, pointer: Pointer) -> None:
        if pointer.current is not None and pointer.current != shelf.pointer.current:
            shelf.trials[pointer.current] = pointed_at(self._trial(shelf, pointer.current))
        shelf.pointer = pointer

    def _trials(self, shelf: _Shelf) -> dict[str, Trial]:
        """The trials of all versions, newest first, as of now."""
        newest_first = sorted(shelf.versions, key=lambda version: -shelf.versions[version].sequence)
        return {version: seen(self._trial(shelf, version), self._clock()) for version in newest_first}

    @staticmethod
    def _trial(shelf: _Shelf, version: str) -> Trial:
        return shelf.trials.get(version, Trial())

    def _shelf(self, catalogue: str) -> _Shelf:
        return self._shelves.get(require_shelf(catalogue), _Shelf())

    def _find(self, catalogue: str, version: str) -> _Stored:
        stored = self._shelf(catalogue).versions.get(require_version(version))
        if stored is None:
            raise not_stored(catalogue, version)
        return stored

    def _holders(self, shelf: _Shelf, version: str) -> tuple[str, ...]:
        now = self._clock()
        return tuple(sorted(holder for (held, holder), ends in shelf.holds.items() if held == version and ends > now))

    def _append(self, kept: _Histories, user_id: str, events: Sequence[Event]) -> int:
        require_user_id(user_id)
        for event in events:
            require_event(event)
        if not events:
            return 0
        self._forget_the_expired(kept)
        _, known = kept.pop(user_id, (0.0, {}))
        limits = self._options.history
        joined = joining(known, events, limits.max_events)
        latest = sorted([*known.values(), *joined], key=lambda event: event.place)[-limits.max_events :]
        kept[user_id] = (self._clock() + limits.ttl_s, {event.event_id: event for event in latest})
        return len(joined)

    def _events(self, kept: _Histories, user_id: str) -> Sequence[Event]:
        ends, events = kept.get(require_user_id(user_id), (0.0, {}))
        return list(events.values()) if ends > self._clock() else []

    def _forget_the_expired(self, kept: _Histories) -> None:
        now = self._clock()
        while kept:
            user_id, (ends, _) = next(iter(kept.items()))
            if ends > now:
                return
            del kept[user_id]
