"""Clients that ask a server all the time, and judge every answer; a whole `igd serve` with a real Redis behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import httpx
from publishing import edition, publish
from redis_server import RedisServer
from server_process import ServerProcess
from tcp_proxy import TcpProxy

from igd_core.store.base import StoreOptions
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.store.base import Store

Kind: TypeAlias = Literal["history", "user", "events"]

PATIENCE_S = 60.0
K = 4
OPTIONS = StoreOptions(timeout_s=1.0, bulk_timeout_s=1.0, chunk_bytes=512)
_ITEMS = 12
_USERS = 20
_ASKING, _WRITING = 4, 2
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request got; ``at``: when it was asked, on the monotonic clock."""

    kind: Kind
    at: float
    seconds: float
    status: int
    version: str = ""
    source: str = ""
    warnings: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class Load:
    """Clients and what they have got.

    Attributes:
        client: of the server.
        editions: number of the edition by version: whose items a version's are.
        name: begins the users' ids.
        answers: one for each request.
        recorded: event ids that were acknowledged, by user.
        asked: requests sent.
    """

    client: httpx.AsyncClient
    editions: dict[str, int]
    name: str
    answers: list[Answer] = field(default_factory=list)
    recorded: dict[str, set[str]] = field(default_factory=dict)
    asked: int = 0
    _seen: list[str] = field(default_factory=list)

    async def ask(self, kind: Kind) -> Answer:
        """One request; its one answer is whole, its own, and its items are those of the version that it names."""
        self.asked += 1
        number, user = self.asked, f"{self.name}-{self.asked % _USERS}"
        body: dict[str, Any] = {"k": K, "alpha": random.random(), "exclude_seen": False}  # never cached
        if kind == "events":
            newest = next(reversed(self.editions.values()))
            event = {"event_id": f"e{number}", "user_id": user, "timestamp": int(time.time() * 1000)}
            body = {"events": [{**event, "item_id": f"films-{newest}-{number % _ITEMS}"}]}
        elif kind == "user":
            body["user_id"] = user
        else:
            body["history"] = self._seen[:3]
        name = f"{self.name}.{number}"
        path = "/v1/events" if kind == "events" else "/v1/recommendations"
        at = time.monotonic()
        response = await self.client.post(path, json=body, headers={"X-Request-ID": name, "X-User-Id": user})
        seconds = time.monotonic() - at
        assert response.headers.get_list("X-Request-ID") == [name]
        told = response.json()
        assert told["request_id"] == name
        answer = Answer(kind=kind, at=at, seconds=seconds, status=response.status_code)
        if response.status_code != 200:
            assert response.headers["content-type"] == "application/problem+json", response.text
            assert told["status"] == response.status_code
            assert response.status_code in (429, 503, 504), response.text
        elif kind == "events":
            assert told["accepted"] + told["duplicates"] == 1
            self.recorded.setdefault(user, set()).add(f"e{number}")
        else:
            answer = self._recommended(answer, told)
        self.answers.append(answer)
        return answer

    def _recommended(self, answer: Answer, told: dict[str, Any]) -> Answer:
        item_ids = [item["item_id"] for item in told["items"]]
        own = f"films-{self.editions[told['version']]}-"
        assert len(set(item_ids)) == K
        assert all(item_id.startswith(own) for item_id in item_ids), (told["version"], item_ids)
        self._seen = item_ids
        return Answer(
            kind=answer.kind,
            at=answer.at,
            seconds=answer.seconds,
            status=200,
            version=told["version"],
            source=told["source"],
            warnings=frozenset(warning["code"] for warning in told.get("warnings", ())),
        )

    async def until(self, wanted: Callable[[Answer], bool], *, since: float | None = None) -> float:
        """Wait for an answer, to a request made from now on; returns seconds from ``since`` (or now) until it came."""
        position, start = len(self.answers), time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for answer in self.answers[position:]:
                    if answer.at >= start and wanted(answer):
                        return answer.at + answer.seconds - (start if since is None else since)
                position = len(self.answers)
                await asyncio.sleep(0.002)

    def between(self, start: float, end: float, kind: Kind) -> list[Answer]:
        """Answers of a kind to what was asked in that time."""
        return [answer for answer in self.answers if answer.kind == kind and start <= answer.at < end]

    async def assert_nothing_lost(self, store: Store) -> None:
        """Every event acknowledged until now is in its user's history; clients may go on writing meanwhile."""
        assert self.recorded
        acknowledged = {user: frozenset(event_ids) for user, event_ids in self.recorded.items()}
        for user, event_ids in acknowledged.items():
            kept = {event.event_id for event in await store.history(user)}
            assert event_ids <= kept, (user, event_ids - kept)


def say(line: str) -> None:
    """What a fault cost, for the report."""
    print(line)  # noqa: T201 - shown by ``pytest -s``


def ranked(answer: Answer) -> bool:
    """By the model."""
    return answer.kind == "history" and answer.source == "model"


def recorded(answer: Answer) -> bool:
    """An event that the store has."""
    return answer.kind == "events" and answer.status == 200


def refused(answer: Answer) -> bool:
    """An event that the store could not take."""
    return answer.kind == "events" and answer.status == 503


def by_user(answer: Answer) -> bool:
    """To a request without a history of its own."""
    return answer.kind == "user"


def remembered(answer: Answer) -> bool:
    """The stored history was read."""
    return answer.kind == "user" and answer.status == 200 and "history-unavailable" not in answer.warnings


@contextlib.asynccontextmanager
async def under_load(client: httpx.AsyncClient, editions: dict[str, int], name: str) -> AsyncIterator[Load]:
    """Clients ask and write from the beginning of the block to its end; then every request has had its answer."""
    load = Load(client=client, editions=editions, name=name)
    stop = asyncio.Event()

    async def go_on(*kinds: Kind) -> None:
        while not stop.is_set():
            for kind in kinds:
                await load.ask(kind)
                await asyncio.sleep(_PAUSE_S)

    async with asyncio.TaskGroup() as clients:
        for _ in range(_ASKING):
            clients.create_task(go_on("history", "history", "user"))
        for _ in range(_WRITING):
            clients.create_task(go_on("events"))
        try:
            await load.until(ranked)
            await load.until(remembered)
            yield load
        finally:
            stop.set()
    assert load.asked == len(load.answers)


@dataclass(slots=True, kw_only=True)
class Stack:
    """A server, a proxy and Redis; ``editions`` by version, of all that was published."""

    root: Path
    redis: RedisServer
    proxy: TcpProxy
    server: ServerProcess
    url: str
    tokenizer: TitleTokenizer
    editions: dict[str, int]

    def next_edition(self) -> Any:
        """Not published, and unlike all before."""
        artifact = edition(self.tokenizer, len(self.editions))
        self.editions[artifact.version] = len(self.editions)
        return artifact

    async def publish(self, store: Store) -> str:
        """A new edition; returns its version."""
        return await publish(store, self.next_edition(), self.root)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Redis itself, as a publisher has it."""
        opened = open_store(self.redis.url, options=OPTIONS)
        try:
            yield opened
        finally:
            await opened.close()

    @contextlib.asynccontextmanager
    async def load(self, name: str) -> AsyncIterator[Load]:
        """See `under_load`."""
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as client,
            under_load(client, self.editions, name) as load,
        ):
            yield load

    async def catalogue(self) -> dict[str, Any]:
        """What `/v1/catalogues` says."""
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as client:
            found: dict[str, Any] = (await client.get("/v1/catalogues")).json()["catalogues"][0]
            return found

    async def until_catalogue(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for `/v1/catalogues` to say something."""
        async with asyncio.timeout(PATIENCE_S):
            while not wanted(found := await self.catalogue()):  # noqa: ASYNC110 - as an operator looks
                await asyncio.sleep(0.02)
            return found


@contextlib.contextmanager
def running_stack(
    root: Path,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint: Checkpoint,
    clock: Path | None = None,
    **variables: str,
) -> Iterator[Stack]:
    """Redis that keeps everything, the proxy, and `igd serve` with a tiny Llama on the first edition.

    ``clock`` and ``variables`` are the server's, see `ServerProcess.start`.
    """
    model = root / "tiny-llama"
    checkpoint.model.save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 1024  # editions of two digits spell longer prompts than 256 tokens
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    data = root / "redis"
    data.mkdir()
    with RedisServer(data, appendonly="yes", appendfsync="always") as redis, TcpProxy(redis.port) as proxy:
        first = edition(tokenizer, 0)

        async def publish_first() -> None:
            store = open_store(redis.url, options=OPTIONS)
            await publish(store, first, root)
            await store.close()

        asyncio.run(publish_first())
        server = ServerProcess.start(
            *("--catalogues", "films", "--store", f"redis://127.0.0.1:{proxy.port}/0", "--model", str(model)),
            IGD_CACHE_DIR=str(root / "cache"),
            IGD_POLL_S="0.2",
            clock=clock,
            program=None,
            **variables,
        )
        try:
            server.event("ready")
            yield Stack(
                root=root,
                redis=redis,
                proxy=proxy,
                server=server,
                url=server.event("listening")["url"],
                tokenizer=tokenizer,
                editions={first.version: 0},
            )
        finally:
            server.stop()
    server.assert_ended_well()
