"""Create redis-py's clients for an address, with time-outs and without retries: those are `Link`'s."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import exceptions as errors
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    from igd_core.store.redis.address import RedisAddress

# RuntimeError: of uvloop, where a connection that Redis has just closed is written to; redis-py 8.1 hands it on.
FAILURES = (errors.RedisError, errors.RedisClusterException, OSError, RuntimeError)
# When a cluster's client loses a node, it closes all its connections, also under calls in progress, which then end with
# this error or a RuntimeError (redis-py 8.1).
CLUSTER_MISHAPS = (AttributeError,)

_HEALTH_CHECK_S = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client, and those of the sentinels that it asks for the server."""

    commands: Redis | RedisCluster
    sentinels: tuple[Redis, ...] = ()

    async def close(self) -> None:
        """Disconnect."""
        for client in (self.commands, *self.sentinels):
            await client.aclose()
        if isinstance(self.commands, RedisCluster):
            # Its own aclose leaves these open when it has lost a node.
            await self.commands.nodes_manager.aclose()
            await self.commands.nodes_manager.aclose("startup_nodes")


def open_client(address: RedisAddress, timeout_s: float, *, for_messages: bool = False) -> Client:
    """Create a client that connects when it is first used.

    Args:
        address: server, sentinels or cluster.
        timeout_s: for one answer; half of it for one connection, so that another node can be asked in time.
        for_messages: the connection is for a subscription, whose reader sets the time-out.
    """
    # redis-py's time-outs on single reads and writes cost 70 us a command, a third of it. `Link` bounds whole calls, so
    # they are set only where it does not.
    needs_limits = for_messages or address.kind == "cluster"
    options: dict[str, Any] = {
        **address.tls,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": timeout_s if needs_limits else None,
        "socket_connect_timeout": timeout_s / 2,
    }
    of_sentinels = {**options, **address.sentinel_credentials, "socket_timeout": timeout_s / 2}
    # After so many idle seconds, redis-py tests a connection with a PING first.
    options |= {**address.credentials, "health_check_interval": 0 if for_messages else _HEALTH_CHECK_S}
    if address.kind == "cluster":
        nodes = [ClusterNode(host.name, host.port) for host in address.hosts]
        return Client(commands=RedisCluster(startup_nodes=nodes, **options))
    if address.kind == "server":
        (host,) = address.hosts
        return Client(commands=Redis(host=host.name, port=host.port, db=address.database, **options))
    hosts = [(host.name, host.port) for host in address.hosts]
    sentinel = Sentinel(hosts, sentinel_kwargs=of_sentinels)  # type: ignore[no-untyped-call]
    server = sentinel.master_for(address.service, db=address.database, **options)
    return Client(commands=server, sentinels=tuple(sentinel.sentinels))


def jittered(pause_s: float) -> float:
    """A random pause from half of ``pause_s`` to all of it, so that many clients do not return at once."""
    return random.uniform(0.5, 1.0) * pause_s  # noqa: S311
