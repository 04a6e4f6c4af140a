from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING

import pytest
from igd_server.catalogues.following import LiveCatalogue
from igd_server.catalogues.gauges import DeploymentGauges
from igd_server.catalogues.version_folder import VersionFolder
from patience import PATIENCE_S
from publishing import BreakableStore, add, deployed, edition, live_deployment, publish, serves, until

from igd_core.artifact import load_artifact
from igd_core.engines.fake import FakeEngine
from igd_core.errors import EngineError
from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from igd_server.catalogues.deployment import Deployment

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer


def following(deployment: Deployment) -> LiveCatalogue:
    live = deployment.live("films")
    assert live is not None
    return live


@pytest.fixture
def store() -> BreakableStore:
    return BreakableStore()


async def test_a_server_without_a_store_and_without_a_copy_is_ready_when_the_store_comes(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    version = await publish(store, edition(tokenizer, 0), tmp_path)
    store.broken = True
    async with deployed(store, tmp_path / "cache") as deployment:
        assert deployment.why_not_ready() == "catalogue 'films': the store cannot be reached"
        with pytest.raises(EngineError, match="the store cannot be reached"):
            deployment.served()
        store.broken = False
        await serves(deployment, version)
        assert deployment.why_not_ready() is None
        await until(lambda: following(deployment).trouble is None)


async def test_a_server_without_a_store_serves_what_it_served_last_and_catches_up(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    await publish(store, edition(tokenizer, 0), tmp_path)
    cache = tmp_path / "cache"
    async with deployed(store, cache) as deployment:
        last = await publish(store, edition(tokenizer, 1), tmp_path)
        await serves(deployment, last)
    store.broken = True
    async with deployed(store, cache) as deployment:
        assert deployment.served().version == last
        assert deployment.why_not_ready() is None
        assert following(deployment).trouble == "the store cannot be reached"
        store.broken = False
        await until(lambda: following(deployment).trouble is None)
        assert deployment.served().version == last
        await serves(deployment, await publish(store, edition(tokenizer, 2), tmp_path))


async def test_a_store_that_lost_everything_does_not_take_the_catalogue_with_it(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    version = await publish(store, edition(tokenizer, 0), tmp_path)
    cache = tmp_path / "cache"
    async with deployed(store, cache) as deployment:
        store._shelves.clear()
        await until(lambda: following(deployment).trouble == "nothing is published under this name")
        assert deployment.served().version == version
    async with deployed(MemoryStore(), cache) as deployment:
        assert deployment.served().version == version


async def test_a_store_that_dies_and_comes_back_interrupts_nothing(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "igd")
    version = await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        store.broken = True
        await until(lambda: following(deployment).trouble is not None)
        seen = store.looks
        await until(lambda: store.looks > seen + 5)
        assert deployment.served().version == version
        assert deployment.why_not_ready() is None
        store.broken = False
        await serves(deployment, await publish(store, edition(tokenizer, 1), tmp_path))
        await until(lambda: following(deployment).trouble is None)
    events = [record.msg for record in caplog.records]
    assert events.count("not_following") == events.count("following_again") == 1


async def test_a_store_that_dies_during_a_fetch_is_asked_again_and_nothing_is_refused(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    first = await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        store.brittle = True
        second = await publish(store, edition(tokenizer, 1), tmp_path)
        await until(lambda: following(deployment).trouble == "the store cannot be reached")
        assert deployment.served().version == first
        store.brittle = store.broken = False
        await serves(deployment, second)
        assert list(following(deployment).refusals) == []


async def test_a_store_that_can_only_be_read_is_followed(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        store.full = True
        await serves(deployment, await publish(store, edition(tokenizer, 1), tmp_path))
        seen = store.looks
        await until(lambda: store.looks > seen + 2)
        assert following(deployment).trouble is None


async def test_a_full_disk_is_tried_again_and_nothing_is_refused(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    full: list[bool] = []

    def read(directory: Path) -> Artifact:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return load_artifact(directory)

    first = await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache", read_artifact=read) as deployment:
        full.append(True)
        second = await publish(store, edition(tokenizer, 1), tmp_path)
        trouble = "the published version cannot be brought to this machine"
        await until(lambda: following(deployment).trouble == trouble)
        assert deployment.served().version == first
        full.clear()
        await serves(deployment, second)
        assert list(following(deployment).refusals) == []


async def test_a_disk_that_fails_while_the_store_is_away_is_looked_at_again(
    store: BreakableStore,
    tokenizer: TitleTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: VersionFolder) -> str | None:
        raise OSError(errno.EIO, "Input/output error")

    version = await publish(store, edition(tokenizer, 0), tmp_path)
    store.broken = True
    monkeypatch.setattr(VersionFolder, "last_served", fail)
    async with asyncio.timeout(PATIENCE_S), deployed(store, tmp_path / "cache") as deployment:
        assert deployment.why_not_ready() == "catalogue 'films': the store cannot be reached"
        assert "look_failed" in [record.msg for record in caplog.records]
        monkeypatch.undo()
        store.broken = False
        await serves(deployment, version)


async def test_a_mistake_of_ours_in_a_look_does_not_end_following(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: LiveCatalogue) -> None:
        raise RuntimeError("a mistake")

    version = await publish(store, edition(tokenizer, 0), tmp_path)
    monkeypatch.setattr(LiveCatalogue, "follow_once", fail)
    async with asyncio.timeout(PATIENCE_S), deployed(store, tmp_path / "cache") as deployment:
        monkeypatch.undo()
        await serves(deployment, version)


async def test_a_cache_that_cannot_be_written_to_does_not_stop_what_is_served(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    version = await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        mark = tmp_path / "cache" / "films" / ".last-served"
        mark.unlink()
        mark.mkdir()  # nothing can be renamed to it
        newer = await publish(store, edition(tokenizer, 1), tmp_path)
        await serves(deployment, newer)
        assert deployment.why_not_ready() is None
    assert version != newer


async def test_a_damaged_copy_on_disk_is_replaced_from_the_store(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    version = await publish(store, edition(tokenizer, 0), tmp_path)
    cache = tmp_path / "cache"
    async with deployed(store, cache):
        pass
    part = cache / "films" / version / "trie.safetensors"
    part.write_bytes(part.read_bytes()[:-8])
    async with deployed(store, cache) as deployment:
        assert deployment.served().version == version
    part.write_bytes(part.read_bytes()[:-8])
    store.broken = True
    async with deployed(store, cache) as deployment:
        assert f"{version} cannot be served (damaged)" in str(deployment.why_not_ready())
        store.broken = False
        await serves(deployment, version)
        assert list(following(deployment).refusals) == []


async def test_only_what_is_served_and_what_was_before_stays_on_disk(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (cache / "films" / "0123456789abcdef").mkdir(parents=True)  # somebody's own
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, cache) as deployment:
        versions = []
        for number in range(1, 5):
            versions.append(await publish(store, edition(tokenizer, number), tmp_path))
            await serves(deployment, versions[-1])
        kept = {*versions[-2:], "0123456789abcdef"}
        await until(lambda: {path.name for path in (cache / "films").iterdir() if path.name[0] != "."} == kept)


async def test_one_catalogue_whose_fetch_hangs_does_not_hold_up_another(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    class Hanging(MemoryStore):
        async def fetch(self, catalogue: str, version: str, parent: Path) -> Path:
            if catalogue == "books":
                await asyncio.Event().wait()
            return await super().fetch(catalogue, version, parent)

    store = Hanging()
    await publish(store, edition(tokenizer, 0, name="books"), tmp_path)
    version = await publish(store, edition(tokenizer, 0), tmp_path)
    deployment = live_deployment(store, tmp_path / "cache", FakeEngine(), catalogues=("films", "books"))
    starting = asyncio.create_task(deployment.start())
    await serves(deployment, version)
    assert deployment.why_not_ready() == "catalogue 'books': being loaded"
    newer = await publish(store, edition(tokenizer, 1), tmp_path)
    await serves(deployment, newer)
    starting.cancel()
    await asyncio.wait((starting,))
    await deployment.close()


def gauges(deployment: Deployment) -> dict[str, float]:
    """What is scraped of the one catalogue."""
    families = {family.name: family for family in DeploymentGauges(deployment, lambda _: None).collect()}
    return {
        name: families[f"igd_catalogue_{name}"].samples[0].value
        for name in ("following", "lag_seconds")
        if families[f"igd_catalogue_{name}"].samples
    }


async def test_metrics_say_that_the_pointer_cannot_be_followed_and_how_long_what_is_published_is_not_served(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        assert gauges(deployment) == {"following": 1.0, "lag_seconds": 0.0}
        store.broken = True
        following(deployment).wake()
        await until(lambda: gauges(deployment)["following"] == 0.0)
        store.broken = False
        following(deployment).wake()
        await until(lambda: gauges(deployment) == {"following": 1.0, "lag_seconds": 0.0})
        bad = await add(store, edition(tokenizer, 1), tmp_path)
        store._shelves["films"].versions[bad].chunks.clear()
        await store.activate("films", bad)
        await until(lambda: bad in following(deployment).refusals)
        first = gauges(deployment)["lag_seconds"]
        await until(lambda: gauges(deployment)["lag_seconds"] > first > 0)
        assert gauges(deployment)["following"] == 1.0, "the pointer is read, and what it names is known to be bad"
        await store.roll_back("films")
        await until(lambda: gauges(deployment)["lag_seconds"] == 0.0)


async def test_a_pointer_that_nobody_has_read_for_long_is_not_followed(
    store: BreakableStore, tokenizer: TitleTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when each look at it fails in a way that nobody foresaw."""
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:

        async def fail(_: str) -> str:
            raise RuntimeError("unforeseen")

        monkeypatch.setattr(store, "current", fail)
        monkeypatch.setattr("igd_server.catalogues.following._SILENCE_S", 0.05)
        monkeypatch.setattr("igd_server.catalogues.following._FIRST_RETRY_S", 0.01)
        following(deployment).wake()
        await until(lambda: gauges(deployment)["following"] == 0.0)
