"""All parts of a server on the catalogue of films and a fake engine, without sockets."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import httpx
from igd_server.app import Apps, Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.settings import Settings

from igd_core.engines.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path
    from typing import Any

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer


@contextlib.asynccontextmanager
async def running(artifact: Artifact, tokenizer: TitleTokenizer, root: Path, **settings: Any) -> AsyncIterator[Apps]:
    sources = Sources(
        open_model=lambda _: OpenedModel(engine=FakeEngine(), token_texts=tokenizer.token_texts),
        read_artifact=lambda _: artifact,
        web_directory=root / "web",
    )
    apps = create_apps(Settings(artifact=root, model="fake", **settings), sources)
    await apps.deployment.start()
    assert apps.deployment.failure is None
    yield apps
    await apps.deployment.close()
    await apps.store.close()


async def ask(apps: Apps, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=apps.main, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        return await (client.get(path) if body is None else client.post(path, json=body))
