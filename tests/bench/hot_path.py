"""What the server adds around decoding: `python tests/bench/hot_path.py --json`, on Linux, with two idle cores.

The real server, with API keys, a rate limit and Redis on loopback, has a core of its own; the load and Redis share
another. Decoding is replaced by a constant answer, so all that is left is the server: parsing, key, limit, stored
history, cache look-up, admission, encoding, what is written behind the answer, and the log line. Times are a client's,
from sending a request to its complete answer, so they hold loopback and the client as well.

- `cached`: one of 256 histories that were asked for before. `stored`: a user's history from Redis, cached after that.
  `computed`: a new history each time, so the cache is looked through in vain and filled.
- `p50_ms`, `p99_ms`: even arrivals at a rate far below capacity. `per_second`: 32 requests under way all the time;
  `cpu_ms` is what each of those took of the server's core, which others that use the machine do not change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from factories import EOS, make_catalogue, tokenizer_definition  # noqa: E402 - from tests/, by the line above
from redis_server import RedisServer, free_port, patiently  # noqa: E402

from igd_core.artifact import BuildOptions, build_artifact  # noqa: E402
from igd_core.bench.http_pool import Target  # noqa: E402
from igd_core.bench.load import LoadLimits, closed_loop, open_loop, planned_arrivals  # noqa: E402
from igd_core.catalogue.tokenization import TitleTokenizer  # noqa: E402
from igd_core.engines.fake import FakeEngine  # noqa: E402
from igd_core.search.query import Query, ResolvedQuery  # noqa: E402
from igd_core.search.recommender import Recommendation, Recommender  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from igd_core.artifact import Artifact
    from igd_core.bench.http_pool import Answer

SERVER_CORE, LOAD_CORE = 0, 1
NUM_ITEMS = 1000
HISTORIES = 256
HISTORY_LENGTH = 10
UNDER_WAY = 32


def serve(port: int, store: str, directory: Path) -> None:
    """The server's process."""
    import uvicorn
    from igd_server.app import Sources, create_apps
    from igd_server.catalogues.heap import settle_collector
    from igd_server.catalogues.opening import OpenedModel
    from igd_server.http.draining import DrainableApp
    from igd_server.http.protocol import http_protocol
    from igd_server.observe.logs import log_to_stderr
    from igd_server.settings import Settings

    os.sched_setaffinity(0, {SERVER_CORE})
    tokenizer = TitleTokenizer(tokenizer_definition(), EOS)
    artifact = build_artifact(make_catalogue(NUM_ITEMS), tokenizer, BuildOptions(name="bench"))
    make_decoding_free(artifact)
    settings = Settings(
        artifact=directory,
        model="fake",
        store=store,
        keys_file=directory / "keys.json",
        rate_limit="1000000/second",
        result_ttl_s=3600.0,
    )
    log_to_stderr(settings.log_level)
    apps = create_apps(
        settings,
        Sources(
            open_model=lambda _: OpenedModel(engine=FakeEngine(), token_texts=tokenizer.token_texts),
            read_artifact=lambda _: artifact,
        ),
    )
    apps.deployment.on_ready = settle_collector
    protocol = http_protocol(apps.metrics, head_timeout_s=settings.body_timeout_s)
    uvicorn.run(
        DrainableApp(apps.main),
        port=port,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )


def make_decoding_free(artifact: Artifact) -> None:
    """From now on every recommender in this process returns what it was once decoded for one history."""

    async def decoded() -> Recommendation:
        engine = FakeEngine()
        await engine.load(artifact)
        return await Recommender(artifact, engine).recommend(Query(history=[0], explain=False))  # type: ignore[list-item]

    constant = asyncio.run(decoded())

    async def answer(_: Recommender, __: ResolvedQuery, **_more: object) -> Recommendation:
        return constant

    Recommender.answer = answer  # type: ignore[method-assign,assignment]


@dataclass(slots=True)
class Asking:
    """Traffic of one scenario."""

    target: Target
    key: str
    scenario: str

    def request(self, number: int) -> bytes:
        """The ``number``-th request."""
        return self.target.message("POST", "/v1/recommendations", json.dumps(self.body(number)).encode(), key=self.key)

    def body(self, number: int) -> dict[str, Any]:
        """What it asks."""
        if self.scenario == "stored":
            return {"user_id": f"user-{number % HISTORIES}"}
        rng = np.random.default_rng(number % HISTORIES if self.scenario == "cached" else HISTORIES + number)
        return {"history": [f"item-{row}" for row in rng.choice(NUM_ITEMS, HISTORY_LENGTH, replace=False)]}

    def judge(self, _: int, answer: Answer) -> int:
        """1 for what was expected."""
        wanted = b'"cached":false' if self.scenario == "computed" else b'"cached":true'
        return int(answer.status == 200 and b'"source":"model"' in answer.body and wanted in answer.body)


async def measure(target: Target, key: str, seconds: float, server: psutil.Process) -> dict[str, Any]:
    """All scenarios."""
    limits = LoadLimits(timeout_s=10.0, max_connections=UNDER_WAY)
    await store_histories(target, key)
    result: dict[str, Any] = {}
    asked_before = 0
    for scenario in ("cached", "stored", "computed"):
        traffic = Asking(target, key, scenario)
        if scenario != "computed":
            await open_loop(target, traffic, np.arange(2 * HISTORIES) / 200.0, limits)
        else:
            traffic = Later(target, key, scenario, skip=asked_before)
        plan = planned_arrivals(100.0, seconds, even=True, rng=np.random.default_rng(0))
        calm = await open_loop(target, traffic, plan, limits)
        asked_before += len(plan)
        if scenario == "computed":
            traffic = Later(target, key, scenario, skip=asked_before)
        used_before = server.cpu_times()
        busy = await closed_loop(target, traffic, concurrency=UNDER_WAY, seconds=seconds, limits=limits)
        used = server.cpu_times()
        cpu_s = used.user + used.system - used_before.user - used_before.system
        latency_ms = 1000 * calm.service_s
        result[scenario] = {
            "p50_ms": round(float(np.percentile(latency_ms, 50)), 3),
            "p99_ms": round(float(np.percentile(latency_ms, 99)), 3),
            "per_second": round(len(busy.done) / float(busy.done.max())),
            "cpu_ms": round(1000 * cpu_s / len(busy.done), 3),
        }
        as_expected = float(np.concatenate([calm.verdict, busy.verdict]).mean())
        if as_expected < 1.0:
            sys.exit(
                f"{scenario}: {1 - as_expected:.2%} of the answers are not what was asked for; nothing is measured"
            )
    return result


@dataclass(slots=True)
class Later(Asking):
    """Begins after ``skip`` requests that others have made."""

    skip: int = 0

    def body(self, number: int) -> dict[str, Any]:
        """What it asks."""
        return Asking.body(self, number + self.skip)


async def store_histories(target: Target, key: str) -> None:
    """Give each user of `stored` a history."""
    import httpx

    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as client:
        for user in range(HISTORIES):
            items = Asking(target, key, "cached").body(user)["history"]
            events = [
                {"user_id": f"user-{user}", "item_id": item, "timestamp": 1_700_000_000_000 + at}
                for at, item in enumerate(reversed(items))
            ]
            answer = await client.post(f"http://{target.host}:{target.port}/v1/events", json={"events": events})
            answer.raise_for_status()


def run(seconds: float, directory: Path) -> dict[str, Any]:
    """Start Redis and the server, measure, stop them."""
    from igd_server.http.keys import KeyFile, make_key, write_keys

    key = make_key("bench", frozenset({"recommend", "events"}), None)
    write_keys(directory / "keys.json", KeyFile(keys=(key.stored,)))
    os.sched_setaffinity(0, {LOAD_CORE})
    target = Target.of(f"http://127.0.0.1:{free_port()}")
    with RedisServer(directory) as redis, (directory / "server.log").open("wb") as log:
        command = [sys.executable, str(HERE), "--serve", str(target.port), redis.url, str(directory)]
        server = subprocess.Popen(command, stderr=log)
        try:
            wait_until_ready(target, directory / "server.log")
            return asyncio.run(measure(target, key.token, seconds, psutil.Process(server.pid)))
        finally:
            server.terminate()
            server.wait()


def wait_until_ready(target: Target, log: Path) -> None:
    """Return when the server is."""
    import httpx

    for _ in patiently("the server", log.read_text):
        try:
            if httpx.get(f"http://{target.host}:{target.port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            continue


def lines(result: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"{'':10}{'p50 ms':>9}{'p99 ms':>9}{'per s':>8}{'CPU ms':>9}"
    for name, row in result.items():
        yield f"{name:10}{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['per_second']:8d}{row['cpu_ms']:9.3f}"


def main() -> None:
    """Measure, or be the server."""
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the six runs; default 5")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        result = run(args.seconds, Path(directory))
    print(json.dumps(result) if args.json else "\n".join(lines(result)))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
