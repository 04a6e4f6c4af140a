"""What a catalogue, histories and answers take of Redis's memory: `python tests/bench/store.py --help`.

By Redis's own count before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from igd_core.artifact import load_artifact
from igd_core.errors import IGDError, InputError
from igd_core.store.base import StoreOptions
from igd_core.store.events import Event
from igd_core.store.impressions import Impression
from igd_core.store.redis import RedisStore
from igd_core.store.redis.address import RedisAddress
from igd_core.store.redis.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_MADE = 1000
_EVENTS = (10, 50, 200, 500)
_ANSWER_BYTES = (500, 2000)
_OPTIONS = StoreOptions(prefix="igd", timeout_s=30.0)


async def bench_memory(url: str, artifact: Path) -> list[dict[str, Any]]:
    """Fill an empty Redis step by step; what was written stays there.

    Returns:
        One result a step: ``of`` what, ``bytes`` of one, ``mib_per_million``.

    Raises:
        InputError: Redis holds something already.
        StoreUnavailable: it cannot be used.
    """
    redis = _Redis(RedisAddress.parse(url))
    if await redis.ask("DBSIZE"):
        raise InputError(f"store: {redis.address.label} holds keys already; an empty Redis is needed")
    manifest = load_artifact(artifact).manifest
    grown = await redis.growth(lambda store: store.add(artifact, catalogue="bench"))
    items, stored = manifest.counts.items, sum(record.bytes for record in manifest.parts.values())
    share = {"items": items, "version": manifest.version, "overhead": round(grown / stored - 1, 4)}
    results = [_result("item of an artifact", grown / items) | share]
    for count in _EVENTS:
        grown = await redis.growth(partial(_write_histories, count=count))
        results.append(_result(f"user with {count} events", grown / _MADE))
    results.append(_result("user with 10 views", await redis.growth(_write_views) / _MADE))
    results.append(_result("answer on record", await redis.growth(_write_impressions) / _MADE / 10))
    for size in _ANSWER_BYTES:
        grown = await redis.growth(partial(_write_answers, size=size))
        results.append(_result(f"answer of {size} bytes", grown / _MADE))
    return results


async def _write_histories(store: RedisStore, *, count: int) -> None:
    """So many events for each user: ids of 32 characters, as the server makes them, and of 8 for items."""
    rng = random.Random(count)
    for user in range(_MADE):
        events = [
            Event(
                event_id=f"{rng.getrandbits(128):032x}",
                item_id=f"{rng.randrange(10**8):08d}",
                timestamp_ms=1_700_000_000_000 + rng.randrange(10**10),
            )
            for _ in range(count)
        ]
        await store.append(f"user-{count:03d}-{user:08d}", events)


async def _write_views(store: RedisStore) -> None:
    """Ten views for each user, which say the answer that showed the item and the rank."""
    rng = random.Random(1)
    for user in range(_MADE):
        views = [
            Event(
                event_id=f"{rng.getrandbits(128):032x}",
                item_id=f"{rng.randrange(10**8):08d}",
                timestamp_ms=1_700_000_000_000 + rng.randrange(10**10),
                kind="view",
                position=rank,
                request_id=f"{rng.getrandbits(128):032x}",
            )
            for rank in range(1, 11)
        ]
        await store.append_others(f"user-{user:08d}", views)


async def _write_impressions(store: RedisStore) -> None:
    """Ten answers for each user, each of ten items with ids of 8 characters."""
    rng = random.Random(2)
    for user in range(_MADE):
        answers = [
            Impression(
                request_id=f"{rng.getrandbits(128):032x}",
                timestamp_ms=1_700_000_000_000 + rng.randrange(10**10),
                catalogue="films",
                version="0123456789abcdef",
                variant="control",
                source="model",
                item_ids=tuple(f"{rng.randrange(10**8):08d}" for _ in range(10)),
                scores=tuple(-10 * rng.random() for _ in range(10)),
            ).packed()
            for _ in range(10)
        ]
        await store.add_records("impressions", {f"user-{user:08d}": answers}, keep=100, ttl_s=86_400)


async def _write_answers(store: RedisStore, *, size: int) -> None:
    """Answers of so many bytes, under keys of 64 characters."""
    rng = random.Random(size)
    for _ in range(_MADE):
        await store.put(f"{rng.getrandbits(256):064x}", rng.randbytes(size), 86_400)


@dataclass(frozen=True, slots=True)
class _Redis:
    address: RedisAddress

    async def ask(self, *command: str) -> Any:
        link = Link(self.address, timeout_s=_OPTIONS.timeout_s)
        try:
            return await link.call(*command)
        finally:
            await link.close()

    async def growth(self, write: Callable[[RedisStore], Awaitable[object]]) -> int:
        """By how many bytes Redis grows; its buffers for the writer's connections are gone when it is asked."""
        before = await self._used()
        store = RedisStore(self.address, _OPTIONS)
        try:
            await write(store)
        finally:
            await store.close()
        return await self._used() - before

    async def _used(self) -> int:
        return int((await self.ask("INFO", "memory"))["used_memory"])


def _result(of: str, size: float) -> dict[str, Any]:
    return {"of": of, "bytes": round(size, 1), "mib_per_million": round(size * 1e6 / 2**20)}


def main() -> None:
    """Fill the store and print what each part took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--store", required=True, metavar="URL", help="an empty Redis, which is filled: redis://HOST:PORT"
    )
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR", help="a catalogue to publish there")
    parser.add_argument("--json", action="store_true", help="one object a line for each measurement")
    args = parser.parse_args()
    try:
        results = asyncio.run(bench_memory(args.store, args.artifact))
    except IGDError as error:
        parser.error(str(error))
    for result in results:
        text = f"{result['of']:<24}{result['bytes']:>12,.0f} bytes{result['mib_per_million']:>12,} MiB a million"
        sys.stdout.write((json.dumps(result) if args.json else text) + "\n")


if __name__ == "__main__":
    main()
