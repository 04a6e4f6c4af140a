"""What every test of the page needs: a browser, and servers to visit."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
from browser import Visit, chromium, visiting
from films import ITEM_IDS
from page_site import ALL_GENRES, ALL_TITLES, Parts

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.items import Catalogue
from igd_core.scorers.options import ScorerOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from page_site import Open, Site
    from playwright.async_api import Browser

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def parts(
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
    tmp_path_factory: pytest.TempPathFactory,
) -> Parts:
    catalogue = Catalogue.build(
        item_ids=[*ITEM_IDS, "script", "long"],
        titles=ALL_TITLES,
        frequency=np.arange(len(ALL_TITLES), 0, -1),
        metadata={
            "genres": ALL_GENRES,
            "year": [1990 + row for row in range(len(ALL_TITLES))],
        },
    )
    return Parts(
        artifact=build_artifact(catalogue, tokenizer, BuildOptions(name="films", alpha=0.2)),
        tokenizer=tokenizer,
        checkpoint=checkpoint_of("llama-fp32"),
        root=tmp_path_factory.mktemp("page"),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(parts: Parts) -> AsyncIterator[Site]:
    async with parts.site() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scored(parts: Parts) -> AsyncIterator[Site]:
    """A site whose catalogue knows that people went from each third film to the one after the next two."""
    scorer = ScorerOptions(kind="transitions", gamma=((0, 0.25), (2, 0.75)))
    options = BuildOptions(name="films", alpha=0.2, scorer=scorer)
    chosen = [np.arange(0, len(ALL_TITLES), 3, dtype=np.int32)] * 4
    artifact = build_artifact(parts.artifact.catalogue, parts.tokenizer, options, sequences=chosen)
    async with replace(parts, artifact=artifact).site() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser, site: Site) -> AsyncIterator[Open]:
    """``await visit(refusals=(401,), color_scheme="dark")`` opens the page, without a history, explained by tokens."""
    made: list[Visit] = []
    async with contextlib.AsyncExitStack() as stack:

        async def open_page(origin: str = site.origin, path: str = "/#tokens=1", **options: Any) -> Visit:
            made.append(await stack.enter_async_context(visiting(browser, origin, path=path, **options)))
            return made[-1]

        yield open_page
        for one in made:
            one.assert_kept_to_itself()
