"""Editions of a catalogue to publish, and servers that follow a store."""

from __future__ import annotations

import asyncio
import contextlib
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from igd_server.catalogues.deployment import Deployment
from igd_server.catalogues.opening import OpenedModel
from igd_server.settings import Settings
from patience import PATIENCE_S

from igd_core.artifact import BuildOptions, build_artifact, save_artifact
from igd_core.artifact.counts import PartRecord
from igd_core.catalogue.items import Catalogue
from igd_core.engines.fake import FakeEngine
from igd_core.errors import StoreUnavailable
from igd_core.store.base import StoreOptions
from igd_core.store.memory import MemoryStore
from igd_core.store.published_models import ModelManifest
from igd_core.store.publishing import ModelFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.search.engine import Engine
    from igd_core.store.base import ArtifactStore

PATIENT = StoreOptions(timeout_s=PATIENCE_S)
"""For stores of files: a write waits for the disk, and on a busy machine now and then for long."""
_ITEMS = 12


def edition(tokenizer: TitleTokenizer, number: int, *, name: str = "films") -> Artifact:
    """Twelve items whose ids tell the catalogue and the edition: ``films-3-0`` and so on."""
    catalogue = Catalogue.build(
        item_ids=[f"{name}-{number}-{row}" for row in range(_ITEMS)],
        titles=[f"The {name} of {number}, part {row}" for row in range(_ITEMS)],
        frequency=np.arange(_ITEMS, 0, -1),
        metadata={
            "part": list(range(_ITEMS)),
            "genres": [("drama",)] * _ITEMS,
            "colour": [row % 2 == 0 for row in range(_ITEMS)],
            "director": [None, *["Agnès"] * (_ITEMS - 1)],
            "rating": [None] * _ITEMS,
        },
    )
    return build_artifact(catalogue, tokenizer, BuildOptions(name=name))


async def add(store: ArtifactStore, artifact: Artifact, directory: Path, *, catalogue: str | None = None) -> str:
    """Store an artifact; no pointer names it yet."""
    folder = directory / f"built-{artifact.version}"
    await asyncio.to_thread(save_artifact, artifact, folder)
    return await store.add(folder, catalogue=catalogue)


async def publish(store: ArtifactStore, artifact: Artifact, directory: Path, *, catalogue: str | None = None) -> str:
    """What `igd publish` does."""
    version = await add(store, artifact, directory, catalogue=catalogue)
    await store.activate(catalogue or artifact.manifest.name, version)
    return version


def model_folder(directory: Path, weights: str, *, tokenizer_sha256: str) -> ModelFolder:
    """A checkpoint for stores and fake engines: its weights are a text."""
    files = {"config.json": b"{}", "model.safetensors": weights.encode()}
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    parts = {name: PartRecord(sha256=sha256(data).hexdigest(), bytes=len(data)) for name, data in files.items()}
    manifest = ModelManifest(
        name=directory.name, kind="checkpoint", base="", tokenizer_sha256=tokenizer_sha256, parts=parts
    )
    return ModelFolder(directory=directory, manifest=manifest)


class BreakableStore(MemoryStore):
    """A store that cannot be reached while ``broken``, nor written to while ``full``; counts looks at pointers.

    While ``brittle``, a fetch breaks it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.brittle = False
        self.full = False
        self.looks = 0

    async def current(self, catalogue: str) -> str | None:
        self.looks += 1
        self._reach()
        return await super().current(catalogue)

    async def fetch(self, catalogue: str, version: str, parent: Path) -> Path:
        self.broken = self.broken or self.brittle
        self._reach()
        return await super().fetch(catalogue, version, parent)

    async def hold(self, catalogue: str, version: str, holder: str, ttl_s: float) -> None:
        self._reach()
        if self.full:
            raise StoreUnavailable("told to be full")
        await super().hold(catalogue, version, holder, ttl_s)

    async def activate(self, catalogue: str, version: str) -> None:
        self._reach()
        await super().activate(catalogue, version)

    async def changes(self) -> AsyncIterator[str]:
        self._reach()
        async for name in super().changes():
            self._reach()
            yield name

    def _reach(self) -> None:
        if self.broken:
            raise StoreUnavailable("told to be broken")


class WatchedEngine(FakeEngine):
    """Notes what is loaded and unloaded; a load waits while ``gate`` is closed, an unload while ``exit`` is."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        super().__init__(delay_s=delay_s)
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.loading = 0
        self.most_loading = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.exit = asyncio.Event()
        self.exit.set()

    @property
    def versions(self) -> set[str]:
        return set(self.stats().versions)

    async def load(self, artifact: Artifact) -> None:
        self.loads.append(artifact.version)
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)
        try:
            await self.gate.wait()
            await super().load(artifact)
        finally:
            self.loading -= 1

    async def unload(self, version: str) -> None:
        await asyncio.sleep(0)  # as engines do that ask a worker
        await self.exit.wait()
        self.unloads.append(version)
        await super().unload(version)


def live_deployment(
    store: ArtifactStore,
    cache: Path,
    engine: Engine,
    *,
    catalogues: Sequence[str] = ("films",),
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Deployment:
    """Not started yet; a version passes its trial once it is warm; ``changes`` go to Deployment."""
    trial = {"trial_s": 0.0, "takeover_spread_s": 0.0, **(settings or {})}
    made = Settings(catalogues=tuple(catalogues), model="fake", cache_dir=cache, poll_s=0.02, **trial)
    model = OpenedModel(engine=engine, token_texts=lambda _, ids: list(map(str, ids)))
    return Deployment(made, **{"store": store, "open_model": lambda _: model, **changes})


@contextlib.asynccontextmanager
async def deployed(
    store: ArtifactStore, cache: Path, engine: Engine | None = None, **changes: Any
) -> AsyncIterator[Deployment]:
    """A started deployment."""
    deployment = live_deployment(store, cache, engine or FakeEngine(), **changes)
    await deployment.start()
    try:
        assert deployment.failure is None
        yield deployment
    finally:
        await deployment.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - as an operator looks at a page
            await asyncio.sleep(0.002)


async def serves(deployment: Deployment, version: str, name: str | None = None) -> None:
    """Wait for a version to be served."""
    await until(lambda: (served := _served(deployment, name)) is not None and served == version)


def _served(deployment: Deployment, name: str | None) -> str | None:
    served = deployment.current if name is None else deployment.serving.get(name)
    return None if served is None else served.version
