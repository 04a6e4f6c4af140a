"""What is known of a user: impressions put on record, shown, and forgotten with all the rest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from igd_server.recommend.background import Background
from igd_server.recommend.records import RecordLimits, RecordWriter
from igd_server.recommend.store_guard import StoreGuard
from igd_server.variants import Variant
from patience import PATIENCE_S
from redis_server import RedisServer
from virtual_time import run_in_virtual_time

from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from films import Run, Running

    from igd_core.store.base import RecordList

NOON_MS = 1_769_860_800_000
USER = "ann/é 1"
PATIENT_MS = int(PATIENCE_S * 1000)


async def known(running: Running, user_id: str) -> dict[str, Any]:
    answer = await running.client.post("/v1/users:known", json={"user_id": user_id})
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - behind the answers
            await asyncio.sleep(0.002)


async def click(running: Running, user_id: str, item_id: str, **more: Any) -> None:
    event = {"user_id": user_id, "item_id": item_id, "timestamp": NOON_MS} | more
    assert (await running.client.post("/v1/events", json={"events": [event]})).status_code == 200


async def test_an_answer_to_a_user_is_on_record_as_it_was_shown(run: Run) -> None:
    async with run(impressions=True, impressions_per_user=2, variants=(Variant(name="a"),)) as running:
        await click(running, USER, "1")
        answers = [(await running.recommend(user_id=USER, k=k)).json() for k in (2, 3)]
        answers.append((await running.recommend(user_id=USER, history=[], k=1)).json())
        await running.recommend(history=["1"], k=3)

        async def all_are_there() -> bool:
            shown = [each["request_id"] for each in (await known(running, USER))["impressions"]]
            return answers[-1]["request_id"] in shown

        await until(all_are_there)
        found = (await known(running, USER))["impressions"]
        text = (await running.client.get("/metrics")).text
    assert sorted(each["request_id"] for each in found) == sorted(each["request_id"] for each in answers[1:])
    by_request = {each["request_id"]: each for each in found}
    for answer in answers[1:]:
        record = by_request[answer["request_id"]]
        shown = [{"item_id": item["item_id"], "score": item["score"]} for item in answer["items"]]
        assert record["items"] == shown
        named = ("catalogue", "version", "variant", "source")
        assert [record[name] for name in named] == [answer[name] for name in named]
    assert 'igd_impressions_total{outcome="recorded"} 3.0' in text
    assert 'igd_impressions_total{outcome="lost"} 0.0' in text


async def test_nothing_is_on_record_unless_an_operator_says_so(run: Run) -> None:
    async with run() as running:
        await running.recommend(user_id=USER, k=2)
        await asyncio.sleep(0.05)
        found = await known(running, USER)
    assert {**found, "request_id": ""} == {
        "request_id": "",
        "user_id": USER,
        "events": [],
        "impressions": [],
        "answers": 0,
        "precomputed": 0,
    }


@pytest.mark.parametrize("kind", ["memory", "files", "redis"])
async def test_who_is_forgotten_is_nowhere_and_the_answer_says_how_much_there_was(
    run: Run, tmp_path: Path, kind: str
) -> None:
    if kind == "redis":
        with RedisServer(tmp_path) as server:
            await forgotten_everywhere(run, server.url)
            keys = server.cli("keys", "*").splitlines()
        assert not [key for key in keys if USER in key]
        assert [key for key in keys if key.startswith("igd:result:answer:")], "others' notes are still there"
        return
    await forgotten_everywhere(run, "memory://" if kind == "memory" else f"file://{tmp_path}/store")
    if kind == "files":
        everything = b"".join(each.read_bytes() for each in (tmp_path / "store").iterdir())
        assert b"bob" in everything


async def forgotten_everywhere(run: Run, store: str) -> None:
    variants = (Variant(name="a"), Variant(name="b", alpha=0.9))
    async with run(store=store, impressions=True, variants=variants) as running:
        answers = {}
        for user in (USER, "bob"):
            await click(running, user, "1")
            answers[user] = (await running.recommend(user_id=user, k=3)).json()
            said = {"kind": "view", "request_id": answers[user]["request_id"], "position": 1, "value": 0.5}
            await click(running, user, "2", timestamp=NOON_MS + 1, **said)

        async def is_written() -> bool:
            found = await known(running, USER)
            return bool(found["impressions"]) and found["answers"] >= 2

        await until(is_written)
        before = await known(running, USER)
        assert [(each["item_id"], each["kind"], each["history"]) for each in before["events"]] == [
            ("1", "click", True),
            ("2", "view", False),
        ]
        assert before["events"][1] | {"event_id": ""} == {
            "event_id": "",
            "item_id": "2",
            "timestamp": "2026-01-31T12:00:00.001Z",
            "kind": "view",
            "history": False,
            "value": 0.5,
            "position": 1,
            "request_id": answers[USER]["request_id"],
        }
        deleted = await running.client.delete(f"/v1/users/{quote(USER, safe='')}")
        assert deleted.status_code == 200
        assert deleted.json() == {
            "request_id": deleted.headers["x-request-id"],
            "forgotten": {"events": 2, "impressions": 1, "answers": 2, "precomputed": 0},
        }
        after = (await running.client.get(f"/v1/users/{quote(USER, safe='')}")).json()
        assert (after["events"], after["impressions"], after["answers"]) == ([], [], 0)
        again = (await running.client.post("/v1/users:forget", json={"user_id": USER})).json()
        assert again["forgotten"] == {"events": 0, "impressions": 0, "answers": 0, "precomputed": 0}
        # An event on the answer, whoever's, is no longer counted for it; one on another's answer is.
        for user, sender in ((USER, "carl"), ("bob", "bob")):
            shown = answers[user]["items"][0]["item_id"]
            await click(running, sender, shown, request_id=answers[user]["request_id"])
        name = answers["bob"]["variant"]

        async def bobs_is_counted() -> bool:
            return f'igd_attributed_events_total{{catalogue="films",variant="{name}"}} 1.0' in (
                (await running.client.get("/metrics")).text
            )

        await until(bobs_is_counted)
        assert len((await known(running, "bob"))["impressions"]) == 1


async def test_a_cached_answer_goes_with_the_user_it_was_made_for(run: Run) -> None:
    async with run() as running:
        await click(running, USER, "1")
        assert not (await running.recommend(user_id=USER, k=3)).json()["cached"]
        assert (await running.recommend(user_id=USER, k=3)).json()["cached"]
        body = {"user_id": USER}
        assert (await running.client.post("/v1/users:forget", json=body)).json()["forgotten"]["answers"] >= 1
        await click(running, USER, "1")
        assert not (await running.recommend(user_id=USER, k=3)).json()["cached"]


async def test_a_redis_that_hangs_keeps_no_answer_and_what_it_does_not_take_is_counted_and_logged(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path) as server:
        async with run(store=server.url, store_timeout_ms=50, impressions=True) as running:
            server.pause()
            # Each with a history of its own, so that the model is asked; without its answer in time, popularity would.
            for item_id in ("1", "2", "3"):
                answer = (await running.recommend(user_id=USER, history=[item_id], k=2, timeout_ms=PATIENT_MS)).json()
                assert (answer["source"], answer["cached"]) == ("model", False)

            async def three_are_lost() -> bool:
                text = (await running.client.get("/metrics")).text
                return 'igd_impressions_total{outcome="lost"} 3.0' in text

            await until(three_are_lost)
            server.resume()
    lines = [record for record in caplog.records if record.message == "impressions_lost"]
    assert len(lines) == 1, "said again and again"
    assert USER not in str(lines[0].fields)  # type: ignore[attr-defined]


@dataclass(slots=True)
class Listener:
    """Keeps what it hears."""

    written: int = 0
    causes: list[tuple[int, str]] = field(default_factory=list)

    def wrote(self, records: int) -> None:
        self.written += records

    def lost(self, records: int, cause: str) -> None:
        self.causes.append((records, cause))


class Slow(MemoryStore):
    """Takes as long as told."""

    delay_s = 0.0

    async def add_records(
        self, name: RecordList, records: Mapping[str, Sequence[bytes]], *, keep: int, ttl_s: float
    ) -> None:
        await asyncio.sleep(self.delay_s)
        await super().add_records(name, records, keep=keep, ttl_s=ttl_s)


def writer(store: MemoryStore, *, max_waiting: int = 100) -> tuple[RecordWriter, Listener, Background]:
    background, listener = Background(max_waiting=max_waiting), Listener()
    guard = StoreGuard(store, timeout_s=0.25)
    limits = RecordLimits(keep=10_000, ttl_s=60.0)
    return RecordWriter(guard, background, "impressions", limits, listener), listener, background


def test_a_store_that_hangs_holds_nobody_up_and_its_losses_are_told() -> None:
    async def scenario() -> None:
        store = Slow()
        store.delay_s = 3600.0
        made, listener, background = writer(store)
        started = asyncio.get_running_loop().time()
        for number in range(5000):
            made.add("u", lambda number=number: b"%d" % number)  # type: ignore[misc]
        assert asyncio.get_running_loop().time() == started, "an answer waited"
        await background.settle()
        assert asyncio.get_running_loop().time() - started < 1.0
        assert listener.written == 0
        assert sum(records for records, _ in listener.causes) == 5000, "lost, and not said"

    run_in_virtual_time(scenario())


def test_records_arrive_in_order_and_each_once() -> None:
    async def scenario() -> None:
        made, listener, background = writer(MemoryStore())
        for number in range(300):
            made.add(f"u-{number % 100}", lambda number=number: b"%d" % number)  # type: ignore[misc]
        await background.settle()
        assert [await made.of(f"u-{user}") for user in range(100)] == [
            [b"%d" % number for number in range(user, 300, 100)] for user in range(100)
        ]
        assert (listener.written, listener.causes) == (300, [])

    run_in_virtual_time(scenario())


def test_nothing_of_a_forgotten_user_is_written_afterwards() -> None:
    async def scenario() -> None:
        store = Slow()
        store.delay_s = 0.1
        made, _, background = writer(store)
        made.add("ann", lambda: b"being written")
        await asyncio.sleep(0.05)
        made.add("ann", lambda: b"waiting")
        made.add("bob", lambda: b"waiting")
        await made.forget("ann")
        await store.forget("ann")
        await background.settle()
        assert await store.records("impressions", "ann") == []
        assert await store.records("impressions", "bob") == [b"waiting"]

    run_in_virtual_time(scenario())
