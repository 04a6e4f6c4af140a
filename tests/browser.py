"""A headless Chromium, and pages in it that are watched: what they ask others for, and what they complain of."""

from __future__ import annotations

import contextlib
import importlib.resources
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from playwright.async_api import async_playwright

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 15_000
PHONE: dict[str, Any] = {
    "viewport": {"width": 375, "height": 800},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
"""Options of a context as wide as a small phone."""

_REFUSED = re.compile(r"responded with a status of (\d{3})")
_RUN_AXE = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.flatMap(({ id, help, nodes }) => nodes.map(({ html }) => `${id} (${help}): ${html}`));
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A page and what it has done.

    Attributes:
        origin: that it was opened from.
        requested: every URL it has asked for.
        complaints: errors on its console, those that a script did not catch, and dialogues.
    """

    page: Page
    origin: str
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self, refusals: Collection[int]) -> None:
        """Chromium itself writes each refused request to the console; those of status ``refusals`` are meant."""

        def keep(message: ConsoleMessage) -> None:
            refused = _REFUSED.search(message.text)
            if message.type == "error" and not (refused and int(refused[1]) in refusals):
                self.complaints.append(message.text)

        def ask(request: Request) -> None:
            self.requested.append(request.url)

        self.page.on("console", keep)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialogue: {dialog.message}"))
        self.page.on("request", ask)

    def assert_kept_to_itself(self) -> None:
        """Nothing was asked of another origin, and nothing went wrong in a script."""
        assert self.requested
        elsewhere = [url for url in self.requested if not url.startswith(f"{self.origin}/")]
        assert elsewhere == []
        assert self.complaints == []


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Debian's; without its own sandbox, which root cannot have."""
    assert CHROMIUM is not None
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def visiting(
    browser: Browser, origin: str, *, path: str = "/", refusals: Collection[int] = (), **options: Any
) -> AsyncIterator[Visit]:
    """Open a page of the server at ``origin`` in a context of its own; ``options`` are the context's."""
    context = await browser.new_context(**{"reduced_motion": "reduce", **options})
    try:
        context.set_default_timeout(PATIENCE_MS)
        visit = Visit(page=await context.new_page(), origin=origin)
        visit.watch(refusals)
        await visit.page.goto(f"{origin}{path}")
        yield visit
    finally:
        await context.close()


async def violations(page: Page) -> list[str]:
    """What axe-core finds against accessibility in what the page shows now, an element a line."""
    if not await page.evaluate("() => 'axe' in window"):
        script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
        await page.evaluate(script.read_text(encoding="utf-8"))
    found: list[str] = await page.evaluate(_RUN_AXE)
    return found


async def tab_to(page: Page, wanted: Locator, *, most: int = 60) -> None:
    """Press Tab until ``wanted`` has the focus."""
    for _ in range(most):
        await page.keyboard.press("Tab")
        if await wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{most} presses of Tab do not lead to {wanted}")
