"""All calls to Redis: bounded in time and number, retried where that is safe, and with one kind of error."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from redis import exceptions as errors
from redis.asyncio import Redis

from igd_core.errors import StoreError, StoreUnavailable
from igd_core.store.redis.clients import CLUSTER_MISHAPS, FAILURES, Client, jittered, open_client
from igd_core.store.redis.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import RedisCluster

    from igd_core.store.redis.address import RedisAddress

_CONCURRENT_CALLS = 64
_PAUSES_S = (0.01, 0.04)
_LONGEST_REASON = 200

# redis-py's errors after which the same call may work later.
_UNAVAILABLE = (
    OSError,
    RuntimeError,
    *CLUSTER_MISHAPS,
    errors.ConnectionError,
    errors.TimeoutError,
    errors.ReadOnlyError,
    errors.OutOfMemoryError,
    errors.ClusterError,
    errors.TryAgainError,
    errors.RedisClusterException,
)
# First words of errors that redis-py raises only as ResponseError.
_UNAVAILABLE_CODES = ("BUSY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "UNKILLABLE")
# Trying again at once would not help.
_LASTING = (errors.OutOfMemoryError, errors.AuthenticationError, errors.AuthorizationError)

Run: TypeAlias = "tuple[Sequence[str], Sequence[str | bytes | float]]"
"""Keys and arguments of one run of a script."""
_Send = Callable[["Redis | RedisCluster"], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A Lua script; after the first run, Redis knows it by its hash.

    Attributes:
        text: the script.
        sha: its hash, for EVALSHA.
    """

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        """Hash the text once, not at each run."""
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class Link:
    """Calls to one Redis, each bounded by ``timeout_s`` whatever the server and the network do.

    A call without an answer may be sent again, so every command must be safe to repeat.

    Every failure is a StoreUnavailable, or a StoreError if a retry cannot help; the message is one line and names the
    server without credentials.
    """

    def __init__(self, address: RedisAddress, *, timeout_s: float) -> None:
        """Connect to nothing yet."""
        self._address = address
        self._timeout_s = timeout_s
        self._failures = (*FAILURES, *CLUSTER_MISHAPS) if address.kind == "cluster" else FAILURES
        self._client: Client | None = None
        self._closed = False
        self._slots = asyncio.Semaphore(_CONCURRENT_CALLS)
        self._running: set[asyncio.Task[Any]] = set()
        self._subscriptions: set[Subscription] = set()

    async def call(self, *command: str | bytes | float) -> Any:  # noqa: ANN401 - any answer
        """Send one command; returns the answer as redis-py gives it, with bytes for strings."""
        return await self._bounded(lambda client: client.execute_command(*command))

    async def calls(self, commands: Sequence[Sequence[str | bytes | float]]) -> None:
        """Send several commands at once, none of which needs another's answer; raises the first error among these."""

        async def send(client: Redis | RedisCluster) -> None:
            pipeline = client.pipeline(transaction=False) if isinstance(client, Redis) else client.pipeline()
            for command in commands:
                pipeline.execute_command(*command)
            for answer in await pipeline.execute(raise_on_error=False):
                if isinstance(answer, Exception):
                    raise answer

        await self._bounded(send)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | float]) -> Any:  # noqa: ANN401
        """Run a script; its ``keys`` lie in one hash slot."""

        async def evaluate(client: Redis | RedisCluster) -> Any:  # noqa: ANN401
            try:
                return await client.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
            except errors.NoScriptError:
                # Not SCRIPT LOAD, as redis-py's register_script has it: in a cluster that asks every primary, and fails
                # when one is down that has none of these keys.
                return await client.execute_command("EVAL", script.text, len(keys), *keys, *arguments)

        return await self._bounded(evaluate)

    async def run_all(self, script: Script, runs: Sequence[Run]) -> None:
        """Run a script several times at once, for keys and arguments of which no run needs another's outcome."""
        if len(runs) == 1 or self._address.kind == "cluster":  # where each node would get a pipeline of its own
            outcomes = await asyncio.gather(*(self.run(script, *each) for each in runs), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            return

        async def send(client: Redis | RedisCluster) -> None:
            left = list(runs)
            for command, text in (("EVALSHA", script.sha), ("EVAL", script.text)):
                pipeline = cast("Redis", client).pipeline(transaction=False)
                for keys, arguments in left:
                    pipeline.execute_command(command, text, len(keys), *keys, *arguments)
                answers = await pipeline.execute(raise_on_error=False)
                for answer in answers:
                    if isinstance(answer, Exception) and not isinstance(answer, errors.NoScriptError):
                        raise answer
                unknown = [isinstance(answer, errors.NoScriptError) for answer in answers]
                left = [run for run, is_unknown in zip(left, unknown, strict=True) if is_unknown]
                if not left:
                    return

        await self._bounded(send)

    async def scan(self, pattern: str, at_once: int) -> AsyncGenerator[list[bytes], None]:
        """Keys of a pattern, about ``at_once`` of all keys' at a time; each key that stays, at least once."""
        for node in await self._bounded(_primaries):
            cursor = 0
            while True:
                options = {} if node is None else {"target_nodes": node}

                async def send(client: Redis | RedisCluster, cursor: int = cursor, options: Any = options) -> Any:  # noqa: ANN401
                    return await client.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", at_once, **options)

                found, keys = await self._bounded(send)
                if keys:
                    yield keys
                cursor = int(
                    next(iter(found.values())) if isinstance(found, dict) else found
                )  # a cluster's names nodes
                if not cursor:
                    break

    async def messages(self, channel: str) -> AsyncGenerator[bytes, None]:
        """Messages published on a channel from now on, until this is closed; reconnects when needed."""
        subscription = Subscription(self._address, channel, timeout_s=self._timeout_s)
        self._subscriptions.add(subscription)
        try:
            while (message := await subscription.next()) is not None:
                yield message
        finally:
            await subscription.close()
            self._subscriptions.discard(subscription)  # last: if this is cut short, `close` closes it

    async def close(self) -> None:
        """Abort what is running, and disconnect."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _bounded(self, send: _Send) -> Any:  # noqa: ANN401
        if self._closed:
            raise StoreUnavailable(f"{self._address.label}: closed")
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(deadline) as limit, self._slots:
                attempts = self._attempts(send, deadline)
                return await (self._left_alone(attempts) if self._address.kind == "cluster" else attempts)
        except self._failures as error:
            if isinstance(error, TimeoutError) and limit.expired():
                reason = f"no answer within {self._timeout_s * 1000:.0f} ms"
                raise StoreUnavailable(f"{self._address.label}: {reason}") from None
            raise self._translated(error) from None

    def _left_alone(self, attempts: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """Let an overdue call run on until redis-py's own time-outs end it.

        So redis-py learns which node has failed and asks the others for its slots; a cluster's client that is cancelled
        in the middle of that would begin again with every call.
        """
        task = asyncio.create_task(attempts)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio would report an error that nobody waits for

    async def _attempts(self, send: _Send, deadline: float) -> Any:  # noqa: ANN401
        if self._client is None:
            self._client = open_client(self._address, self._timeout_s)
        for pause in _PAUSES_S:
            try:
                return await send(self._client.commands)
            except self._failures as error:
                late = asyncio.get_running_loop().time() + pause >= deadline
                if late or not _may_pass(error):
                    raise
            await asyncio.sleep(jittered(pause))
        return await send(self._client.commands)

    def _translated(self, error: Exception) -> StoreError:
        kind = StoreUnavailable if _is_unavailable(error) else StoreError
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        return kind(f"{self._address.label}: {reason}")


async def _primaries(client: Redis | RedisCluster) -> list[Any]:
    """The nodes of a cluster that hold keys; of one server, None stands for it."""
    if isinstance(client, Redis):
        return [None]
    await client.initialize()
    return list(client.get_primaries())


def _is_unavailable(error: Exception) -> bool:
    return isinstance(error, _UNAVAILABLE) or str(error).startswith(_UNAVAILABLE_CODES)


def _may_pass(error: Exception) -> bool:
    return _is_unavailable(error) and not isinstance(error, _LASTING)
