"""A small catalogue of films with everything that is awkward in one, and an app that serves it on a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from factories import EOS
from igd_server.app import Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.settings import Settings
from patience import PATIENCE_S

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.items import Catalogue
from igd_core.engines.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import TypeAlias

    from fastapi import FastAPI
    from igd_server.catalogues.deployment import Deployment

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring

    Run: TypeAlias = Callable[..., AbstractAsyncContextManager["Running"]]

HOSTILE_TITLE = f"Say \"Stop{EOS}\" & 'Go'"
TITLES = [
    "Star Wars",
    "Star Trek: First Contact",
    "Stargate",
    "The Star Maker",
    "Mustard",
    "Fargo",
    "The English Patient",
    "Scream",
    "Toy Story",
    "Twelve Monkeys",
    "Twelve Angry Men",
    "Le Fabuleux Destin d'Amélie Poulain",
    "Alien",
    "Aliens",
    "Alien 3",
    "Sabrina",
    "Sabrina",  # another film of the same title
    "La Vie de Bohème",
    "七人の侍",
    HOSTILE_TITLE,
]
ITEM_IDS = [*(str(row + 1) for row in range(len(TITLES) - 1)), "odd/id 20%"]
GENRES = [("Action", "Sci-Fi")] * 4 + [("Drama",)] * 8 + [("Horror", "Sci-Fi")] * 3 + [("Romance",)] * 3 + [()] * 2
NUM_ITEMS = len(TITLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started app and a client for it."""

    client: httpx.AsyncClient
    app: FastAPI
    deployment: Deployment
    settings: Settings

    async def recommend(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/recommendations", json=body)


class RecordingEngine(FakeEngine):
    """Keeps every prompt it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[list[int]] = []

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        self.prompts.append(list(prompt_ids))
        return await super().open(version, prompt_ids, scoring)


class SlowEngine(RecordingEngine):
    """Takes a while for each call of the model."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.warm_delay_s = delay_s

    def slow_down(self) -> None:
        """Warming is over."""
        self._delay_s = self.warm_delay_s
        self.prompts.clear()


def film_artifact(tokenizer: TitleTokenizer) -> Artifact:
    """Popularity falls with the row."""
    catalogue = Catalogue.build(
        item_ids=ITEM_IDS,
        titles=TITLES,
        frequency=np.arange(NUM_ITEMS, 0, -1),
        metadata={"genres": GENRES, "year": [1990 + row for row in range(NUM_ITEMS)]},
    )
    return build_artifact(catalogue, tokenizer, BuildOptions(name="films"))


def app_runner(artifact: Artifact, tokenizer: TitleTokenizer, directory: Path) -> Run:
    """``async with run(engine, max_batch=2) as running`` starts an app; its page lies in ``directory / "web"``."""

    @contextlib.asynccontextmanager
    async def run(engine: FakeEngine | None = None, **changes: Any) -> AsyncIterator[Running]:
        settings = Settings(artifact=directory, model="fake", **changes)
        sources = Sources(
            open_model=lambda _: OpenedModel(engine=engine or FakeEngine(), token_texts=tokenizer.token_texts),
            read_artifact=lambda _: artifact,
            web_directory=directory / "web",
        )
        apps = create_apps(settings, sources)
        transport = httpx.ASGITransport(app=apps.main, raise_app_exceptions=False)
        async with (
            apps.main.router.lifespan_context(apps.main),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            async with asyncio.timeout(PATIENCE_S):
                while apps.deployment.why_not_ready() is not None:
                    assert apps.deployment.failure is None
                    await asyncio.sleep(0.001)
            yield Running(client=client, app=apps.main, deployment=apps.deployment, settings=settings)

    return run
