"""Lists of bytes of each user, the name of the store's content, and whose data there are, in Redis."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from igd_core.errors import StoreError
from igd_core.store.names import require_user_id
from igd_core.store.redis.scripts import RECORD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from igd_core.store.base import RecordList
    from igd_core.store.redis.link import Link, Run

_KEYS_AT_ONCE = 1000
_OF_USERS = ("history", "events", "impressions")


class RedisRecords:
    """Implements `igd_core.store.base.RecordStore`."""

    def __init__(self, link: Link, prefix: str) -> None:
        """Keys begin with ``prefix``."""
        self._records_link = link
        self._records_prefix = prefix

    async def add_records(
        self, name: RecordList, records: Mapping[str, Sequence[bytes]], *, keep: int, ttl_s: float
    ) -> None:
        """Add to lists of users."""
        bounds = (keep, max(1, round(ttl_s * 1000)))
        runs: list[Run] = [([self._list(name, user)], [*bounds, *added]) for user, added in records.items() if added]
        await self._records_link.run_all(RECORD, runs)

    async def records(self, name: RecordList, user_id: str) -> Sequence[bytes]:
        """A user's list, oldest first."""
        key = self._list(name, user_id)
        now_ms = time.time() * 1000
        try:
            found = [each.split(b" ", 1) for each in await self._records_link.call("LRANGE", key, 0, -1)]
            return [record for ends_ms, record in found if int(ends_ms) > now_ms]
        except ValueError:
            raise StoreError(f"a user's {name} cannot be read: their key holds something else") from None

    async def identity(self) -> str:
        """The name of what is stored under the prefix."""
        key = f"{self._records_prefix}:identity"
        name = await self._records_link.call("GET", key)
        if name is None:  # a replica can be asked, but not told
            await self._records_link.call("SET", key, uuid.uuid4().hex, "NX")
            name = await self._records_link.call("GET", key)
        return str(name.decode())

    async def users(self) -> AsyncIterator[Sequence[str]]:
        """All users, as SCAN finds their keys."""
        for kind in _OF_USERS:
            start = f"{self._records_prefix}:{kind}:"
            async for keys in self._records_link.scan(f"{start}*", _KEYS_AT_ONCE):
                yield [key.decode().removeprefix(start) for key in keys]

    def _list(self, name: RecordList, user_id: str) -> str:
        return f"{self._records_prefix}:{name}:{require_user_id(user_id)}"
