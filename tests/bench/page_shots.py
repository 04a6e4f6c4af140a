"""The screenshots of the page in docs/images: ``igd demo`` in one terminal, then ``python tests/bench/page_shots.py``.

Needs Debian's ``chromium``. A history by title, alpha 0.5, and a token's numbers: light, dark, and on a phone.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own modules, as pytest finds them
from browser import PHONE, chromium, visiting
from playwright.async_api import expect

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

HISTORY = ("Star Wars (1977)", "The Empire Strikes Back (1980)", "Raiders of the Lost Ark (1981)")
ALPHA = "0.5"
PATIENCE_MS = 120_000
MOST_BYTES = 450_000
SHOTS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", **PHONE},
}


async def fill(page: Page) -> None:
    """Build the history, move alpha, and wait for both rankings."""
    for title in HISTORY:
        await page.locator("#search").fill(title)
        await expect(page.locator("#found li").first).to_contain_text(title)
        await page.keyboard.press("Enter")
        await expect(page.locator("#history .title").last).to_have_text(title)
    await page.locator("#alpha").fill(ALPHA)
    await page.locator("#alpha").blur()
    await expect(page.locator("#chosen-heading")).to_contain_text("Alpha 0.50")
    await expect(page.locator("#baseline .move").first).to_be_visible()
    await expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


async def shoot(browser: Browser, origin: str, name: str, options: dict[str, Any], folder: Path) -> None:
    async with visiting(browser, origin, **options) as visit:
        page = visit.page
        await expect(page.locator("#controls")).to_be_visible()
        await fill(page)
        # Below the middle, so that the numbers leave the first items in sight.
        token = page.locator("#chosen li").nth(7).locator(".token:not(.forced)").last
        await (token.tap() if name == "phone" else token.hover())
        await expect(page.get_by_role("tooltip")).to_be_visible()
        path = folder / f"page-{name}.png"
        if name == "phone":  # what one screen holds; the whole page is many screens long
            await token.evaluate("token => scrollTo(0, token.getBoundingClientRect().top + scrollY - 640)")
        await page.screenshot(path=path, full_page=name != "phone")
        visit.assert_kept_to_itself()
    size = path.stat().st_size
    print(f"{path}: {size} bytes")  # noqa: T201
    if size > MOST_BYTES:
        raise SystemExit(f"{path}: more than {MOST_BYTES} bytes")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--origin", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "images")
    args = parser.parse_args()
    expect.set_options(timeout=PATIENCE_MS)
    async with chromium() as browser:
        for name, options in SHOTS.items():
            await shoot(browser, args.origin, name, options, args.out)


if __name__ == "__main__":
    asyncio.run(main())
