"""``/docs`` in a real Chromium: Swagger UI from this package's files, under every page's policy, asking nobody else."""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING

import httpx
import pytest
from browser import CHROMIUM, chromium, visiting
from film_apps import running
from films import film_artifact
from igd_server.http.routes.web import DOCS_DIRECTORY
from playwright.async_api import expect
from sockets import listening

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer


def test_swagger_ui_is_the_one_that_its_makers_published() -> None:
    said = (DOCS_DIRECTORY / "README.md").read_text(encoding="utf-8")
    sums = dict(re.findall(r"^\| `(\S+)` \| ([0-9a-f]{64}) \|$", said, re.MULTILINE))
    assert {"swagger-ui-bundle.js", "swagger-ui.css", "LICENSE", "NOTICE"} < sums.keys()
    for name, expected in sums.items():
        assert hashlib.sha256((DOCS_DIRECTORY / name).read_bytes()).hexdigest() == expected, name
    page = (DOCS_DIRECTORY / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    for name in re.findall(r'"docs/([^"]+)"', page):
        assert (DOCS_DIRECTORY / name).is_file(), name


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
async def test_the_documentation_shows_every_operation_and_tries_one_and_asks_nobody_else(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        apps = await stack.enter_async_context(running(film_artifact(tokenizer), tokenizer, tmp_path))
        origin = f"http://127.0.0.1:{await stack.enter_async_context(listening(apps.main))}"
        browser = await stack.enter_async_context(chromium())
        visit = await stack.enter_async_context(visiting(browser, origin, path="/docs"))
        page = visit.page
        operations = page.locator(".opblock")
        await expect(operations.first).to_be_visible()
        described = apps.main.openapi()["paths"]
        await expect(operations).to_have_count(sum(len(methods) for methods in described.values()))
        health = page.locator("#operations-operations-health_healthz_get")
        await health.locator(".opblock-summary-control").click()
        await health.get_by_role("button", name="Try it out").click()
        await health.get_by_role("button", name="Execute").click()
        answer = health.locator(".live-responses-table td.response-col_description:not(.col_header)")
        await expect(answer).to_contain_text('"status": "ok"')
        visit.assert_kept_to_itself()
        async with httpx.AsyncClient(base_url=origin) as client:
            answers = [await client.get(path) for path in ("/docs", "/docs/show.js", "/docs/swagger-ui-bundle.js")]
            assert (await client.get("/docs/../settings.py")).status_code == 404
    for found in answers:
        assert found.status_code == 200
        policy = found.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "http" not in policy
