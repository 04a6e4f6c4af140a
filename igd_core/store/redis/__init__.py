"""A store in Redis, for many servers; the only package that imports redis-py. Keys: docs/reference/store-keys.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_core.store.names import require_prefix
from igd_core.store.redis.address import RedisAddress
from igd_core.store.redis.artifacts import RedisArtifacts
from igd_core.store.redis.histories import RedisHistories, RedisResults
from igd_core.store.redis.link import Link
from igd_core.store.redis.records import RedisRecords

if TYPE_CHECKING:
    from igd_core.store.base import StoreOptions

__all__ = ["RedisStore", "open_redis"]


class RedisStore(RedisArtifacts, RedisHistories, RedisRecords, RedisResults):
    """Implements `igd_core.store.base.Store`."""

    def __init__(self, address: RedisAddress, options: StoreOptions) -> None:
        """Connect to nothing yet."""
        link = Link(address, timeout_s=options.timeout_s)
        bulk = Link(address, timeout_s=options.bulk_timeout_s)
        self._links = (link, bulk)
        self._probe = f"{options.prefix}:catalogues"
        RedisArtifacts.__init__(self, link, bulk, options.prefix, chunk_bytes=options.chunk_bytes)
        RedisHistories.__init__(self, link, options.prefix, options.history)
        RedisRecords.__init__(self, link, options.prefix)
        RedisResults.__init__(self, link, options.prefix)

    async def ping(self) -> None:
        """Return if Redis answers a read; in a cluster, PING would test less."""
        await self._links[0].call("SCARD", self._probe)

    async def close(self) -> None:
        """Disconnect."""
        for link in self._links:
            await link.close()


def open_redis(url: str, options: StoreOptions) -> RedisStore:
    """The store behind a URL; connects at the first call.

    Raises:
        InputError: the URL (named without its password) or the prefix cannot be used.
    """
    require_prefix(options.prefix)
    return RedisStore(RedisAddress.parse(url), options)
