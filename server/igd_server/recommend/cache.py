"""The result cache: answers of the model, in this process and in the store. Keys are made by `ResolvedQuery.key`."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from igd_server.recommend.background import Background
    from igd_server.recommend.store_guard import StoreGuard

_FORMAT = b"igd3"
_CHECKSUM = struct.Struct(">4sI")
_HEAD = struct.Struct(">dII")  # when it was made, number of rows, bytes of marks
_ROW_BYTES = 4
_MAX_LOCAL_BYTES = 64 << 20
_LANE = "results"
# A call of Redis costs the server a tenth of a computed answer; several answers written together share one.
_GATHER_S = 0.02
_MAX_TOGETHER = 16
_MAX_UNWRITTEN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Ranked items as bytes, encoded once for all answers that show them.

    Attributes:
        items: a JSON array of `igd_server.api.schemas.RecommendedItem`.
        rows: item rows of all items, duplicates included, in the catalogue version of the key.
        marks: of the same items, for attribution (`igd_server.recommend.attribution.marks_of`).
    """

    items: bytes
    rows: tuple[int, ...]
    marks: bytes


class ResultCache:
    """The latest answers in this process, bounded in number and bytes; behind them the store's, which servers share.

    All methods belong to one event loop. Damaged or old values in the store are ignored.
    """

    def __init__(
        self,
        store: StoreGuard,
        background: Background,
        *,
        ttl_s: float,
        max_local: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``ttl_s``: how long an answer may be given again; 0 for never. ``clock`` gives seconds since 1970."""
        self._store = store
        self._background = background
        self._ttl_s = ttl_s
        self._max_local = max_local
        self._clock = clock
        self._local: OrderedDict[str, tuple[float, Ranking]] = OrderedDict()
        self._local_bytes = 0
        self._unwritten: dict[str, bytes] = {}

    def local(self, key: str) -> Ranking | None:
        """The answer in this process, if any."""
        found = self._local.get(key)
        if found is None:
            return None
        made_at, ranking = found
        if not self._is_young(made_at):
            self._drop(key)
            return None
        self._local.move_to_end(key)
        return ranking

    async def stored(self, key: str, *, by: float) -> Ranking | None:
        """The answer in the store, if it arrives before ``by``, a time of the event loop."""
        if not self._ttl_s:
            return None
        try:
            value = await self._store.get(name_of(key), by=by)
        except StoreError:
            return None
        found = None if value is None else _unpacked(value)
        if found is None or not self._is_young(found[0]):
            return None
        self._keep_local(key, *found)
        return found[1]

    def keep(self, key: str, ranking: Ranking) -> None:
        """Cache an answer; it is written to the store in the background, and dropped if there is too much to write.

        Answers of the same few milliseconds are written in one call.
        """
        if not self._ttl_s:
            return
        now = self._clock()
        self._keep_local(key, now, ranking)
        is_first = not self._unwritten
        if len(self._unwritten) < _MAX_UNWRITTEN and (not is_first or self._background.offer(_LANE, self._write)):
            self._unwritten[name_of(key)] = _packed(now, ranking)

    @property
    def keeps(self) -> bool:
        """Whether answers are given again at all."""
        return self._ttl_s > 0

    def forget(self, names: Collection[str]) -> set[str]:
        """Drop answers of this process by their names in the store (`name_of`); returns those that were here."""
        here = {name for name in names if name in self._unwritten}
        for name in here:
            del self._unwritten[name]
        for key in [key for key in self._local if name_of(key) in names]:
            here.add(name_of(key))
            self._drop(key)
        return here

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_S)
        unwritten, self._unwritten = list(self._unwritten.items()), {}
        for at in range(0, len(unwritten), _MAX_TOGETHER):
            with contextlib.suppress(StoreError):  # the store's own metrics count it; other writes may succeed
                await self._store.put_all(dict(unwritten[at : at + _MAX_TOGETHER]), self._ttl_s)

    def _is_young(self, made_at: float) -> bool:
        # Servers' clocks differ, and may be set back: an answer may be from the future, but not from far in it.
        return abs(self._clock() - made_at) < self._ttl_s

    def _keep_local(self, key: str, made_at: float, ranking: Ranking) -> None:
        self._drop(key)
        self._local[key] = (made_at, ranking)
        self._local_bytes += _size(ranking)
        while len(self._local) > self._max_local or self._local_bytes > _MAX_LOCAL_BYTES:
            self._drop(next(iter(self._local)))

    def _drop(self, key: str) -> None:
        dropped = self._local.pop(key, None)
        if dropped is not None:
            self._local_bytes -= _size(dropped[1])


def name_of(key: str) -> str:
    """What an answer is called in the store."""
    return f"result:{key}"


def _size(ranking: Ranking) -> int:
    return len(ranking.items) + _ROW_BYTES * len(ranking.rows) + len(ranking.marks)


def _packed(made_at: float, ranking: Ranking) -> bytes:
    rows = struct.pack(f">{len(ranking.rows)}I", *ranking.rows)
    head = _HEAD.pack(made_at, len(ranking.rows), len(ranking.marks))
    body = b"".join((head, rows, ranking.marks, ranking.items))
    return _CHECKSUM.pack(_FORMAT, zlib.crc32(body)) + body


def _unpacked(value: bytes) -> tuple[float, Ranking] | None:
    """The time and the ranking; None if damaged, or in another release's format."""
    body = value[_CHECKSUM.size :]
    if len(body) < _HEAD.size or value[: _CHECKSUM.size] != _CHECKSUM.pack(_FORMAT, zlib.crc32(body)):
        return None
    made_at, num_rows, num_marks = _HEAD.unpack_from(body)
    marks_at = _HEAD.size + _ROW_BYTES * num_rows
    items_at = marks_at + num_marks
    rows = struct.unpack_from(f">{num_rows}I", body, _HEAD.size)
    return made_at, Ranking(items=body[items_at:], rows=rows, marks=body[marks_at:items_at])
