"""Events that name the answer which showed the item."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from igd_server.recommend.attribution import Attribution, marks_of
from igd_server.recommend.background import Background
from igd_server.recommend.store_guard import StoreGuard
from igd_server.variants import Variant
from patience import PATIENCE_S

from igd_core.errors import StoreUnavailable
from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from films import Run, Running

ONE = marks_of(["1"])
VARIANTS = (Variant(name="a"), Variant(name="b", alpha=0.9))


class Counts:
    """What would be metrics."""

    def __init__(self) -> None:
        self.attributed = Counter[tuple[str, str]]()
        self.followed = Counter[tuple[str, str]]()
        self.dropped = 0

    def observe_attributed(self, *, variant: str, catalogue: str) -> None:
        self.attributed[variant, catalogue] += 1

    def observe_followed(self, *, variant: str, catalogue: str) -> None:
        self.followed[variant, catalogue] += 1

    def observe_attribution_dropped(self) -> None:
        self.dropped += 1


def attribution(
    counts: Counts, *, store: MemoryStore | None = None, max_waiting: int = 1000, variants: bool = True
) -> tuple[Attribution, Background]:
    background = Background(max_waiting=max_waiting)
    guard = StoreGuard(store or MemoryStore(), timeout_s=0.25)
    return Attribution(guard, background, ttl_s=60.0, metrics=counts, variants=variants), background


async def taken(running: Running, request_id: str, *item_ids: str, user_id: str = "u") -> None:
    events = [
        {"user_id": user_id, "item_id": item_id, "timestamp": 1_700_000_000 + at, "request_id": request_id}
        for at, item_id in enumerate(item_ids)
    ]
    assert (await running.client.post("/v1/events", json={"events": events})).status_code == 200


async def settled(running: Running, line: str) -> str:
    """The metrics, once they hold ``line``."""
    async with asyncio.timeout(PATIENCE_S):
        while line not in (text := (await running.client.get("/metrics")).text):  # noqa: ASYNC110 - as a scraper
            await asyncio.sleep(0.001)
    return text


async def test_an_event_on_a_shown_item_counts_for_the_answers_variant_once(run: Run) -> None:
    async with run(variants=VARIANTS) as running:

        async def ask(**body: Any) -> dict[str, Any]:
            answer: dict[str, Any] = (await running.recommend(history=["1"], k=4, **body)).json()
            return answer

        one, other = await ask(variant="a"), await ask(variant="b")
        cached = await ask(variant="b")
        assert cached["cached"]
        shown = [item["item_id"] for item in one["items"]]
        await taken(running, one["request_id"], shown[0], shown[1], "1", "ghost", shown[0])
        await taken(running, one["request_id"], shown[0], shown[1])
        await taken(running, other["request_id"], other["items"][2]["item_id"])
        await taken(running, cached["request_id"], other["items"][2]["item_id"])
        await taken(running, "never-asked", shown[0])
        await taken(running, one["request_id"], shown[2])
        text = await settled(running, 'igd_attributed_events_total{catalogue="films",variant="a"} 3.0')
        assert 'igd_attributed_events_total{catalogue="films",variant="b"} 2.0' in text
        assert 'igd_followed_answers_total{catalogue="films",variant="a"} 1.0' in text
        assert 'igd_followed_answers_total{catalogue="films",variant="b"} 2.0' in text


async def test_an_answer_to_a_user_counts_for_that_user_alone_though_others_have_its_request_id(run: Run) -> None:
    async with run(variants=VARIANTS) as running:
        headers = {"X-Request-ID": "page-1"}
        for user_id, variant, history in (("ann", "a", ["1"]), ("bob", "b", ["2"])):
            body = {"user_id": user_id, "variant": variant, "history": history, "allow": ["3", "4", "5"]}
            answer = await running.client.post("/v1/recommendations", json=body, headers=headers)
            assert answer.json()["request_id"] == "page-1"
        await taken(running, "page-1", "3", "4", "5", user_id="carl")
        await taken(running, "page-1", "3", "4", user_id="ann")
        await taken(running, "page-1", "5", user_id="bob")
        text = await settled(running, 'igd_attributed_events_total{catalogue="films",variant="b"} 1.0')
    assert 'igd_attributed_events_total{catalogue="films",variant="a"} 2.0' in text
    assert 'igd_followed_answers_total{catalogue="films",variant="a"} 1.0' in text


async def test_an_item_counts_for_no_variant_that_did_not_show_it() -> None:
    counts = Counts()
    made, background = attribution(counts)
    made.remember("r", variant="a", catalogue="c", marks=marks_of(["1", "2"]), user_id="u")
    made.remember("r", variant="b", catalogue="c", marks=marks_of(["2", "3"]), user_id="u")
    made.attribute("r", ["1", "2"], user_id="u")
    await background.settle()
    assert counts.attributed == {("b", "c"): 1}, "of one user's answers under one id the later is known"


async def test_a_note_of_a_release_that_noted_no_users_still_counts() -> None:
    counts, store = Counts(), MemoryStore()
    made, background = attribution(counts, store=store)
    made.remember("r", variant="a", catalogue="c", marks=ONE)
    await background.settle()
    assert await store.get("answer:r") is not None
    made.attribute("r", ["1"], user_id="u")
    await background.settle()
    assert counts.attributed == {("a", "c"): 1}


async def test_an_entry_of_a_batch_and_a_duplicate_of_an_item_count_too(run: Run) -> None:
    async with run() as running:
        body = {"requests": [{"history": ["1"], "allow": ["16", "17"]}, {"k": 2}]}
        results = (await running.client.post("/v1/recommendations:batch", json=body)).json()["results"]
        answers = [result["recommendation"] for result in results]
        assert answers[0]["items"][0]["duplicates"] == ["17"]
        await taken(running, answers[0]["request_id"], "17")
        await taken(running, answers[1]["request_id"], "2")
        await settled(running, 'igd_attributed_events_total{catalogue="films",variant=""} 2.0')


@given(
    shown=st.sets(st.sampled_from("abcdef")),
    posts=st.lists(st.lists(st.sampled_from("abcdefxy"), min_size=1, max_size=4), max_size=6),
)
async def test_each_shown_item_counts_once_however_often_it_is_taken(shown: set[str], posts: list[list[str]]) -> None:
    counts = Counts()
    made, background = attribution(counts)
    made.remember("r", variant="v", catalogue="c", marks=marks_of(sorted(shown)))
    for post in posts:
        made.attribute("r", post, user_id="u")
    await background.settle()
    taken_of_it = shown & {item for post in posts for item in post}
    assert counts.attributed["v", "c"] == len(taken_of_it)
    assert counts.followed["v", "c"] == (1 if taken_of_it else 0)
    assert counts.dropped == 0


async def test_nobody_waits_for_it_and_what_is_too_much_is_dropped() -> None:
    class Hanging(MemoryStore):
        async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
            await asyncio.sleep(3600)
            await super().put_all(values, ttl_s)

    counts = Counts()
    made, background = attribution(counts, store=Hanging())
    for number in range(1010):
        made.remember(f"r-{number}", variant="", catalogue="c", marks=ONE)
    assert counts.dropped == 10
    async with asyncio.timeout(PATIENCE_S):
        await background.settle()
    assert counts.dropped == 1010, "what the store did not take is said to be lost"


async def test_too_much_to_do_behind_answers_is_dropped_and_counted() -> None:
    counts = Counts()
    made, background = attribution(counts, max_waiting=2)
    background.offer("other", lambda: asyncio.sleep(0))
    background.offer("other", lambda: asyncio.sleep(0))
    made.remember("r", variant="", catalogue="c", marks=ONE)
    made.attribute("r", ["1"], user_id="u")
    assert counts.dropped == 2
    await background.settle()
    made.remember("s", variant="", catalogue="c", marks=ONE)
    made.attribute("s", ["1"], user_id="u")
    await background.settle()
    assert (counts.attributed, counts.dropped) == ({("", "c"): 1}, 2)


async def test_answers_of_the_same_moment_are_written_in_one_call() -> None:
    class Counted(MemoryStore):
        calls = 0

        async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
            self.calls += 1
            await super().put_all(values, ttl_s)

    counts, store = Counts(), Counted()
    made, background = attribution(counts, store=store)
    for number in range(100):
        made.remember(f"r-{number}", variant=f"v-{number % 3}", catalogue="c", marks=ONE)
    for number in range(100):
        made.attribute(f"r-{number}", ["1"], user_id="u")
    await background.settle()
    assert store.calls == 1
    assert counts.attributed == {("v-0", "c"): 34, ("v-1", "c"): 33, ("v-2", "c"): 33}


async def test_what_the_store_does_not_take_is_not_counted() -> None:
    class ReadOnly(MemoryStore):
        frozen = False

        async def put(self, key: str, value: bytes, ttl_s: float) -> None:
            if self.frozen:
                raise StoreUnavailable("READONLY")
            await super().put(key, value, ttl_s)

    counts, store = Counts(), ReadOnly()
    made, background = attribution(counts, store=store)
    made.remember("r", variant="", catalogue="c", marks=ONE)
    await background.settle()
    store.frozen = True
    made.attribute("r", ["1"], user_id="u")
    await background.settle()
    assert not counts.attributed
    store.frozen = False
    made.attribute("r", ["1"], user_id="u")
    made.attribute("r", ["1"], user_id="u")
    await background.settle()
    assert counts.attributed == {("", "c"): 1}


class Written(MemoryStore):
    """Remembers which notes came, and their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def put_all(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        self.sizes += map(len, values.values())
        await super().put_all(values, ttl_s)


async def test_without_variants_nothing_is_written_until_an_event_names_an_answer() -> None:
    counts, store = Counts(), Written()
    made, background = attribution(counts, store=store, variants=False)
    for number in range(5000):
        made.remember(f"r-{number}", variant="", catalogue="c", marks=marks_of(["1", "2"]))
    await background.settle()
    assert store.sizes == []
    assert len(made._recent) == 4096, "bounded"
    made.attribute("r-1000", ["2", "3"], user_id="u")
    made.remember("next", variant="", catalogue="c", marks=marks_of(["1", "2"]))
    made.attribute("next", ["1"], user_id="u")
    await background.settle()
    assert counts.attributed == {("", "c"): 2}
    assert not made._recent
    assert 0 < len(store.sizes) <= 501


async def test_when_events_name_answers_no_longer_notes_stay_in_the_process() -> None:
    counts, store = Counts(), Written()
    guard, background = StoreGuard(store, timeout_s=0.25), Background(max_waiting=100)
    made = Attribution(guard, background, ttl_s=0.02, metrics=counts)
    made.attribute("nobody", ["1"], user_id="u")
    await background.settle()
    await asyncio.sleep(0.05)
    made.remember("r", variant="", catalogue="c", marks=ONE)
    await background.settle()
    assert (store.sizes, len(made._recent)) == ([], 1)


async def test_a_note_is_small_and_an_answer_without_items_has_none() -> None:
    counts, store = Counts(), Written()
    made, background = attribution(counts, store=store)
    made.remember("empty", variant="v", catalogue="c", marks=b"")
    made.remember("ten", variant="bold", catalogue="films", marks=marks_of([f"item-{n}" * 20 for n in range(10)]))
    made.remember("many", variant="v" * 64, catalogue="c" * 64, marks=marks_of([str(n) for n in range(9000)]))
    await background.settle()
    assert [size <= bound for size, bound in zip(store.sizes, (60, 1200), strict=True)] == [True, True]
    made.attribute("many", ["3", "8999", "x"], user_id="u")
    await background.settle()
    assert sum(counts.attributed.values()) == 1


async def test_a_note_of_another_release_counts_nothing() -> None:
    counts, store = Counts(), MemoryStore()
    made, background = attribution(counts, store=store)
    await store.put("answer:r", b'{"variant":"","catalogue":"c","items":["1"]}', 60.0)
    made.attribute("r", ["1"], user_id="u")
    await background.settle()
    assert (counts.attributed, counts.dropped) == ({}, 0)
