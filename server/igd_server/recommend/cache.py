"""Answers of the model, kept for whoever asks the same: in this process, and behind that in the store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import struct
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import StoreError
from igd_core.release import RELEASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.artifact import Artifact
    from igd_core.search.recommender import Query
    from igd_server.recommend.background import Background
    from igd_server.recommend.store_guard import StoreGuard

_FORMAT = b"igd2"
_CHECKSUM = struct.Struct(">4sI")
_HEAD = struct.Struct(">dI")
_MAX_LOCAL_BYTES = 64 << 20
_LANE = "results"
# A call of Redis is a tenth of what a computed answer costs the server; written together, several answers share one.
_GATHER_S = 0.02
_MAX_TOGETHER = 16
_MAX_UNWRITTEN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Ranked items as they are sent, encoded once however often they are.

    Attributes:
        items: a JSON array of `igd_server.api.schemas.RecommendedItem`.
        item_ids: a JSON array of all ids in it, duplicates included.
    """

    items: bytes
    item_ids: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an answer depends on.

    Attributes:
        query: resolved; its deadline does not count.
        artifact: the version asked.
        model: fingerprint of the model, its adapter included: never a name, which may mean other weights tomorrow.
        explain: whether the answer's tokens are explained.
        left_out: oldest items of the window that the model's context has no room for: servers may give it less.
    """

    query: Query
    artifact: Artifact
    model: str
    explain: bool = False
    left_out: int = 0

    def key(self) -> str:
        """Equal for two questions if and only if they are the same: 64 hexadecimal digits.

        What cannot matter is not in it: of the history, the window that the prompt shows and the set of items that may
        not come back; of lists that are sets, the order and repetitions.
        """
        query, manifest = self.query, self.artifact.manifest
        same = [
            RELEASE,  # another may score, round or encode otherwise
            self.artifact.version,
            self.model,
            self.explain,
            list(manifest.template.window(query.history)),
            self.left_out,
            sorted(query.barred(self.artifact)),
            None if query.allow is None else sorted(set(query.allow)),
            [[name, condition.canonical()] for name, condition in sorted(query.attributes.items())],
            query.k,
            max(query.beams, query.k),
            float(manifest.alpha if query.alpha is None else query.alpha) + 0.0,  # -0.0 becomes 0.0
            float(query.temperature),
            float(query.length_penalty) + 0.0,
            float(query.forced_weight) + 0.0,
        ]
        return hashlib.sha256(json.dumps(same).encode()).hexdigest()


class ResultCache:
    """The latest answers in this process, bounded in number and bytes; the store's behind them, shared by servers.

    All methods belong to one event loop. What the store holds is taken only if it is whole and young enough.
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
        """``ttl_s``: for how long an answer is given again; 0 for never. ``clock`` gives seconds since 1970."""
        self._store = store
        self._background = background
        self._ttl_s = ttl_s
        self._max_local = max_local
        self._clock = clock
        self._local: OrderedDict[str, tuple[float, Ranking]] = OrderedDict()
        self._local_bytes = 0
        self._unwritten: dict[str, bytes] = {}

    def local(self, key: str) -> Ranking | None:
        """What this process has."""
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
        """What the store has, if it answers; ``by``: the event loop's time at which it comes too late."""
        if not self._ttl_s:
            return None
        try:
            value = await self._store.get(_name(key), by=by)
        except StoreError:
            return None
        found = None if value is None else _unpacked(value)
        if found is None or not self._is_young(found[0]):
            return None
        self._keep_local(key, *found)
        return found[1]

    def keep(self, key: str, ranking: Ranking) -> None:
        """Have an answer ready for whoever asks next; the store gets it in the background, or not at all.

        Answers of the same few milliseconds are written in one call of the store.
        """
        if not self._ttl_s:
            return
        now = self._clock()
        self._keep_local(key, now, ranking)
        is_first = not self._unwritten
        if len(self._unwritten) < _MAX_UNWRITTEN and (not is_first or self._background.offer(_LANE, self._write)):
            self._unwritten[_name(key)] = _packed(now, ranking)

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_S)
        unwritten, self._unwritten = list(self._unwritten.items()), {}
        for at in range(0, len(unwritten), _MAX_TOGETHER):
            with contextlib.suppress(StoreError):  # the store's own metrics tell of it; the others may still be taken
                await self._store.put_all(dict(unwritten[at : at + _MAX_TOGETHER]), self._ttl_s)

    def _is_young(self, made_at: float) -> bool:
        # Clocks of servers differ, and are set back: an answer may be from the future, but not from far in it.
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


def _name(key: str) -> str:
    return f"result:{key}"


def _size(ranking: Ranking) -> int:
    return len(ranking.items) + len(ranking.item_ids)


def _packed(made_at: float, ranking: Ranking) -> bytes:
    body = _HEAD.pack(made_at, len(ranking.item_ids)) + ranking.item_ids + ranking.items
    return _CHECKSUM.pack(_FORMAT, zlib.crc32(body)) + body


def _unpacked(value: bytes) -> tuple[float, Ranking] | None:
    """When it was made, and the ranking; None for what is damaged, or another release's."""
    body = value[_CHECKSUM.size :]
    if len(body) < _HEAD.size or value[: _CHECKSUM.size] != _CHECKSUM.pack(_FORMAT, zlib.crc32(body)):
        return None
    made_at, ids_length = _HEAD.unpack_from(body)
    payload = body[_HEAD.size :]
    return made_at, Ranking(items=payload[ids_length:], item_ids=payload[:ids_length])
