"""Records of users on their way into the store: behind the answers, many in one call, none of a forgotten user."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from igd_core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_core.store.base import RecordList
    from igd_server.recommend.background import Background
    from igd_server.recommend.store_guard import StoreGuard

_GATHER_S = 0.02
_MAX_UNWRITTEN = 4096
_USERS_TOGETHER = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLimits:
    """How many records of each user are kept, the latest, and each for how many seconds."""

    keep: int
    ttl_s: float


class Listener(Protocol):
    """Hears what became of records."""

    def wrote(self, records: int) -> None:
        """So many are stored."""
        ...

    def lost(self, records: int, cause: str) -> None:
        """So many are not, and why."""
        ...


class RecordWriter:
    """Adds to one list of each user. No answer waits for it; what the store does not take is lost, and said to be."""

    def __init__(
        self,
        store: StoreGuard,
        background: Background,
        name: RecordList,
        limits: RecordLimits,
        listener: Listener,
    ) -> None:
        """``name``: which list of each user."""
        self._store = store
        self._background = background
        self._name: RecordList = name
        self._limits = limits
        self._listener = listener
        self._unwritten: list[tuple[str, Callable[[], bytes]]] = []
        self._writing = asyncio.Lock()

    def add(self, user_id: str, record: Callable[[], bytes]) -> None:
        """Store what ``record`` returns when its turn has come."""
        is_first = not self._unwritten
        if len(self._unwritten) >= _MAX_UNWRITTEN or (
            is_first and not self._background.offer(f"records {self._name}", self._write)
        ):
            self._listener.lost(1, "too many records wait to be stored")
            return
        self._unwritten.append((user_id, record))

    async def of(self, user_id: str) -> Sequence[bytes]:
        """What is stored of a user, oldest first."""
        return await self._store.records(self._name, user_id)

    async def forget(self, user_id: str) -> None:
        """Return once nothing more of the user will be stored that was added before."""
        self._unwritten = [each for each in self._unwritten if each[0] != user_id]
        async with self._writing:
            """What is being written is so no longer."""

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_S)
        async with self._writing:
            unwritten, self._unwritten = self._unwritten, []
            by_user: dict[str, list[Callable[[], bytes]]] = {}
            for user_id, record in unwritten:
                by_user.setdefault(user_id, []).append(record)
            waiting = iter(by_user.items())
            while some := dict(itertools.islice(waiting, _USERS_TOGETHER)):
                await self._add({user_id: [record() for record in records] for user_id, records in some.items()})

    async def _add(self, records: dict[str, list[bytes]]) -> None:
        number = sum(map(len, records.values()))
        try:
            limits = self._limits
            await self._store.add_records(self._name, records, keep=limits.keep, ttl_s=limits.ttl_s)
        except StoreError as error:
            self._listener.lost(number, str(error))
        else:
            self._listener.wrote(number)
