"""The pages behind a proxy that serves them below a path of its own: nothing is asked of the paths beside it."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from browser import CHROMIUM, visiting
from fastapi import FastAPI
from page_site import add, ranked, shown_request, titles
from playwright.async_api import expect
from sockets import listening
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from page_site import Site
    from playwright.async_api import Browser
    from starlette.requests import Request

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]
PREFIX = "/shop/films"


@asynccontextmanager
async def proxied(site: Site) -> AsyncIterator[str]:
    """A proxy that takes ``PREFIX`` off and asks the site, as nginx's ``location /shop/films/`` does."""
    async with httpx.AsyncClient(base_url=site.origin, timeout=60) as client:

        async def forward(request: Request) -> Response:
            wanted = {name: request.headers[name] for name in ("content-type", "accept") if name in request.headers}
            path = f"/{request.path_params['path']}?{request.url.query}"
            found = await client.request(request.method, path, content=await request.body(), headers=wanted)
            kept = {name: found.headers[name] for name in ("content-type", "location") if name in found.headers}
            return Response(found.content, found.status_code, kept)

        route = Route(PREFIX + "/{path:path}", forward, methods=["GET", "HEAD", "POST"])
        async with listening(FastAPI(routes=[route])) as port:
            yield f"http://127.0.0.1:{port}{PREFIX}"


async def test_the_pages_work_below_a_path(site: Site, browser: Browser) -> None:
    async with proxied(site) as origin, visiting(browser, origin, path="/#tokens=1") as visit:
        await add(visit.page, "Star Wars")
        await ranked(visit.page)
        answer = await site.recommend({"history": ["1"], "k": 10, "alpha": 0.2, "beams": 10})
        assert await titles(visit.page) == [item["title"] for item in answer["items"]]
        url, _, _ = await shown_request(visit.page)
        assert url.startswith(f"{origin}/v1/")
        await visit.page.get_by_role("link", name="Compare").click()
        await expect(visit.page).to_have_url(re.compile(rf"^{origin}/compare"))
        await visit.page.get_by_role("link", name="API").click()
        await expect(visit.page.get_by_text("/v1/recommendations", exact=True).first).to_be_visible()
        visit.assert_kept_to_itself()
