"""Versions that name a published model, on fake engines: which model is open when, and what is refused."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.catalogues.models import Models
from igd_server.catalogues.opening import OpenedModel
from publishing import BreakableStore, deployed, edition, live_deployment, model_folder, publish, serves, until

from igd_core.artifact import save_artifact
from igd_core.engines.fake import FakeEngine
from igd_core.errors import EngineError, ModelError
from igd_core.store import publishing
from igd_core.store.bundles import Chunk
from igd_core.store.names import MODELS

if TYPE_CHECKING:
    from pathlib import Path

    from igd_server.catalogues.deployment import Deployment

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.search.engine import Engine
    from igd_core.store.published_models import ModelManifest
    from igd_core.store.publishing import ModelFolder


@dataclass(slots=True)
class Machine:
    """Opens models that are texts, and notes it; while ``broken``, no published one; closing waits for ``exit``.

    While it ``keeps_versions``, none can be unloaded.
    """

    opened: list[str] = field(default_factory=list)
    closing: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    broken: bool = False
    keeps_versions: bool = False
    exit: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.exit.set()

    def own(self) -> OpenedModel:
        return self._model("own")

    def published(self, folder: Path, manifest: ModelManifest, _: Engine) -> OpenedModel:
        if self.broken:
            raise ModelError(f"model {manifest.version}: architecture 'odd' gives other logits")
        return self._model((folder / "model.safetensors").read_text())

    def _model(self, weights: str) -> OpenedModel:
        self.opened.append(weights)
        machine = self

        class Engine(FakeEngine):
            async def unload(self, version: str) -> None:
                if machine.keeps_versions:
                    raise EngineError("workers failed at unload")
                await super().unload(version)

            async def close(self) -> None:
                machine.closing.append(weights)
                await machine.exit.wait()
                machine.closed.append(weights)
                await super().close()

        return OpenedModel(
            engine=Engine(weights=weights),
            token_texts=lambda _, ids: list(map(str, ids)),
            open_published=self.published,
            leaves=True,
        )


@pytest.fixture
def store() -> BreakableStore:
    return BreakableStore()


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="module")
def editions(tokenizer: TitleTokenizer) -> list[Artifact]:
    return [edition(tokenizer, number) for number in range(3)]


@pytest.fixture
def tuned(tmp_path: Path, tokenizer: TitleTokenizer) -> ModelFolder:
    return model_folder(tmp_path / "tuned", "tuned", tokenizer_sha256=tokenizer.fingerprint)


def on(machine: Machine, **changes: Any) -> dict[str, Any]:
    return {"open_model": lambda _: machine.own(), **changes}


def weights(deployment: Deployment, name: str | None = None) -> str:
    return deployment.served(name).model.checkpoint


async def opened(machine: Machine, folder: Path, tokenizer: TitleTokenizer, texts: str) -> tuple[Models, list[str]]:
    """Models with the server's own one, and names of published ones on this disk; each has its users to come."""
    models = Models(machine.own, store=BreakableStore(), parent=folder, max_bytes=1, adapters={})
    await models.start()
    await models.settle()
    names = []
    for text in texts:
        made = model_folder(folder / text, text, tokenizer_sha256=tokenizer.fingerprint)
        names.append(made.manifest.version)
        (made.directory / "manifest.json").write_bytes(made.manifest.to_bytes())
        (folder / MODELS).mkdir(exist_ok=True)
        made.directory.rename(folder / MODELS / made.manifest.version)
    return models, names


async def in_use(machine: Machine, folder: Path, tokenizer: TitleTokenizer, texts: str) -> tuple[Models, list[str]]:
    """As `opened`, and each published model has a user; what closes from now on waits for ``machine.exit``."""
    models, names = await opened(machine, folder, tokenizer, texts)
    for name in names:
        await models.join(name)
    machine.exit.clear()
    return models, names


async def test_a_model_that_gets_a_user_while_another_one_closes_stays_open(
    machine: Machine, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    models, (first, _) = await in_use(machine, tmp_path, tokenizer, "ab")
    leaving = asyncio.create_task(models.leave(first))
    await until(lambda: machine.closing == ["own"])
    again = await models.join(first)
    machine.exit.set()
    await leaving
    assert machine.closed == ["own"]
    assert again.engine.stats().healthy
    assert machine.opened == ["own", "a", "b"]
    await models.leave(first)
    assert machine.closed == ["own", "a"]
    assert models.healthy


async def test_models_that_lose_their_users_at_the_same_time_are_closed_once_each(
    machine: Machine, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    models, names = await in_use(machine, tmp_path, tokenizer, "abc")
    first = asyncio.create_task(models.leave(names[0]))
    await until(lambda: machine.closing == ["own"])
    second = asyncio.create_task(models.leave(names[1]))
    await until(lambda: len(machine.closing) == 2)
    machine.exit.set()
    await asyncio.gather(first, second)
    assert sorted(machine.closed) == ["a", "b", "own"]


async def test_a_model_that_loses_its_user_while_all_are_closed_keeps_no_other_one_open(
    machine: Machine, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    models, names = await in_use(machine, tmp_path, tokenizer, "abc")
    closing = asyncio.create_task(models.close())
    await until(lambda: len(machine.closing) == 1)
    leaving = [asyncio.create_task(models.leave(name)) for name in names]
    await asyncio.sleep(0)
    machine.exit.set()
    await asyncio.gather(closing, *leaving)
    assert sorted(machine.closed) == ["a", "b", "c", "own"]
    await models.close()


async def test_the_own_model_is_closed_once_the_first_version_is_served_with_another(
    store: BreakableStore, machine: Machine, editions: list[Artifact], tuned: ModelFolder, tmp_path: Path
) -> None:
    save_artifact(editions[0], tmp_path / "films")
    published = await publishing.publish(store, artifact=tmp_path / "films", model=tuned)
    store.broken = True
    async with deployed(store, tmp_path / "cache", **on(machine)) as deployment:
        assert deployment.current is None
        store.broken = False
        await serves(deployment, published.version)
        await until(lambda: machine.closed == ["own"])
        assert weights(deployment) == "tuned"


async def test_a_version_is_served_with_the_model_it_names_and_the_model_before_is_closed(
    store: BreakableStore, machine: Machine, editions: list[Artifact], tuned: ModelFolder, tmp_path: Path
) -> None:
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache", **on(machine)) as deployment:
        assert weights(deployment) == "own"
        with deployment.lease() as kept:
            published = await publishing.publish(store, artifact=None, catalogue="films", model=tuned)
            await serves(deployment, published.version)
            assert weights(deployment) == "tuned"
            await asyncio.sleep(0)
            assert kept.model.checkpoint == "own"
            assert machine.closed == []  # a request still runs on it
        await until(lambda: machine.closed == ["own"])
        await store.roll_back("films", first)
        await serves(deployment, first)
        assert weights(deployment) == "own"
        await until(lambda: machine.closed == ["own", "tuned"])
        assert machine.opened == ["own", "tuned", "own"]


async def test_a_version_that_its_engine_fails_to_unload_does_not_keep_the_model_open(
    store: BreakableStore,
    machine: Machine,
    editions: list[Artifact],
    tuned: ModelFolder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache", **on(machine)) as deployment:
        machine.keeps_versions = True
        published = await publishing.publish(store, artifact=None, catalogue="films", model=tuned)
        await serves(deployment, published.version)
        await until(lambda: machine.closed == ["own"])
        await until(lambda: "unload_failed" in [record.msg for record in caplog.records])


async def test_two_catalogues_share_a_model_and_the_last_to_leave_closes_it(
    store: BreakableStore, machine: Machine, tokenizer: TitleTokenizer, tuned: ModelFolder, tmp_path: Path
) -> None:
    names = ("films", "books")
    for name in names:
        save_artifact(edition(tokenizer, 0, name=name), tmp_path / name)
        await publishing.publish(store, artifact=tmp_path / name, model=tuned)
    async with deployed(store, tmp_path / "cache", **on(machine, catalogues=names)) as deployment:
        assert [weights(deployment, name) for name in names] == ["tuned", "tuned"]
        assert machine.opened == ["own", "tuned"]
        await until(lambda: machine.closed == ["own"])  # once every catalogue has been looked at
        back = await publishing.publish(store, artifact=None, catalogue="books", model="own")
        await serves(deployment, back.version, "books")
        assert machine.opened == ["own", "tuned", "own"]
        assert weights(deployment, "films") == "tuned"
        assert machine.closed == ["own"]


@pytest.mark.parametrize(
    "expected",
    [
        ("model", "architecture 'odd'"),
        ("damaged", "model.safetensors"),
        ("missing", "is not stored"),
        ("model", "max_model_bytes is 3"),
        ("model", "variants name 'mild'"),
    ],
)
async def test_a_version_whose_model_cannot_serve_is_refused_and_what_is_served_stays(
    store: BreakableStore,
    machine: Machine,
    editions: list[Artifact],
    tuned: ModelFolder,
    tmp_path: Path,
    expected: tuple[str, str],
) -> None:
    reason, detail = expected
    settings: dict[str, Any] = {}
    if "odd" in detail:
        machine.broken = True
    elif "max" in detail:
        settings["max_model_bytes"] = 3
    elif "mild" in detail:
        settings |= {"variants": ({"name": "b", "adapter": "mild"},), "adapters": (("mild", tmp_path),)}
    first = await publish(store, editions[0], tmp_path)
    async with deployed(store, tmp_path / "cache", **on(machine, settings=settings)) as deployment:
        published = await publishing.publish(store, artifact=None, catalogue="films", model=tuned, activate=False)
        model = str(published.model)
        if reason == "damaged":
            stored = store._shelves[MODELS].versions[model]
            stored.chunks[Chunk(name="model.safetensors", index=0)] = b"bad!!"
        elif reason == "missing":
            del store._shelves[MODELS].versions[model]
        await store.activate("films", published.version)
        live = deployment.live("films")
        assert live is not None
        await until(lambda: published.version in live.refusals)
        refusal = live.refusals.of(published.version)
        assert refusal is not None
        assert (refusal.reason, detail in refusal.detail) == (reason, True), refusal.detail
        assert deployment.served().version == first
        assert weights(deployment) == "own"
        assert machine.closed == []
        assert deployment.why_not_ready() is None


async def test_a_server_that_cannot_reach_its_store_starts_from_disk_with_the_model_too(
    store: BreakableStore, machine: Machine, editions: list[Artifact], tuned: ModelFolder, tmp_path: Path
) -> None:
    save_artifact(editions[0], tmp_path / "films")
    published = await publishing.publish(store, artifact=tmp_path / "films", model=tuned)
    async with deployed(store, tmp_path / "cache", **on(machine)) as deployment:
        await until((tmp_path / "cache" / "films" / ".last-served").exists)
        assert weights(deployment) == "tuned"
    store.broken = True
    async with deployed(store, tmp_path / "cache", **on(machine)) as deployment:
        await serves(deployment, published.version)
        assert weights(deployment) == "tuned"
    shutil.rmtree(tmp_path / "cache" / MODELS)
    async with deployed(store, tmp_path / "cache", **on(machine)) as deployment:
        live = deployment.live("films")
        assert live is not None
        await until(lambda: published.version in live.refusals)
        assert deployment.current is None


async def test_models_that_no_version_on_this_disk_names_are_deleted_from_it(
    store: BreakableStore,
    machine: Machine,
    editions: list[Artifact],
    tokenizer: TitleTokenizer,
    tmp_path: Path,
) -> None:
    await publish(store, editions[0], tmp_path)
    folders = [model_folder(tmp_path / text, text, tokenizer_sha256=tokenizer.fingerprint) for text in ("a", "b", "c")]
    async with deployed(store, tmp_path / "cache", **on(machine)) as deployment:
        for folder in folders:
            published = await publishing.publish(store, artifact=None, catalogue="films", model=folder)
            await serves(deployment, published.version)
        here = {folders[1].manifest.version, folders[2].manifest.version}  # served now, and before
        models = tmp_path / "cache" / MODELS
        await until(lambda: {path.name for path in models.iterdir() if path.name[0] != "."} == here)


async def test_an_artifact_in_a_folder_cannot_name_a_published_model(
    store: BreakableStore, machine: Machine, editions: list[Artifact], tuned: ModelFolder, tmp_path: Path
) -> None:
    save_artifact(editions[0], tmp_path / "films")
    published = await publishing.publish(store, artifact=tmp_path / "films", model=tuned)
    folder = await store.fetch("films", published.version, tmp_path / "fetched")
    deployment = live_deployment(store, tmp_path, FakeEngine(), **on(machine))
    deployment._settings = deployment._settings.model_copy(update={"artifact": folder, "catalogues": ()})
    await deployment.start()
    assert "published models come from a store" in str(deployment.failure)
    await deployment.close()
