"""Users' events, and answers to give again, in Redis.

A history is one hash, ``EVENT_ID -> TIMESTAMP_MS ITEM_ID``, where what else an event says follows its item: with up to
512 short fields Redis keeps it as one packed list, and each id is there once; a sorted set beside a hash takes 1.5 to 3
times as much (docs/how-to/redis.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from igd_core.errors import StoreError
from igd_core.store.base import RECORD_LISTS, Forgotten
from igd_core.store.events import Event
from igd_core.store.names import require_event, require_result_key, require_user_id
from igd_core.store.redis.scripts import APPEND, FORGET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.store.base import HistoryLimits
    from igd_core.store.redis.link import Link

# A history may exceed its limit by one in so many before its oldest events are deleted: 512 for a limit of 500.
_SLACK = 40


class RedisHistories:
    """Implements `igd_core.store.base.HistoryStore`."""

    def __init__(self, link: Link, prefix: str, limits: HistoryLimits) -> None:
        """Keys begin with ``prefix``."""
        self._link = link
        self._histories = f"{prefix}:history:"
        self._others = f"{prefix}:events:"
        self._lists = {name: f"{prefix}:{name}:" for name in RECORD_LISTS}
        self._limits = limits

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events to a user's history."""
        return await self._append(self._histories, user_id, events)

    async def history(self, user_id: str) -> Sequence[Event]:
        """A user's events, oldest first."""
        return await self._events(self._histories, user_id)

    async def append_others(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events that make no history."""
        return await self._append(self._others, user_id, events)

    async def other_events(self, user_id: str) -> Sequence[Event]:
        """Those events, oldest first."""
        return await self._events(self._others, user_id)

    async def forget(self, user_id: str) -> Forgotten:
        """Delete everything about a user."""
        require_user_id(user_id)

        async def forgotten(start: str) -> int:
            return int(await self._link.run(FORGET, [start + user_id], []))

        records = {name: await forgotten(start) for name, start in self._lists.items()}
        return Forgotten(events=await forgotten(self._histories), other_events=await forgotten(self._others), **records)

    async def _append(self, start: str, user_id: str, events: Sequence[Event]) -> int:
        key = start + require_user_id(user_id)
        fields: list[str | int] = []
        for event in map(require_event, events):
            fields += [event.event_id, event.timestamp_ms, replace(event, order=0).packed()]
        if not fields:
            return 0
        most = self._limits.max_events
        new, count = await self._link.run(APPEND, [key], [max(1, round(self._limits.ttl_s * 1000)), most, *fields])
        if count > most + most // _SLACK:
            await self._trim(key)
        return int(new)

    async def _events(self, start: str, user_id: str) -> list[Event]:
        events = await self._all(start + require_user_id(user_id))
        return events[-self._limits.max_events :]

    async def _all(self, key: str) -> list[Event]:
        fields = await self._link.call("HGETALL", key)
        try:
            events = [_event(event_id.decode(), *data.decode().split(" ", 1)) for event_id, data in fields.items()]
        except (ValueError, TypeError):
            raise StoreError("a history cannot be read: its key holds something else") from None  # whose, no log says
        return sorted(events, key=lambda event: event.place)

    async def _trim(self, key: str) -> None:
        """Delete the oldest events. They are sorted here: in Lua, 500 events would block Redis for 2 ms.

        They are too old whatever arrives meanwhile, and the next append deletes what this one leaves.
        """
        try:
            oldest = (await self._all(key))[: -self._limits.max_events]
            if oldest:
                await self._link.call("HDEL", key, *(event.event_id for event in oldest))
        except StoreError:
            return


def _event(event_id: str, timestamp_ms: str, packed: str) -> Event:
    return Event.unpacked(event_id, int(timestamp_ms), packed)


class RedisResults:
    """Implements `igd_core.store.base.ResultStore`."""

    def __init__(self, link: Link, prefix: str) -> None:
        """Keys begin with ``prefix``."""
        self._link = link
        self._results = f"{prefix}:result:"

    async def get(self, key: str) -> bytes | None:
        """The value under ``key``; None if there is none."""
        value: bytes | None = await self._link.call("GET", self._results + require_result_key(key))
        return value

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Store ``value`` for ``ttl_s`` seconds."""
        await self._link.call(*self._set(key, value, ttl_s))

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        """Store each value for ``ttl_s`` seconds."""
        if values:
            await self._link.calls([self._set(key, value, ttl_s) for key, value in values.items()])

    async def drop(self, keys: Sequence[str]) -> int:
        """Delete what is stored under these keys."""
        names = {self._results + require_result_key(key) for key in keys}
        return sum([int(await self._link.call("DEL", name)) for name in names])

    def _set(self, key: str, value: bytes, ttl_s: float) -> tuple[str | bytes | float, ...]:
        return "SET", self._results + require_result_key(key), value, "PX", max(1, round(ttl_s * 1000))
