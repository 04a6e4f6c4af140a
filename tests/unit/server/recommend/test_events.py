from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from films import HOSTILE_TITLE, ITEM_IDS
from hypothesis import given
from hypothesis import strategies as st
from igd_server.api.schemas_events import EventsRequest, Timestamp, UserEvent
from igd_server.recommend.histories import Histories
from igd_server.recommend.store_guard import StoreGuard
from patience import PATIENCE_S
from pydantic import TypeAdapter, ValidationError
from redis_server import RedisServer

from igd_core.errors import QueryError, StoreUnavailable
from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import httpx
    from films import Run, Running

    from igd_core.store.events import Event

NOON = "2026-01-31T12:00:00Z"
NOON_MS = 1_769_860_800_000


def event(item_id: str = "1", *, user_id: str = "u", timestamp: str | float = NOON, **more: Any) -> dict[str, Any]:
    return {"user_id": user_id, "item_id": item_id, "timestamp": timestamp, **more}


async def record(running: Running, *events: dict[str, Any]) -> httpx.Response:
    return await running.client.post("/v1/events", json={"events": events})


async def history(running: Running, user_id: str) -> list[str]:
    """What the server knows of a user, told by what it will not recommend: oldest first is not to be seen."""
    body = {"user_id": user_id, "k": 19, "beams": 40}
    shown = (await running.client.post("/v1/recommendations", json=body)).json()["items"]
    back = {each for item in shown for each in (item["item_id"], *item.get("duplicates", ()))}
    return [item_id for item_id in ITEM_IDS if item_id not in back]


async def test_events_become_the_history_that_recommendations_use(run: Run) -> None:
    async with run() as running:
        response = await record(running, event("1"), event("3"), event("2", user_id="other"))
        assert response.status_code == 200
        assert response.json() == {
            "request_id": response.headers["x-request-id"],
            "accepted": 3,
            "duplicates": 0,
        }
        assert await history(running, "u") == ["1", "3"]
        assert await history(running, "other") == ["2"]
        assert await history(running, "stranger") == []


async def test_late_events_are_sorted_in(run: Run) -> None:
    times: dict[str, str | float] = {"5": NOON_MS + 3000, "1": NOON_MS + 1000, "odd/id 20%": "2026-01-31T12:00:02Z"}
    async with run() as running:
        for item_id, timestamp in times.items():
            await record(running, event(item_id, timestamp=timestamp))
        stored = (await running.recommend(user_id="u", k=3)).json()
        given = (await running.recommend(history=["1", "odd/id 20%", "5"], k=3)).json()
    assert HOSTILE_TITLE not in [item["title"] for item in stored["items"]]
    assert stored["items"] == given["items"]


async def test_events_of_one_second_are_the_history_in_the_order_in_which_they_were_sent(run: Run) -> None:
    named = [event("1", event_id="e-9"), event("3", event_id="e-10"), event("2")]
    async with run() as running:
        await record(running, *named)
        await record(running, event("4", event_id="a"), *reversed(named))
        stored = (await running.recommend(user_id="u", k=5)).json()
        given = (await running.recommend(history=["1", "3", "2", "4"], k=5)).json()
        known = (await running.client.get("/v1/users/u")).json()["events"]
    assert [each["item_id"] for each in known] == ["1", "3", "2", "4"]
    assert stored["items"] == given["items"]


async def test_an_event_older_than_all_that_are_kept_is_never_accepted(run: Run) -> None:
    async with run(history_max_events=3) as running:
        await record(running, *(event(str(number), timestamp=NOON_MS + number) for number in range(1, 5)))
        answers = [(await record(running, event("5"))).json() for _ in range(2)]
        known = (await running.client.get("/v1/users/u")).json()["events"]
    assert [(each["accepted"], each["duplicates"]) for each in answers] == [(0, 1), (0, 1)]
    assert [each["item_id"] for each in known] == ["2", "3", "4"]


async def test_an_event_id_is_known_apart_in_histories_and_beside_them(run: Run) -> None:
    async with run() as running:
        click, view, buy = (event("1", event_id="e", kind=kind) for kind in ("click", "view", "buy"))
        answers = [(await record(running, each)).json()["accepted"] for each in (click, view, buy, view)]
    assert answers == [1, 1, 0, 0]


async def test_one_moment_is_one_event_however_it_is_written(run: Run) -> None:
    written: list[str | float] = [
        NOON,
        NOON_MS,
        NOON_MS // 1000,
        NOON_MS / 1000,
        NOON_MS * 1000,
        NOON_MS * 1_000_000 + 999,
        str(NOON_MS // 1000),
        "2026-01-31T13:00:00.000+01:00",
        "2026-01-31 12:00:00 UTC",
    ]
    async with run() as running:
        body = (await record(running, *(event("1", timestamp=each) for each in written))).json()
    assert (body["accepted"], body["duplicates"]) == (1, len(written) - 1)


async def test_a_refused_time_is_shown_with_the_reason(run: Run) -> None:
    async with run() as running:
        problem = (await record(running, event(), event(timestamp=1_769_860))).json()
        long = (await record(running, event(timestamp="x" * 5000))).json()
    assert problem["field"] == "events[1].timestamp"
    assert "1769860 is no time from 1990 on in seconds, milliseconds" in problem["detail"]
    assert len(long["detail"]) < 300


async def test_an_event_that_is_sent_again_is_recorded_once(run: Run) -> None:
    named, nameless = event("1", event_id="e-1"), event("2")
    async with run() as running:
        first = (await record(running, named, nameless)).json()
        again = (await record(running, nameless, named, event("2", timestamp=NOON_MS))).json()
        other = (
            await record(running, event("2", timestamp=NOON_MS + 1), event("1", event_id="e-1", user_id="v"))
        ).json()
        metrics = (await running.client.get("/metrics")).text
    assert (first["accepted"], first["duplicates"]) == (2, 0)
    assert (again["accepted"], again["duplicates"]) == (0, 3)
    assert (other["accepted"], other["duplicates"]) == (2, 0)
    assert 'igd_events_total{outcome="accepted"} 4.0' in metrics
    assert 'igd_events_total{outcome="duplicate"} 3.0' in metrics


async def test_items_that_no_catalogue_has_are_recorded_with_a_warning(run: Run) -> None:
    async with run() as running:
        body = (await record(running, event("ghost"), event("1"))).json()
        answer = (await running.recommend(user_id="u", k=2, strict=True)).json()
    assert body["accepted"] == 2
    (warning,) = body["warnings"]
    assert (warning["code"], warning["field"], warning["sample"]) == ("unknown-items", "events", ["ghost"])
    assert answer["source"] == "model"
    assert [(each["field"], each["count"]) for each in answer["warnings"]] == [("user_id", 1)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "events"),
        ({"events": []}, "events"),
        ({"events": [event()] * 1001}, "events"),
        ({"events": {"0": event()}}, "events"),
        ({"events": [event() | {"user_id": ""}]}, "events[0].user_id"),
        ({"events": [event() | {"user_id": "x" * 257}]}, "events[0].user_id"),
        ({"events": [event() | {"user_id": "a\nb"}]}, "events[0].user_id"),
        ({"events": [event() | {"user_id": "\x85"}]}, "events[0].user_id"),
        ({"events": [event() | {"user_id": "\ud800"}]}, "events[0].user_id"),
        ({"events": [event() | {"user_id": 7}]}, "events[0].user_id"),
        ({"events": [event("")]}, "events[0].item_id"),
        ({"events": [event("a\x00")]}, "events[0].item_id"),
        ({"events": [event(), event(event_id="x" * 129)]}, "events[1].event_id"),
        ({"events": [event(event_id="")]}, "events[0].event_id"),
        ({"events": [event(request_id="a b")]}, "events[0].request_id"),
        ({"events": [event(timestamp="yesterday")]}, "events[0].timestamp"),
        ({"events": [event(timestamp="2026-01-31T12:00:00")]}, "events[0].timestamp"),
        ({"events": [event(timestamp="2026-02-30T12:00:00Z")]}, "events[0].timestamp"),
        ({"events": [event(timestamp="1989-12-31T23:59:59Z")]}, "events[0].timestamp"),
        ({"events": [event(timestamp="2026-01-31")]}, "events[0].timestamp"),
        ({"events": [event(timestamp=0)]}, "events[0].timestamp"),
        ({"events": [event(timestamp=1_769_860)]}, "events[0].timestamp"),
        ({"events": [event(timestamp=-1)]}, "events[0].timestamp"),
        ({"events": [event(timestamp=True)]}, "events[0].timestamp"),
        ({"events": [event(timestamp=1.5)]}, "events[0].timestamp"),
        ({"events": [event(timestamp=10**21)]}, "events[0].timestamp"),
        ({"events": [event(timestamp=4_102_444_800)]}, "events[0].timestamp"),
        ({"events": [event(), event(timestamp=int(time.time() * 1000) + 90_000_000)]}, "events[1].timestamp"),
        ({"events": [event(colour="red")]}, "events[0].colour"),
    ],
)
async def test_a_bad_event_is_refused_by_its_place_and_nothing_is_recorded(run: Run, body: Any, field: str) -> None:
    async with run() as running:
        response = await running.client.post(
            "/v1/events", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        assert await history(running, "u") == []
    assert response.status_code == 422
    assert response.json()["field"] == field


async def test_a_day_ahead_is_taken_and_more_is_not() -> None:
    now = 2_000_000_000.0
    histories = Histories(StoreGuard(MemoryStore(), timeout_s=1.0), clock=lambda: now)

    def at(seconds: float) -> list[UserEvent]:
        return [UserEvent(**event(timestamp=int(seconds * 1000)))]

    assert (await histories.record(at(now + 86_400))).accepted == 1
    with pytest.raises(QueryError, match=r"events\[0\]\.timestamp: 2033-05-19T03:33:20.001Z is more than a day ahead"):
        await histories.record(at(now + 86_400.001))


ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMESTAMP = TypeAdapter(Timestamp)


@given(
    moment=st.datetimes(datetime(1990, 1, 2), datetime(9998, 1, 1), timezones=ZONES),  # noqa: DTZ001 - zones are drawn
    separator=st.sampled_from("Tt"),
    digits=st.integers(0, 9),
)
def test_a_time_with_its_zone_is_its_millisecond(moment: datetime, separator: str, digits: int) -> None:
    fraction = f"{moment.microsecond:06}000"[:digits]
    text = f"{moment:%Y-%m-%d}{separator}{moment:%H:%M:%S}".rjust(19, "0") + (f".{fraction}" if digits else "")
    offset = f"{moment:%z}"
    zone = f"{offset[:3]}:{offset[3:5]}" if moment.utcoffset() else "z"
    # An oracle in whole numbers: days, seconds and milliseconds since 1970.
    since = moment.replace(microsecond=0).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    expected = (since.days * 86_400 + since.seconds) * 1000 + int(fraction[:3].ljust(3, "0"))
    assert TIMESTAMP.validate_python(text + zone) == expected
    assert TIMESTAMP.validate_python(expected) == expected


@given(text=st.text("0123456789-:TZ.+ ", max_size=30))
def test_what_looks_like_a_time_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(ValidationError):
        assert TIMESTAMP.validate_python(text) >= 631_152_000_000


class Forgetful(MemoryStore):
    """Fails for some users, after a while."""

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        await asyncio.sleep(0)
        if user_id.startswith("bad"):
            raise StoreUnavailable("gone")
        return await super().append(user_id, events)


@given(users=st.lists(st.sampled_from(["a", "b", "c", "bad", "bad2"]), min_size=1, max_size=40))
async def test_all_events_are_recorded_or_the_answer_is_an_error(users: list[str]) -> None:
    store = Forgetful()
    histories = Histories(StoreGuard(store, timeout_s=1.0))
    body = EventsRequest(events=[UserEvent(**event(str(at), user_id=user)) for at, user in enumerate(users)])
    if any(user.startswith("bad") for user in users):
        with pytest.raises(StoreUnavailable):
            await histories.record(body.events)
        return
    recorded = await histories.record(body.events)
    assert (recorded.accepted, recorded.duplicates) == (len(users), 0)
    for user in set(users):
        assert {each.item_id for each in await store.history(user)} == {
            str(at) for at, each in enumerate(users) if each == user
        }


async def test_a_thousand_users_in_one_request_wait_for_a_hanging_store_only_once() -> None:
    class Hanging(MemoryStore):
        async def append(self, user_id: str, events: Sequence[Event]) -> int:
            await asyncio.sleep(3600)
            return await super().append(user_id, events)

    histories = Histories(StoreGuard(Hanging(), timeout_s=0.1))
    body = EventsRequest(events=[UserEvent(**event("1", user_id=f"u{number}")) for number in range(1000)])
    async with asyncio.timeout(PATIENCE_S):  # one after the other they would wait 100 s
        with pytest.raises(StoreUnavailable):
            await histories.record(body.events)


async def test_a_user_who_is_forgotten_has_no_history(run: Run) -> None:
    async with run() as running:
        for user_id in ("u", "odd/id ü%"):
            await record(running, event("1", user_id=user_id))
            assert await history(running, user_id) == ["1"]
        for path in ("u", "odd%2Fid%20%C3%BC%25", "stranger"):
            for _ in range(2):
                response = await running.client.delete(f"/v1/users/{path}")
                assert (response.status_code, response.json()["forgotten"]["impressions"]) == (200, 0)
        assert await history(running, "u") == []
        assert await history(running, "odd/id ü%") == []


@pytest.mark.parametrize(
    ("path", "status"), [("x" * 257, 422), ("%00", 422), ("a%07b", 422), ("%C2%85", 422), ("a%0Ab", 404), ("", 422)]
)
async def test_who_can_be_no_user_cannot_be_forgotten(run: Run, path: str, status: int) -> None:
    async with run() as running:
        response = await running.client.delete(f"/v1/users/{path}")
    assert response.status_code == status
    assert response.json().get("field") == ("user_id" if status == 422 else None)


@pytest.fixture
def redis(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path)


def check_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert response.json()["type"] == "urn:igd:problem:store-unavailable"
    assert int(response.headers["retry-after"]) >= 1


async def test_what_was_not_recorded_is_never_answered_as_if_it_was(run: Run, redis: RedisServer) -> None:
    with redis:
        async with run(store=redis.url, store_timeout_ms=200) as running:
            assert (await record(running, event("1"))).status_code == 200
            redis.kill()
            for _ in range(8):
                check_unavailable(await record(running, event("2")))
            check_unavailable(await running.client.delete("/v1/users/u"))
            metrics = (await running.client.get("/metrics")).text
            redis.start()
            async with asyncio.timeout(PATIENCE_S):
                while (answer := await record(running, event("3"))).status_code != 200:  # noqa: ASYNC110 - a client
                    await asyncio.sleep(0.05)
            assert answer.json()["accepted"] == 1
            assert await history(running, "u") == ["3"], "this Redis keeps nothing on disk"
    assert 'igd_events_total{outcome="refused"} 8.0' in metrics


async def test_a_store_that_is_full_refuses_events_and_is_still_read(run: Run, redis: RedisServer) -> None:
    with redis:
        async with run(store=redis.url) as running:
            assert (await record(running, event("1"))).status_code == 200
            redis.cli("config", "set", "maxmemory", "1")
            for number in range(8):
                check_unavailable(await record(running, event("2", timestamp=NOON_MS + number)))
            assert await history(running, "u") == ["1"]
            redis.cli("config", "set", "maxmemory", "0")
            async with asyncio.timeout(PATIENCE_S):
                while (await record(running, event("2"))).status_code != 200:  # noqa: ASYNC110 - a client
                    await asyncio.sleep(0.05)
            assert await history(running, "u") == ["1", "2"]


async def test_a_batch_counts_as_one_request_for_each_ten_events(run: Run) -> None:
    def batch(count: int) -> dict[str, Any]:
        now = int(time.time())
        return {"events": [{"user_id": f"u-{n}", "item_id": "1", "timestamp": now - 1 - n} for n in range(count)]}

    async with run(rate_limit="5/day") as running:
        answers = [await running.client.post("/v1/events", json=batch(count)) for count in (10, 11, 21, 1, 1, 1)]
        metrics = (await running.client.get("/metrics")).text
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 200, 429, 200, 200, 429], "1, 2, no room for 3, 1, 1 of 5"
    assert 'igd_rejected_requests_total{reason="rate"} 2.0' in metrics
    assert 'igd_events_total{outcome="refused"} 21.0' in metrics
