"""Makes the page's pictures in docs/images: `igd demo`, then `python docs/screenshots.py` beside it.

Needs the development environment and chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
from pathlib import Path

from playwright.async_api import Page, async_playwright

IMAGES = Path(__file__).parent / "images"
HISTORY = "item=50&item=172&item=174"


async def _ready(page: Page, address: str) -> None:
    await page.goto(address)
    await page.locator("#chosen .item").nth(9).wait_for()
    await page.locator("#popular .item").nth(9).wait_for()
    await page.locator("#results[aria-busy=false]").wait_for()


async def shoot(origin: str) -> None:
    """Write page-light, page-dark, page-tokens and page-phone."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = await browser.new_page(viewport={"width": 1280, "height": 960}, color_scheme=scheme)
            await _ready(page, f"{origin}/#{HISTORY}")
            await page.get_by_text("Why this?").nth(1).click()
            await page.locator("#chosen").get_by_text("Because of").wait_for()
            await page.mouse.move(0, 0)
            await page.screenshot(path=IMAGES / f"page-{scheme}.png")
        page = await browser.new_page(viewport={"width": 1280, "height": 960})
        await _ready(page, f"{origin}/#{HISTORY}&tokens=1&alpha=0.5")
        await page.locator("#baseline .item").nth(9).wait_for()
        await page.locator("#chosen .token", has_text=re.compile("^ade$")).first.hover()
        await page.get_by_role("tooltip").wait_for()
        await page.wait_for_timeout(1000)  # the line that told of work fades
        await page.screenshot(path=IMAGES / "page-tokens.png")
        phone = await browser.new_context(
            viewport={"width": 375, "height": 800}, device_scale_factor=2, is_mobile=True, has_touch=True
        )
        page = await phone.new_page()
        await _ready(page, f"{origin}/#{HISTORY}")
        await page.get_by_text("Why this?").nth(1).tap()
        await page.locator("#chosen").get_by_text("Because of").wait_for()
        await page.locator("#settings").evaluate("settings => scrollTo(0, settings.offsetTop - 60)")
        await page.screenshot(path=IMAGES / "page-phone.png")
        await browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--origin", default="http://127.0.0.1:8000")
    asyncio.run(shoot(parser.parse_args().origin))
