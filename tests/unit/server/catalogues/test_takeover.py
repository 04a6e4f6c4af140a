"""Whose turn it is to take a version, what is on record, how trials end; real deaths: `test_publish_deaths`."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.catalogues.attempts import Attempts
from igd_server.catalogues.served import AnswerWatch
from patience import PATIENCE_S
from publishing import BreakableStore, WatchedEngine, add, deployed, edition, live_deployment, publish, serves, until

from igd_core.errors import EngineClosed, EngineError, QueryError
from igd_core.ids import ItemIndex
from igd_core.search.query import Query

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_server.catalogues.attempts import Attempt
    from igd_server.catalogues.deployment import Deployment
    from igd_server.catalogues.following import LiveCatalogue

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring

LONG: dict[str, Any] = {"trial_s": 3600.0, "trial_answers": 3}


@pytest.fixture(scope="module")
def editions(tokenizer: TitleTokenizer) -> list[Artifact]:
    return [edition(tokenizer, number) for number in range(4)]


@pytest.fixture
def store() -> BreakableStore:
    return BreakableStore()


def following(deployment: Deployment) -> LiveCatalogue:
    live = deployment.live("films")
    assert live is not None
    return live


def attempts(cache: Path) -> Attempts:
    return Attempts(cache / "films" / ".attempts")


def died(cache: Path, version: str, times: int = 1, *, allowed: int = 0) -> None:
    for _ in range(times):
        attempts(cache).begin(version, allowed=allowed).abandon()


async def answer(deployment: Deployment) -> None:
    """What the service does for a request."""
    with deployment.lease() as served, served.watch.answer():
        await served.recommender.recommend(Query(history=[ItemIndex(0)], k=2))


def reasons(deployment: Deployment) -> dict[str, str]:
    return {refusal.version: refusal.reason for refusal in following(deployment).refusals}


async def test_a_server_waits_while_another_tries_a_version_and_takes_it_when_it_has_passed(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        await until(lambda: store._shelves["films"].trials[first].state == "passed")
        second = await publish_tried(store, editions[1], tmp_path)
        await until(lambda: following(deployment).waiting == f"other:1 tries version {second} first")
        seen = store.looks
        await until(lambda: store.looks > seen + 3)
        assert deployment.served().version == first
        assert deployment.why_not_ready() is None
        await store.end_trial("films", second, "other:1", "passed")
        await serves(deployment, second)
        await until(lambda: following(deployment).waiting is None)


async def publish_tried(store: BreakableStore, artifact: Artifact, directory: Path) -> str:
    """Published, and another server was the first to see it."""
    version = await add(store, artifact, directory)
    await store.begin_trial("films", version, "other:1", 3600)
    await store.activate("films", version)
    return version


@pytest.mark.parametrize("verdict", ["died", "refused"])
async def test_what_the_first_server_refused_or_died_of_is_taken_by_no_other_until_it_is_allowed(
    verdict: Any, store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        second = await publish_tried(store, editions[1], tmp_path)
        await store.end_trial("films", second, "other:1", verdict, "of something")
        await until(lambda: reasons(deployment) == {second: "canary"})
        (refusal,) = following(deployment).refusals
        assert refusal.detail == f"{verdict} on other:1: of something"
        assert deployment.served().version == first
        (said,) = deployment.remarks()
        assert said == f"catalogue 'films': version {second} is refused (canary), {first} is served"
        await following(deployment).allow(second)
        await serves(deployment, second)
        assert deployment.remarks() == []


async def test_a_server_with_nothing_serves_the_version_before_while_another_tries_the_new_one(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    second = await publish_tried(store, editions[1], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        assert deployment.served().version == first
        await store.end_trial("films", second, "other:1", "passed")
        await serves(deployment, second)


async def test_a_server_with_nothing_to_serve_at_all_says_for_what_it_waits(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    first = await publish_tried(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        assert deployment.why_not_ready() == f"catalogue 'films': waits for other:1 tries version {first} first"
        await store.end_trial("films", first, "other:1", "left")  # told to stop: the next one tries
        await serves(deployment, first)
        await until(lambda: store._shelves["films"].trials[first].state == "passed")


async def test_what_an_earlier_process_died_of_is_refused_and_the_last_good_version_served(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, cache):
        pass
    second = await publish(store, editions[1], tmp_path)
    died(cache, second)
    async with deployed(store, cache) as deployment:
        assert deployment.served().version == first
        assert reasons(deployment) == {second: "attempt-died"}
        assert (await store.trial("films", second)).state == "died"
        assert "attempt_died" in [record.msg for record in caplog.records]
        following(deployment).reload()  # does not help: by name alone
        seen = store.looks
        await until(lambda: store.looks > seen + 2)
        assert deployment.served().version == first
        await following(deployment).allow(second)
        await serves(deployment, second)
        await until(lambda: attempts(cache).dead() == [])


async def test_the_last_good_version_has_three_lives(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, cache) as deployment:
        second = await publish(store, editions[1], tmp_path)
        await serves(deployment, second)
    died(cache, second, 2)  # two power cuts
    async with deployed(store, cache) as deployment:
        assert deployment.served().version == second
    assert attempts(cache).dead() == []
    died(cache, second, 3)
    async with deployed(store, cache) as deployment:
        assert deployment.served().version == first
        assert (await store.trial("films", second)).state == "passed"  # for the others it is what it was


@pytest.mark.parametrize("times", [2, 3])
async def test_where_there_is_no_store_the_last_good_version_has_as_many(
    times: int, store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, cache):
        pass
    store.broken = True
    died(cache, first, times)
    async with deployed(store, cache) as deployment:
        if times == 2:
            assert deployment.served().version == first
        else:
            assert f"{first} cannot be served (attempt-died)" in str(deployment.why_not_ready())


async def test_a_disk_that_cannot_record_an_attempt_keeps_what_is_served_and_is_tried_again(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    cache, state = tmp_path / "cache", tmp_path / "state"
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, cache, settings={"state_dir": state}) as deployment:
        folder = state / "films" / ".attempts"
        await until(lambda: list(folder.iterdir()) == [])
        folder.rmdir()
        folder.write_text("in its place")
        second = await publish(store, editions[1], tmp_path)
        await until(lambda: following(deployment).trouble is not None)
        assert deployment.served().version == first
        # Another server may: the trial is open again after each try, but for the time that the next one takes.
        await until(lambda: store._shelves["films"].trials[second].state == "open")
        folder.unlink()
        await serves(deployment, second)
        await until(lambda: following(deployment).takeover.on_trial is None)
        assert list(following(deployment).refusals) == []
    store.broken = True
    folder.rmdir()
    folder.write_text("again")
    async with deployed(store, cache, settings={"state_dir": state}) as deployment:
        assert deployment.served().version == second  # it has proved itself: rather without a record than not at all


async def test_a_trial_ends_after_so_many_answers_and_until_then_the_version_before_is_the_good_one(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, cache):
        pass
    second = await publish(store, editions[1], tmp_path)
    async with deployed(store, cache, settings=LONG) as deployment:
        await serves(deployment, second)
        live = following(deployment)
        assert live.takeover.on_trial == second
        assert (await store.trial("films", second)).state == "trying"
        await answer(deployment)
        with deployment.lease() as served, pytest.raises(QueryError), served.watch.answer():
            raise QueryError("k", "a client's mistake is no fault")
        await answer(deployment)
        live.wake()
        seen = store.looks
        await until(lambda: store.looks > seen)
        assert live.takeover.on_trial == second
        assert (cache / "films" / ".last-served").read_text().strip() == first
        assert {first, second} <= {path.name for path in (cache / "films").iterdir()}
        await answer(deployment)
        live.wake()
        await until(lambda: live.takeover.on_trial is None)
        assert (cache / "films" / ".last-served").read_text().strip() == second
        await until(lambda: store._shelves["films"].trials[second].state == "passed")
        assert list((cache / "films" / ".attempts").iterdir()) == []


class Faulty(WatchedEngine):
    """Fails on one version, once it is warm."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self.bad = version
        self._opened: set[str] = set()

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        if version == self.bad and version in self._opened:
            raise EngineError("not a number")
        self._opened.add(version)
        return await super().open(version, prompt_ids, scoring)


async def test_a_fault_in_the_first_answers_sends_the_first_server_back(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    bad = editions[1].version
    first = await publish(store, editions[0], tmp_path)
    engine = Faulty(bad)
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        pass
    engine = Faulty(bad)
    async with deployed(store, tmp_path / "cache", engine, settings=LONG) as deployment:
        await publish(store, editions[1], tmp_path)
        await serves(deployment, bad)
        with pytest.raises(EngineError):
            await answer(deployment)
        following(deployment).wake()
        await serves(deployment, first)
        await until(lambda: reasons(deployment) == {bad: "faults"})
        trial = await store.trial("films", bad)
        assert (trial.state, trial.detail) == ("refused", "faults: not a number")
        await until(lambda: engine.versions == {first})
        seen = store.looks
        await until(lambda: store.looks > seen + 2)
        assert deployment.served().version == first


async def test_a_first_version_with_faults_is_kept_as_there_is_none_to_go_back_to_and_does_not_pass(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    engine = Faulty(first)
    async with deployed(store, tmp_path / "cache", engine, settings=LONG) as deployment:
        for _ in range(4):
            with pytest.raises(EngineError):
                await answer(deployment)
        following(deployment).wake()
        seen = store.looks
        await until(lambda: store.looks > seen + 1)
        assert deployment.served().version == first
        assert (await store.trial("films", first)).state == "trying"
        engine.bad = ""
        for _ in range(3):
            await answer(deployment)
        following(deployment).wake()
        await until(lambda: store._shelves["films"].trials[first].state == "passed")


async def test_without_a_hold_others_need_not_wait_for_the_trial(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache", settings={**LONG, "canary": False}) as deployment:
        await serves(deployment, first)
        await until(lambda: store._shelves["films"].trials[first].state == "passed")
        assert following(deployment).takeover.on_trial == first


async def test_the_other_servers_take_over_each_in_its_own_time(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await publish(store, editions[0], tmp_path)
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    async with deployed(store, tmp_path / "cache", settings={"takeover_spread_s": 2.0}) as deployment:
        assert deployment.served().version == first  # nothing to serve: at once
        second = await publish_tried(store, editions[1], tmp_path)
        passed = time.monotonic()
        await store.end_trial("films", second, "other:1", "passed")
        await until(lambda: following(deployment).waiting == f"its own time to take version {second}")
        await serves(deployment, second)
        assert time.monotonic() - passed >= 0.9
        third = await publish(store, editions[2], tmp_path)  # nobody else tries it: at once, for the fleet
        await serves(deployment, third)


async def test_being_told_to_stop_is_no_death_and_the_end_of_the_engine_is_one(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, cache, settings=LONG) as deployment:
        await serves(deployment, first)
    assert attempts(cache).dead() == []
    assert (await store.trial("films", first)).state == "open"
    assert (cache / "films" / ".last-served").read_text().strip() == first  # better than nothing
    second = await publish(store, editions[1], tmp_path)
    async with deployed(store, cache, settings=LONG) as deployment:
        await serves(deployment, second)
        await deployment.served().recommender.engine.close()
        await until(lambda: isinstance(deployment.failure, EngineClosed))
        await deployment.close()
    (dead,) = attempts(cache).dead()
    assert dead.version == second
    assert (await store.trial("films", second)).state == "died"


async def test_being_told_to_stop_while_the_attempt_is_being_recorded_leaves_no_record(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, begin = tmp_path / "cache", Attempts.begin
    recorded, synced = threading.Event(), threading.Event()

    def slow(self: Attempts, version: str, *, allowed: int) -> Attempt:
        attempt = begin(self, version, allowed=allowed)
        recorded.set()
        synced.wait(PATIENCE_S)
        return attempt

    await publish(store, editions[0], tmp_path)
    monkeypatch.setattr(Attempts, "begin", slow)
    monkeypatch.setattr("igd_core.cancellation._AGAIN_S", 0.01)  # it is told more than once
    deployment = live_deployment(store, cache, WatchedEngine())
    starting = asyncio.create_task(deployment.start())
    await until(recorded.is_set)
    starting.cancel()
    closing = asyncio.create_task(deployment.close())
    await asyncio.sleep(0.1)
    synced.set()
    await asyncio.wait((starting, closing))
    assert closing.exception() is None
    assert list((cache / "films" / ".attempts").iterdir()) == []


async def test_a_store_that_is_away_when_a_version_has_passed_is_told_later(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache", settings=LONG) as deployment:
        store.broken = True
        for _ in range(3):
            await answer(deployment)
        following(deployment).wake()
        await until(lambda: following(deployment).takeover.on_trial is None)
        store.broken = False
        following(deployment).wake()
        await until(lambda: store._shelves["films"].trials[first].state == "passed")


async def test_a_server_that_tries_a_version_says_so_again_and_again(
    store: BreakableStore, editions: Sequence[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igd_server.catalogues.deployment._LEASE_S", 0.2)
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache", settings=LONG) as deployment:
        await serves(deployment, first)
        ends_at = store._shelves["films"].trials[first].ends_at
        await until(lambda: store._shelves["films"].trials[first].ends_at > ends_at)
        assert (await store.trial("films", first)).state == "trying"


def test_mistakes_of_ours_are_faults_too() -> None:
    watch = AnswerWatch()
    with pytest.raises(ZeroDivisionError), watch.answer():
        raise ZeroDivisionError("private to the log")
    assert (watch.answers, watch.faults, watch.last_fault) == (0, 1, "ZeroDivisionError")
