"""The screenshots of the page in docs/images: ``igd demo`` in one terminal, then ``python tests/bench/page_shots.py``.

Needs Debian's ``chromium``. A history and a reason in words: light, dark, on a phone; and the tokens at alpha 0.5.
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
    from playwright.async_api import Browser

HISTORY = "/#item=50&item=172&item=174"  # Star Wars, The Empire Strikes Back, Raiders of the Lost Ark
TOKENS = f"{HISTORY}&alpha=0.5&tokens=1"
PATIENCE_MS = 120_000
MOST_BYTES = 450_000
WIDE = {"width": 1280, "height": 960}
SHOTS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": WIDE},
    "dark": {"color_scheme": "dark", "viewport": WIDE},
    "phone": {"color_scheme": "light", **PHONE},
    "tokens": {"color_scheme": "light", "viewport": WIDE},
}


async def shoot(browser: Browser, origin: str, name: str, options: dict[str, Any], folder: Path) -> None:
    async with visiting(browser, origin, path=TOKENS if name == "tokens" else HISTORY, **options) as visit:
        page = visit.page
        await expect(page.locator("#chosen li")).to_have_count(10)
        await expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
        if name == "tokens":
            # Below the middle, so that the numbers leave the first items in sight.
            await page.locator("#chosen li").nth(4).locator(".token:not(.forced)").last.hover()
            await expect(page.get_by_role("tooltip")).to_be_visible()
        else:
            await page.locator("#chosen li").nth(1).get_by_role("button", name="Why this?").click()
            await expect(page.locator("#chosen .why")).to_contain_text("ecause of")
        path = folder / f"page-{name}.png"
        await page.screenshot(path=path)
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
