"""What one request costs Redis: `python tests/bench/store_traffic.py`; needs no idle machine.

The app and a real Redis; decoding takes no time. For each kind of request: commands, the microseconds that Redis spent
on them by its own clock (`INFO commandstats`), and bytes each way (`INFO stats`), all divided by the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from factories import EOS, make_catalogue, tokenizer_definition  # noqa: E402 - from tests/, by the line above
from redis_server import RedisServer  # noqa: E402

from igd_core.artifact import BuildOptions, build_artifact  # noqa: E402
from igd_core.catalogue.tokenization import TitleTokenizer  # noqa: E402
from igd_core.engines.fake import FakeEngine  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NUM_ITEMS = 1000
EVENTS = 10
"""Of each user's history."""
SETTLE_S = 0.3
"""For what is written behind the answers."""
_OWN = ("info", "ping", "client", "hello")


@contextlib.asynccontextmanager
async def client_of(store: str, directory: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started app."""
    from igd_server.app import Sources, create_apps
    from igd_server.catalogues.opening import OpenedModel
    from igd_server.settings import Settings

    tokenizer = TitleTokenizer(tokenizer_definition(), EOS)
    artifact = build_artifact(make_catalogue(NUM_ITEMS), tokenizer, BuildOptions(name="bench"))
    sources = Sources(
        open_model=lambda _: OpenedModel(engine=FakeEngine(), token_texts=tokenizer.token_texts),
        read_artifact=lambda _: artifact,
    )
    apps = create_apps(Settings(artifact=directory, model="fake", store=store, **settings), sources)
    transport = httpx.ASGITransport(app=apps.main)
    async with (
        apps.main.router.lifespan_context(apps.main),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        while apps.deployment.why_not_ready() is not None:  # noqa: ASYNC110 - it tells nobody here
            await asyncio.sleep(0.01)
        yield client


def spent(redis: RedisServer) -> Counter[str]:
    """Calls by command, microseconds, and bytes so far."""
    found: Counter[str] = Counter()
    for line in redis.cli("info", "commandstats").splitlines():
        if line.startswith("cmdstat_"):
            name, told = line.strip().removeprefix("cmdstat_").split(":")
            if name.split("|")[0] not in _OWN:
                facts = dict(each.split("=") for each in told.split(","))
                found[name] += int(facts["calls"])
                found["us"] += int(facts["usec"])
    for line in redis.cli("info", "stats").splitlines():
        name, _, value = line.strip().partition(":")
        if name in ("total_net_input_bytes", "total_net_output_bytes"):
            found[name] = int(value)
    return found


def events(users: range, moment: int) -> list[dict[str, Any]]:
    """``EVENTS`` of each user."""
    return [
        {"user_id": f"user-{user}", "item_id": f"item-{(user * 7 + at) % NUM_ITEMS}", "timestamp": moment + at}
        for user in users
        for at in range(EVENTS)
    ]


async def measure(requests: int) -> dict[str, dict[str, Any]]:
    """Each kind of request by name."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch, RedisServer(Path(scratch)) as redis:
        moment = int(time.time() * 1000) - 1_000_000

        async def of(name: str, client: httpx.AsyncClient, path: str, bodies: list[dict[str, Any]]) -> None:
            await asyncio.sleep(SETTLE_S)
            before, idle = spent(redis), spent(redis)
            for body in bodies:
                (await client.post(path, json=body)).raise_for_status()
            await asyncio.sleep(SETTLE_S)
            now = spent(redis)
            asked = {key: (now[key] - 2 * idle[key] + before[key]) / len(bodies) for key in now}
            into, out = asked.pop("total_net_input_bytes"), asked.pop("total_net_output_bytes")
            microseconds = asked.pop("us")
            found[name] = {
                "commands": round(sum(asked.values()), 2),
                "redis_us": round(microseconds, 1),
                "bytes_to_redis": round(into),
                "bytes_from_redis": round(out),
                "calls": {key: round(calls, 2) for key, calls in sorted(asked.items()) if calls > 0},
            }

        users = [{"user_id": f"user-{user}", "k": 10} for user in range(requests)]
        async with client_of(redis.url, Path(scratch)) as client:
            singles = [{"events": [event]} for event in events(range(requests // EVENTS), moment)]
            await of("an event", client, "/v1/events", singles)
            for start in range(0, requests, 10):
                body = {"events": events(range(start, start + 10), moment)}
                (await client.post("/v1/events", json=body)).raise_for_status()
            histories = [
                {"history": [f"item-{(number * 3 + at * 11) % NUM_ITEMS}" for at in range(EVENTS)]}
                for number in range(requests)
            ]
            await of("history in the request, computed", client, "/v1/recommendations", histories)
            await of("stored history, computed", client, "/v1/recommendations", users)
            await of("stored history, answer kept by this process", client, "/v1/recommendations", users)
        async with client_of(redis.url, Path(scratch)) as client:
            await of("stored history, answer kept in Redis", client, "/v1/recommendations", users)
        limited = {"rate_limit": "1000000/second", "impressions": True, "result_ttl_s": 0}
        async with client_of(redis.url, Path(scratch), **limited) as client:
            await of("stored history, computed, impressions and a rate limit", client, "/v1/recommendations", users)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    print(json.dumps(asyncio.run(measure(parser.parse_args().requests)), indent=1))  # noqa: T201 - what it is for
    return 0


if __name__ == "__main__":
    sys.exit(main())
