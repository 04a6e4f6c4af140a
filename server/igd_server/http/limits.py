"""Rate limits: requests of a caller in a time, by the `limits` library's sliding windows, shared in Redis."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

from limits import parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from igd_core.errors import InputError, StoreError
from igd_core.store.redis.address import RedisAddress
from igd_core.store.redis.link import Link, Script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from limits import RateLimitItem
    from limits.aio.storage.redis.redispy import RedispyBridge

    from igd_server.observe.metrics import Metrics
    from igd_server.settings import Settings

_ASK_AGAIN_S = 1.0
_MAX_REMEMBERED = 10_000
_MOMENT_S = 0.001  # wait a moment longer than calculated; and Redis counts milliseconds


class SharedCounters(RedisStorage):
    """The library's counters in Redis, over our own connections: with TLS, Sentinel and Cluster.

    Raises StoreError if Redis does not answer in time. A hit whose answer is lost may count twice.
    """

    def __init__(self, url: str, *, prefix: str, timeout_s: float) -> None:
        """Connects to nothing yet. Keys are ``PREFIX:limits:{...}``.

        Raises:
            InputError: the URL cannot be used.
        """
        self._link = Link(RedisAddress.parse(url), timeout_s=timeout_s)
        super().__init__("redis://", implementation="redispy", key_prefix=f"{prefix}:limits")

    def configure_bridge(self) -> None:
        """Called where the library would connect."""
        client = cast("Any", _ScriptsOnly(self._link))
        cast("RedispyBridge", self.bridge).connection_getter = lambda _: client

    async def close(self) -> None:
        """Disconnect."""
        await self._link.close()


class _ScriptsOnly:
    """The part of a Redis client that the library needs for its windows."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def register_script(self, text: bytes) -> Callable[[Sequence[str], Sequence[float]], Awaitable[Any]]:
        script = Script(text=text.decode())

        async def run(keys: Sequence[str], arguments: Sequence[float]) -> Any:  # noqa: ANN401 - what the script returns
            return await self._link.run(script, keys, arguments)

        return run


class OwnCounters(MemoryStorage):
    """The library's counters in memory, without its pass over all of them at each hit (1 ms for 10,000 callers)."""

    def __init__(self) -> None:
        super().__init__()
        self._walk_at = 1024

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a counter that expires ``expiry`` seconds after its first hit."""
        if len(self.storage) >= self._walk_at:
            for each in list(self.storage):
                await self.get(each)  # deletes it if it has expired
            self._walk_at = 2 * max(512, len(self.storage))
        if not await self.get(key):
            self.expirations[key] = time.time() + expiry
        self.storage[key] += amount
        return self.storage[key]


class RateLimiter:
    """At most so many requests of one caller in any window of time.

    A sliding window of two counters a caller: what was counted in the window before weighs less and less. Unlike a
    fixed window it lets no double burst through at its edge, unlike a moving one its memory does not grow with the
    limit; and in Redis its clock is Redis's own, so that servers whose clocks differ agree.

    With ``shared``, servers count together. When that cannot be reached, each counts alone (a caller may then make the
    limit's requests at each of them) and asks again a second later: no request fails for it, and of those after the
    first ones only one a second waits for it.

    Who is refused is refused from memory until there is room again: a flood of requests costs Redis nothing.
    """

    def __init__(self, rate: str, *, shared: SharedCounters | None = None, metrics: Metrics | None = None) -> None:
        """``rate`` as in the settings: ``600/minute``, ``10/5 second``.

        Raises:
            InputError: not of this form, or it allows nothing.
        """
        self._limit = _parsed(rate)
        self._window_s = self._limit.get_expiry()
        self._own = OwnCounters()
        self._shared = shared
        self._metrics = metrics
        self._shared_fails = False
        self._ask_again_at = 0.0  # time.monotonic(), as the values below
        self._full_until: OrderedDict[str, float] = OrderedDict()

    async def check(self, caller: str, requests: int = 1) -> int | None:
        """Count ``requests`` more of a caller.

        Refused requests do not count. More than the limit at once count as the limit.

        Returns:
            None if they may be served, otherwise whole seconds after which they may, if no others come first.
        """
        full_for_s = self._full_until.get(caller, 0.0) - time.monotonic()
        if full_for_s > 0:
            return math.ceil(full_for_s)
        requests = min(requests, self._limit.amount)
        refused_s = await self._count(caller, requests)
        if refused_s is None:
            self._full_until.pop(caller, None)
            return None
        if requests == 1:
            self._remember(caller, time.monotonic() + refused_s)
        return max(1, math.ceil(refused_s))

    async def weigh(self, caller: str, requests: int) -> int | None:
        """Count a request as ``requests``, after `check` has counted it as one; a refused one does not count at all.

        Returns:
            As `check`.
        """
        more = min(requests, self._limit.amount) - 1
        retry_after_s = await self.check(caller, more) if more > 0 else None
        if retry_after_s is not None:
            await self._count(caller, -1)
            self._full_until.pop(caller, None)  # it was full with this one
        return retry_after_s

    async def close(self) -> None:
        """Disconnect."""
        if self._shared is not None:
            await self._shared.close()

    async def _count(self, caller: str, requests: int) -> float | None:
        """As `check`, in unrounded seconds; a negative number gives back."""
        shared = self._shared
        if shared is None:
            return await self._count_in(self._own, caller, requests)
        now = time.monotonic()
        if now >= self._ask_again_at:
            if self._shared_fails:
                self._ask_again_at = now + _ASK_AGAIN_S  # this call tries; others need not wait for it
            try:
                refused_s = await self._count_in(shared, caller, requests)
            except StoreError:
                self._shared_fails = True
                self._ask_again_at = time.monotonic() + _ASK_AGAIN_S
            else:
                self._shared_fails = False
                self._ask_again_at = 0.0
                return refused_s
        if self._metrics is not None:
            self._metrics.observe_limiter_fallback()
        return await self._count_in(self._own, caller, requests)

    async def _count_in(self, counters: SharedCounters | OwnCounters, caller: str, requests: int) -> float | None:
        if await SlidingWindowCounterRateLimiter(counters).hit(self._limit, caller, cost=requests):
            return None
        window = await counters.get_sliding_window(self._limit.key_for(caller), self._window_s)
        return self._seconds_until_room(*window, requests)

    def _seconds_until_room(
        self, previous: int, previous_ttl_s: float, current: int, current_ttl_s: float, requests: int
    ) -> float:
        """Seconds until ``floor(previous * its ttl / window) + current + requests`` is within the limit again.

        The arguments are as the library gives them: a window's count weighs until its time to live is over, the
        current one's is a whole window longer than the window.
        """
        room = self._limit.amount - requests + 1
        if current < room:
            weighs_little_at_s = (room - current) * self._window_s / max(previous, 1)
            room_in_s = previous_ttl_s - weighs_little_at_s
        else:  # not before the current window is the previous one
            room_in_s = current_ttl_s - room * self._window_s / current
        return max(0.0, room_in_s) + _MOMENT_S

    def _remember(self, caller: str, full_until: float) -> None:
        self._full_until[caller] = full_until
        self._full_until.move_to_end(caller)
        if len(self._full_until) > _MAX_REMEMBERED:
            self._full_until.popitem(last=False)


def _parsed(rate: str) -> RateLimitItem:
    try:
        limit = parse(rate)
    except ValueError:
        raise InputError(f"rate_limit: {rate!r} is no rate; 600/minute is one") from None
    if limit.amount < 1:
        raise InputError(f"rate_limit: {rate!r} would refuse everything")
    return limit


def open_limiter(settings: Settings, metrics: Metrics) -> RateLimiter | None:
    """The limiter of the settings, with counts in the store if it is Redis; None if there is no limit.

    Raises:
        InputError: the rate or the URL cannot be used.
    """
    if settings.rate_limit is None:
        return None
    shared = None
    if settings.store.startswith("redis"):
        timeout_s = settings.store_timeout_ms / 1000
        shared = SharedCounters(settings.store, prefix=settings.store_prefix, timeout_s=timeout_s)
    return RateLimiter(settings.rate_limit, shared=shared, metrics=metrics)
