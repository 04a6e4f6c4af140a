from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from publishing import (
    BreakableStore,
    WatchedEngine,
    add,
    deployed,
    edition,
    live_deployment,
    publish,
    serves,
    until,
)

from igd_core.errors import EngineError, QueryError
from igd_core.ids import ItemIndex
from igd_core.search.query import Query

if TYPE_CHECKING:
    from pathlib import Path

    from igd_server.catalogues.deployment import Deployment

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.store.memory import MemoryStore

QUERY = Query(history=[ItemIndex(0), ItemIndex(3)], k=5)


@pytest.fixture(scope="module")
def editions(tokenizer: TitleTokenizer) -> list[Artifact]:
    return [edition(tokenizer, number) for number in range(6)]


@pytest.fixture
def store() -> BreakableStore:
    return BreakableStore()


async def test_what_is_published_takes_over(store: MemoryStore, editions: list[Artifact], tmp_path: Path) -> None:
    first = await publish(store, editions[0], tmp_path)
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        assert deployment.why_not_ready() is None
        assert deployment.served().version == first
        second = await publish(store, editions[1], tmp_path)
        await serves(deployment, second)
        assert deployment.served().catalogue.item_ids[0] == "films-1-0"
        await until(lambda: engine.versions == {second})
    assert engine.unloads == [first]


async def test_a_pointer_that_moved_unheard_is_found_by_looking(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        await until(lambda: bool(store._listeners))
        store._listeners.clear()
        await serves(deployment, await publish(store, editions[1], tmp_path))


async def test_a_request_keeps_its_version_and_the_last_one_to_end_unloads_it(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        one, other = deployment.lease(), deployment.lease()
        with other as kept:
            with one:
                second = await publish(store, editions[1], tmp_path)
                await serves(deployment, second)
                with deployment.lease() as newer:
                    assert newer.version == second
            assert engine.versions == {first, second}
            found = await kept.recommender.recommend(QUERY)
            assert engine.unloads == []
        await until(lambda: bool(engine.unloads))
        assert engine.unloads == [first]
        assert engine.versions == {second}
    assert {kept.catalogue.item_ids[item.item][:8] for item in found.items} == {"films-0-"}


async def test_a_request_that_fails_lets_go_of_its_version_too(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine) as deployment:

        async def answer() -> None:
            with deployment.lease():
                await asyncio.Event().wait()

        cancelled = asyncio.create_task(answer())
        await asyncio.sleep(0)
        second = await publish(store, editions[1], tmp_path)
        await serves(deployment, second)
        assert len(engine.versions) == 2
        cancelled.cancel()
        await until(lambda: engine.versions == {second})


async def test_under_load_every_answer_is_of_one_version_while_versions_are_swapped(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    engine = WatchedEngine(delay_s=0.001)
    seen: set[str] = set()
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                with deployment.lease() as served:
                    found = await served.recommender.recommend(QUERY)
                    ids = [served.catalogue.item_ids[item.item] for item in found.items]
                assert found.query.version == served.version
                assert len(ids) == 5
                assert len({item_id.split("-")[1] for item_id in ids}) == 1
                seen.add(served.version)

        async with asyncio.TaskGroup() as clients:
            for _ in range(8):
                clients.create_task(client())
            for artifact in editions[1:]:
                version = await publish(store, artifact, tmp_path)
                await serves(deployment, version)
                await until(lambda version=version: version in seen)  # type: ignore[misc]
            stop.set()
        await until(lambda: engine.versions == {editions[-1].version})
    assert seen == {artifact.version for artifact in editions}


async def test_fifty_publishes_in_a_row_end_at_the_newest_without_loads_piling_up(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    for artifact in editions[1:]:
        await add(store, artifact, tmp_path)
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        engine.gate.clear()
        for artifact in itertools.islice(itertools.cycle(editions), 1, 51):
            await store.activate("films", artifact.version)
            await asyncio.sleep(0)
        newest = await store.current("films")
        assert newest is not None
        await until(lambda: engine.loading == 1)
        engine.gate.set()
        await serves(deployment, newest)
        await until(lambda: engine.versions == {newest})
        assert deployment.served().version == newest
    assert len(engine.loads) <= 4
    assert engine.most_loading == 1


async def test_rolling_back_to_a_version_still_in_use_does_not_lose_it(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        with deployment.lease():
            second = await publish(store, editions[1], tmp_path)
            await serves(deployment, second)
            live = deployment.live("films")
            assert live is not None
            move = await live.roll_back()
            assert (move.version, move.before) == (first, second)
            await serves(deployment, first)
        await until(lambda: engine.versions == {first})
        await deployment.served().recommender.recommend(QUERY)
        assert engine.loads == [first, second]
        await live.roll_back(second)
        await serves(deployment, second)


async def test_a_version_that_comes_back_while_it_is_being_unloaded_is_loaded_anew(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        engine.exit.clear()
        second = await publish(store, editions[1], tmp_path)
        await serves(deployment, second)
        await store.activate("films", first)
        live = deployment.live("films")
        assert live is not None
        await until(lambda: live.published == first)
        await asyncio.sleep(0.05)  # nothing may happen
        assert engine.loads == [first, second]
        engine.exit.set()
        await serves(deployment, first)
        await until(lambda: engine.versions == {first})
        await deployment.served().recommender.recommend(QUERY)


async def test_without_a_version_before_there_is_nothing_to_roll_back_to(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        live = deployment.live("films")
        assert live is not None
        with pytest.raises(QueryError, match="no version was current before"):
            await live.roll_back()


async def test_two_catalogues_are_served_apart(store: MemoryStore, tokenizer: TitleTokenizer, tmp_path: Path) -> None:
    films = await publish(store, edition(tokenizer, 0), tmp_path)
    books = await publish(store, edition(tokenizer, 0, name="books"), tmp_path)
    async with deployed(store, tmp_path / "cache", catalogues=("films", "books")) as deployment:
        assert deployment.catalogue_names == ("films", "books")
        assert list(deployment.serving) == ["films", "books"]
        newer = await publish(store, edition(tokenizer, 1, name="books"), tmp_path)
        await serves(deployment, newer, "books")
        with deployment.lease("books") as leased, deployment.lease() as default:
            assert (leased.name, default.name) == ("books", "films")
            assert (leased.version, default.version) == (newer, films)
        with pytest.raises(QueryError, match="no catalogue 'music'; this server has: films, books"):
            deployment.served("music")
        with pytest.raises(QueryError), deployment.lease("music"):
            pass
    assert books != newer


async def test_a_publish_during_the_load_of_another_catalogue_waits_its_turn(
    store: MemoryStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    await publish(store, edition(tokenizer, 0), tmp_path)
    await publish(store, edition(tokenizer, 0, name="books"), tmp_path)
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine, catalogues=("films", "books")) as deployment:
        engine.gate.clear()
        films = await publish(store, edition(tokenizer, 1), tmp_path)
        await until(lambda: films in engine.loads)
        stale = await publish(store, edition(tokenizer, 1, name="books"), tmp_path)
        books = await publish(store, edition(tokenizer, 2, name="books"), tmp_path)
        await until(lambda: any((tmp_path / "cache" / "books" / version).exists() for version in (stale, books)))
        await asyncio.sleep(0.05)  # time to load it, if it did not wait
        engine.gate.set()
        await serves(deployment, films, "films")
        await serves(deployment, books, "books")
        await until(lambda: engine.versions == {films, books})
        assert stale not in engine.versions
    assert engine.most_loading == 1


async def test_two_catalogues_may_serve_one_version_and_the_last_to_move_on_unloads_it(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    for name in ("films", "canary"):
        await publish(store, editions[0], tmp_path, catalogue=name)
    first, second = editions[0].version, editions[1].version
    engine = WatchedEngine()
    async with deployed(store, tmp_path / "cache", engine, catalogues=("films", "canary")) as deployment:
        assert engine.loads == [first]
        assert [served.name for served in deployment.serving.values()] == ["films", "canary"]
        await publish(store, editions[1], tmp_path, catalogue="canary")
        await serves(deployment, second, "canary")
        assert engine.versions == {first, second}
        await publish(store, editions[1], tmp_path, catalogue="films")
        await until(lambda: engine.versions == {second})
    assert engine.loads == [first, second]


async def test_nothing_of_a_retired_version_stays_in_memory(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        retired = weakref.ref(deployment.served().recommender)
        await serves(deployment, await publish(store, editions[1], tmp_path))

        def is_gone() -> bool:
            gc.collect()
            return retired() is None

        await until(is_gone)


async def test_a_second_catalogue_with_nothing_published_does_not_keep_the_first_from_being_ready(
    store: MemoryStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache", catalogues=("films", "books")) as deployment:
        assert deployment.why_not_ready() is None
        with pytest.raises(EngineError, match="'books': nothing is published"), deployment.lease("books"):
            pass
        await serves(deployment, await publish(store, edition(tokenizer, 0, name="books"), tmp_path), "books")


async def test_a_server_is_ready_once_its_default_catalogue_is_published(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    async with deployed(store, tmp_path / "cache") as deployment:
        assert deployment.why_not_ready() == "catalogue 'films': nothing is published under this name"
        with pytest.raises(EngineError):
            deployment.served()
        await serves(deployment, await publish(store, editions[0], tmp_path))
        assert deployment.why_not_ready() is None


async def test_closing_during_a_load_ends_it_and_leaves_no_task_behind(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    before = asyncio.all_tasks()
    await publish(store, editions[0], tmp_path)
    engine = WatchedEngine()
    deployment = live_deployment(store, tmp_path / "cache", engine)
    engine.gate.clear()
    starting = asyncio.create_task(deployment.start())
    await until(lambda: engine.loading == 1)
    assert deployment.why_not_ready() == "catalogue 'films': being loaded"
    starting.cancel()
    await asyncio.wait((starting,))
    async with asyncio.timeout(PATIENCE_S):
        await deployment.close()
    assert engine.loading == 0
    assert not engine.stats().healthy
    assert deployment.why_not_ready() == "the server is stopping"
    assert asyncio.all_tasks() == before


async def test_a_request_may_outlive_the_deployment(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        lease = deployment.lease()
        lease.__enter__()
        await serves(deployment, await publish(store, editions[1], tmp_path))
    lease.__exit__(None, None, None)


async def test_a_model_that_cannot_be_opened_ends_the_server(store: MemoryStore, tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise OSError("no such checkpoint")

    called: list[Deployment] = []
    deployment = live_deployment(store, tmp_path / "cache", WatchedEngine(), open_model=refuse)
    deployment.on_failure = lambda: called.append(deployment)
    await deployment.start()
    assert str(deployment.failure) == "no such checkpoint"
    assert called == [deployment]
    assert deployment.why_not_ready() == "the server could not start"
    await deployment.close()


async def test_the_store_is_told_what_is_served_so_that_it_is_not_pruned(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    served = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache"):
        await until(lambda: bool(store._shelves["films"].holds))
        for artifact in editions[1:4]:
            await add(store, artifact, tmp_path)
        (held,) = [kept for kept in await store.versions("films") if kept.holders]
    assert held.version == served


async def test_kinds_of_attributes_are_told_by_their_values(
    store: MemoryStore, editions: list[Artifact], tmp_path: Path
) -> None:
    await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        assert {name: kind.name for name, kind in deployment.served().attributes.items()} == {
            "colour": "boolean",
            "director": "text",
            "genres": "list-of-text",
            "part": "integer",
            "rating": "text",
        }
