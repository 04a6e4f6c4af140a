"""A server that a browser visits: real, with a tiny model, and what visitors of its page do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
from browser import PATIENCE_MS, Visit
from films import GENRES, TITLES
from igd_server.app import Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.settings import Settings
from patience import PATIENCE_S
from playwright.async_api import Page, expect
from sockets import listening

from igd_core.engines.embedded.engine import TreeEngine, TreeSession

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.search.session import Scoring

    Open: TypeAlias = Callable[..., Awaitable[Visit]]

SCRIPT_TITLE = "<img src=x onerror=alert(1)> & <script>alert(2)</script>"
LONG_TITLE = "Supercalifragilistic" * 4
ALL_TITLES = [*TITLES, SCRIPT_TITLE, LONG_TITLE]
ALL_GENRES = [*GENRES, ("Drama",), ("Drama",)]
GENRE_OF = dict(zip(ALL_TITLES, ALL_GENRES, strict=True))
LIKED = ("Action", "Drama", "Sci-Fi")
"""Genres of at least four films."""

expect.set_options(timeout=PATIENCE_MS)


class HeldEngine(TreeEngine):
    """Answers once ``free`` is set, as an engine does that has much to do."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.free = asyncio.Event()
        self.free.set()

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> TreeSession:
        await self.free.wait()
        return await super().open(version, prompt_ids, scoring)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A server that listens.

    Attributes:
        origin: as ``http://127.0.0.1:40123``.
        checkpoint: its model, which a test may make fail.
        engine: its engine, which a test may hold up.
    """

    origin: str
    checkpoint: Checkpoint
    engine: HeldEngine

    async def recommend(self, body: dict[str, Any]) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self.origin) as client:
            response = await client.post("/v1/recommendations", json=body)
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer

    async def until_refused(self, token: str) -> None:
        """Wait until the server has seen that a key is no longer one."""
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=self.origin, headers=headers) as client, asyncio.timeout(PATIENCE_S):
            while (await client.get("/v1/catalogues")).status_code != 401:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every server here is made of."""

    artifact: Artifact
    tokenizer: TitleTokenizer
    checkpoint: Checkpoint
    root: Path

    @contextlib.asynccontextmanager
    async def site(self, loaded: threading.Event | None = None, **settings: Any) -> AsyncIterator[Site]:
        """Serve; the model counts as loaded once ``loaded`` is set."""
        engine = HeldEngine(self.checkpoint)

        def open_model(_: Settings) -> OpenedModel:
            if loaded is not None:
                loaded.wait(PATIENCE_MS / 1000)
            return OpenedModel(engine=engine, token_texts=self.tokenizer.token_texts)

        # Answers are not kept: every test gets its own.
        given = Settings(artifact=self.root, model="tiny-llama", result_ttl_s=0, **settings)
        apps = create_apps(given, Sources(open_model=open_model, read_artifact=lambda _: self.artifact))
        async with apps.main.router.lifespan_context(apps.main), listening(apps.main) as port:
            if loaded is None:
                async with asyncio.timeout(PATIENCE_MS / 1000):
                    while apps.deployment.why_not_ready() is not None:  # noqa: ASYNC110 - as a probe does
                        await asyncio.sleep(0.01)
            yield Site(origin=f"http://127.0.0.1:{port}", checkpoint=self.checkpoint, engine=engine)


async def add(page: Page, title: str) -> None:
    """Search for a title and take the best match."""
    search = page.get_by_role("combobox", name="Add an item by title")
    await search.fill(title)
    await expect(page.locator("#found li").first).to_contain_text(title)
    await search.press("Enter")
    await expect(page.locator("#history .title").last).to_have_text(title)


async def ranked(page: Page) -> None:
    """Wait for the answer and the one beside it."""
    await expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    await expect(page.locator("#answer")).to_be_visible()


async def titles(page: Page, ranking: str = "chosen") -> list[str]:
    return await page.locator(f"#{ranking} .item > .title").all_inner_texts()


async def shown_request(page: Page) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The URL, the headers and the body of the curl command that the page shows."""
    words = shlex.split((await page.locator("#curl").inner_text()).replace("\\\n", " "))
    assert words[0] == "curl"
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    return words[1], headers, json.loads(words[words.index("-d") + 1])


async def assert_fits(page: Page, width: int) -> None:
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert await page.evaluate("() => document.body.scrollWidth") <= width
