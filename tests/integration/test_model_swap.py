"""Published models on a real Redis and the embedded engine: swapped and rolled back under load, the old one gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from adapters import save_adapter
from checkpoints import random_model, write_checkpoint
from factories import tiny_checkpoint
from films import film_artifact
from igd_server.app import create_apps
from igd_server.settings import Settings
from patience import PATIENCE_S
from publishing import until
from redis_server import RedisServer

from igd_core.artifact import load_artifact, save_artifact
from igd_core.cli.main import main
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.engines.published import describe_model
from igd_core.errors import ArtifactError
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender
from igd_core.store.open import open_store
from igd_core.store.published_models import staged
from igd_core.store.publishing import ModelFolder, publish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from igd_server.app import Apps

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.engine import TreeEngine

BODY: dict[str, Any] = {"history": ["1", "3"], "k": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any], tokenizer: TitleTokenizer) -> Path:
    """An artifact, the server's own checkpoint, an adapter of it, another checkpoint, and two that cannot be served."""
    from transformers import MistralConfig

    root: Path = tmp_path_factory.mktemp("swap")
    own = tiny_checkpoint("llama-fp32", tokenizer).model
    write_checkpoint(root / "own", own, definition)
    write_checkpoint(root / "other", random_model(own.config, seed=23), definition)
    shape = {name: getattr(own.config, name) for name in ("vocab_size", "hidden_size", "num_attention_heads")}
    windowed = MistralConfig(num_hidden_layers=1, num_key_value_heads=2, sliding_window=4, **shape)
    write_checkpoint(root / "windowed", random_model(windowed), definition)
    write_checkpoint(root / "foreign", random_model(own.config, seed=24), definition)
    (root / "foreign" / "tokenizer.json").write_text(
        json.dumps(definition | {"padding": None, "normalizer": {"type": "NFC"}})
    )
    save_adapter(root / "lora", root / "own", seed=1)
    save_artifact(film_artifact(tokenizer), root / "films")
    return root


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as running:
        yield running


@dataclass(slots=True, kw_only=True)
class Server:
    """A server without sockets, and what it was asked to do by commands."""

    apps: Apps
    client: httpx.AsyncClient

    async def info(self) -> dict[str, Any]:
        found = (await self.client.get("/v1/catalogues")).json()["catalogues"]
        return dict(found[0]) if found else {}

    async def ids(self, **body: Any) -> tuple[list[str], dict[str, Any]]:
        answer = await self.client.post("/v1/recommendations", json=BODY | body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["source"] == "model"
        assert not [each for each in told.get("warnings", ()) if each["code"] != "model-untuned"]
        return [item["item_id"] for item in told["items"]], told

    async def serves(self, version: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while (found := await self.info()).get("version") != version:
                assert not [each for each in found.get("refusals", ()) if each["version"] == version], found
                await asyncio.sleep(0.01)
        return found

    def engine(self) -> TreeEngine:
        engine: Any = self.apps.deployment.served().recommender.engine
        return engine  # type: ignore[no-any-return]


async def publishes(redis: RedisServer, capsys: pytest.CaptureFixture[str], *flags: object) -> dict[str, Any]:
    """What `igd publish` prints."""
    capsys.readouterr()
    command = ["publish", "--store", redis.url, *map(str, flags), "--json"]
    assert await asyncio.to_thread(main, command) == 0
    published: dict[str, Any] = json.loads(capsys.readouterr().out)
    return published


@contextlib.asynccontextmanager
async def serving(folder: Path, redis: RedisServer, cache: Path, **changes: Any) -> AsyncIterator[Server]:
    settings: dict[str, Any] = {
        "catalogues": ("films",), "store": redis.url, "model": str(folder / "own"), "device": "cpu",
        "cache_dir": cache, "poll_s": 0.05, "trial_s": 0.0, "takeover_spread_s": 0.0, "store_timeout_ms": 5000,
        **changes,
    }  # fmt: skip
    apps = create_apps(Settings(**settings))
    transport = httpx.ASGITransport(app=apps.main, raise_app_exceptions=False)
    async with (
        apps.main.router.lifespan_context(apps.main),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as client,
    ):
        async with asyncio.timeout(PATIENCE_S):
            while apps.deployment.why_not_ready() is not None:
                assert apps.deployment.failure is None
                await asyncio.sleep(0.01)
        yield Server(apps=apps, client=client)


async def truth(folder: Path, model: str, adapter: str | None = None) -> list[str]:
    """The ids that the model itself ranks first, without any server."""
    adapters = {} if adapter is None else {adapter: folder / adapter}
    opened = open_engine(EngineOptions(model=folder / model, device="cpu", adapters=adapters))
    artifact = load_artifact(folder / "films")
    await opened.engine.load(artifact)
    history = [ItemIndex(int(item_id) - 1) for item_id in BODY["history"]]
    found = await Recommender(artifact, opened.engine).recommend(Query(history=history, k=5), adapter=adapter)
    await opened.engine.close()
    return [artifact.catalogue.item_ids[each.item] for each in found.items]


@dataclass(slots=True, kw_only=True)
class Load:
    """What clients got while models were swapped: pairs of the version and the ids."""

    answers: int = 0
    seen: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def under_load(server: Server) -> AsyncIterator[Load]:
    load, stop = Load(), asyncio.Event()

    async def client(k: int) -> None:
        while not stop.is_set():
            ids, told = await server.ids(k=k)
            load.answers += 1
            if k == 5:
                load.seen.setdefault(told["version"], set()).add(tuple(ids))
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as clients:
        for k in (3, 4, 5):
            clients.create_task(client(k))
        try:
            yield load
        finally:
            stop.set()


async def test_models_are_swapped_and_rolled_back_under_load_and_the_old_one_is_gone(
    folder: Path, redis: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {
        "own": await truth(folder, "own"),
        "lora": await truth(folder, "own", "lora"),
        "other": await truth(folder, "other"),
    }
    assert len({tuple(ids) for ids in expected.values()}) == 3
    first = await publishes(redis, capsys, "--artifact", folder / "films")
    assert first["model"] is None
    async with serving(folder, redis, tmp_path / "cache") as server:
        own = server.engine()
        own_model = own._checkpoint.model
        assert sum(each.numel() for each in own_model.parameters()) > 0
        versions = {first["version"]: expected["own"]}
        async with under_load(server) as load:
            for model, base in (("lora", ("--base", folder / "own")), ("other", ())):
                published = await publishes(redis, capsys, "--catalogue", "films", "--model", folder / model, *base)
                info = await server.serves(published["version"])
                assert info["published_model"] == published["model"]
                assert info["model"] == model
                versions[published["version"]] = expected[model]
                ids, told = await server.ids()
                assert (ids, told["model"]) == (expected[model], model)
            await until(lambda: set(versions) <= set(load.seen))
            rolled = await server.client.post("/v1/admin/catalogues/films:rollback", json={"version": first["version"]})
            assert rolled.status_code == 200
            info = await server.serves(first["version"])
            assert "published_model" not in info
            assert (await server.ids())[0] == expected["own"]
        assert {version: {tuple(ids)} for version, ids in versions.items()} == load.seen
        assert load.answers > 30
        # The model that the server began with has left memory, although this test still holds its modules.
        assert server.engine() is not own
        assert sum(each.numel() for each in own_model.parameters()) == 0
        models = server.apps.deployment.models
        assert models is not None
        await until(lambda: len(models._open) == 1)
        metrics = (await server.client.get("/metrics")).text
        (line,) = (each for each in metrics.splitlines() if each.startswith("igd_model_info{"))
        assert 'model="own"' in line
    # One server's answers are another's only if the model is the same: the store keeps both.
    async with serving(folder, redis, tmp_path / "cache", local_results=0) as again:
        assert (await again.ids())[1]["cached"] is True
        renamed = ("--catalogue", "films", "--model", folder / "other", "--name", "renamed")
        published = await publishes(redis, capsys, *renamed)
        await again.serves(published["version"])
        ids, told = await again.ids()
        assert (ids, told["cached"], told["model"]) == (expected["other"], False, "renamed")


@pytest.mark.parametrize(
    ("model", "base", "expected"),
    [
        ("windowed", None, ("model", "sliding-window attention (4) is not supported")),
        ("lora", "other", ("model", "an adapter of another checkpoint")),
        ("foreign", None, ("tokenizer", "the artifact was built with")),
    ],
)
async def test_a_model_that_cannot_be_served_is_told_and_the_old_one_stays(
    folder: Path, redis: RedisServer, tmp_path: Path, model: str, base: str | None, expected: tuple[str, str]
) -> None:
    reason, detail = expected
    store = open_store(redis.url)
    await publish(store, artifact=folder / "films")
    manifest = describe_model(folder / model, base=None if base is None else folder / base)
    async with serving(folder, redis, tmp_path / "cache") as server:
        if reason == "tokenizer":  # which a publisher refuses, unless it is stored already
            chosen = ModelFolder(directory=folder / model, manifest=manifest)
            with pytest.raises(ArtifactError, match=detail):
                await publish(store, artifact=None, catalogue="films", model=chosen)
        with staged(folder / model, list(manifest.parts), manifest.to_bytes()) as stage:
            stored = await store.add(stage)
        published = await publish(store, artifact=None, catalogue="films", model=stored)
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await server.info())["refusals"]:  # noqa: ASYNC110 - as an operator looks
                await asyncio.sleep(0.01)
        (refused,) = found["refusals"]
        assert refused["version"] == published.version
        assert (refused["reason"], detail in refused["detail"]) == (reason, True), refused
        assert (found["model"], found.get("published_model")) == ("own", None)
        assert (await server.ids())[1]["model"] == "own"
        assert f"is refused ({reason})" in (await server.client.get("/readyz")).json()["detail"]
    await store.close()
