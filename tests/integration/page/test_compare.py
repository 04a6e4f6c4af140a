"""The page at ``/compare``: two lists for the same people, judged blind; what is counted, and what is made of it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from browser import CHROMIUM, PHONE, violations
from igd_server.http.keys import KeyFile, make_key, write_keys
from igd_server.variants import Variant
from page_site import ALL_TITLES, assert_fits
from playwright.async_api import expect
from scipy.stats import binomtest

if TYPE_CHECKING:
    from pathlib import Path

    from page_site import Open, Parts, Site
    from playwright.async_api import Page, Route

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]

SERVED, POPULAR, SCORER = "As served", "Most popular", "Transitions alone"


async def compared(page: Page) -> None:
    """Wait for both lists."""
    await expect(page.locator("#better-1")).to_be_enabled()


async def listed(page: Page, side: int) -> list[str]:
    return await page.locator(f"#list-{side} .title").all_inner_texts()


async def asked_for(page: Page, site: Site) -> dict[str, list[str]]:
    """What the server gives for the history that the page names: as served, by the scorer alone."""
    said = (await page.locator("#person-history").inner_text()).removeprefix("History: ")
    ids = [str(1 + ALL_TITLES.index(title)) for title in said.split(", ")]
    return {
        name: [item["title"] for item in (await site.recommend({"history": ids, **more}))["items"]]
        for name, more in {SERVED: {}, SCORER: {"gamma": 1}}.items()
    }


async def ratings(page: Page) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = json.loads(await page.evaluate("() => localStorage.getItem('igd-ratings') ?? '[]'"))
    return kept


async def test_a_judgement_counts_for_the_list_that_stood_there_and_is_told_afterwards(
    visit: Open, scored: Site
) -> None:
    page = (await visit(scored.origin, path="/compare")).page
    people = set()
    for key, heading in (("1", 0), ("2", 1), ("0", None)):
        await compared(page)
        assert await page.locator("h3").all_inner_texts() == ["List 1", "List 2"]  # nobody knows which is which
        people.add(await page.locator("#person").inner_text())
        shown = [await listed(page, side) for side in (1, 2)]
        lists = await asked_for(page, scored)
        await page.locator("#judging").press(key)
        kept = (await ratings(page))[-1]
        names = [kept["first"], kept["second"]]
        assert sorted(names) == [SERVED, SCORER]
        assert [lists[name] for name in names] == shown
        await expect(page.locator("#last")).to_have_text(f"Before: 1 was {names[0]}, 2 was {names[1]}.")
        assert kept["better"] == (None if heading is None else names[heading])
    assert len(people) == 3
    counts = [rating["better"] for rating in await ratings(page)]
    expected = "".join(f"{name}{counts.count(better)}" for name, better in
                       ((SERVED, SERVED), (SCORER, SCORER), ("No difference", None)))  # fmt: skip
    await expect(page.locator("#counts")).to_have_text(expected)
    await compared(page)
    await page.reload()
    await expect(page.locator("#counts")).to_have_text(expected)
    async with page.expect_download() as downloading:
        await page.get_by_role("button", name="Download").click()
    file = await (await downloading.value).path()
    assert json.loads(await asyncio.to_thread(file.read_text, "utf-8")) == await ratings(page)
    await page.get_by_label("The other").select_option(POPULAR)  # another pair, without ratings
    await expect(page.locator("#counts")).to_have_text(f"{SERVED}0{POPULAR}0No difference0")
    await page.get_by_label("The other").select_option(SCORER)
    await page.get_by_role("button", name="Start over").click()
    await expect(page.locator("#verdict")).to_have_text("Nothing is decided yet.")
    assert await ratings(page) == []


async def test_seen_openly_each_list_has_its_name_and_what_the_other_lacks_is_marked(visit: Open, scored: Site) -> None:
    page = (await visit(scored.origin, path="/compare")).page
    await page.get_by_label(re.compile("Blind")).uncheck()
    await compared(page)
    lists = await asked_for(page, scored)
    for side, name in ((1, SERVED), (2, SCORER)):
        await expect(page.locator(f"#list-{side}-heading")).to_have_text(f"List {side}: {name}")
        assert await listed(page, side) == lists[name]
        marked = await page.locator(f"#list-{side} li:has(.new) .title").all_inner_texts()
        other = lists[SCORER if name == SERVED else SERVED]
        assert marked == [title for title in lists[name] if title not in other]
    assert await violations(page) == []
    await page.get_by_label("One list").select_option(SCORER)
    await expect(page.get_by_role("alert")).to_contain_text("one and the same")
    await expect(page.locator("#better-1")).to_be_disabled()
    await page.locator("#judging").press("1")
    assert await ratings(page) == []


@pytest.mark.parametrize(
    ("wins", "losses", "begins"),
    [(18, 2, f"{SERVED} is better"), (2, 18, f"{POPULAR} is better"), (6, 4, "Not told apart yet")],
)
async def test_the_verdict_needs_an_interval_that_leaves_out_one_half(
    visit: Open, wins: int, losses: int, begins: str
) -> None:
    page = (await visit(path="/compare")).page
    await compared(page)
    await page.locator("#judging").press("0")
    pair = (await ratings(page))[0]["pair"]
    made = [{"pair": pair, "better": name} for name, count in ((SERVED, wins), (POPULAR, losses)) for _ in range(count)]
    await page.evaluate("made => localStorage.setItem('igd-ratings', JSON.stringify(made))", made)
    await page.reload()
    low, high = binomtest(wins, wins + losses).proportion_ci(method="wilson")
    numbers = (
        f"{SERVED} was better in {wins / (wins + losses):.0%} of {wins + losses} decided ({low:.0%} to {high:.0%})."
    )
    await expect(page.locator("#verdict")).to_have_text(f"{begins}: {numbers}".replace("%", " %"))


async def test_an_answer_by_popularity_is_not_judged_as_the_models(visit: Open, site: Site) -> None:
    page = (await visit(path="/compare")).page
    await compared(page)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = site.checkpoint.model.register_forward_pre_hook(fail)
    try:
        await page.get_by_role("button", name="Skip this person").click()
        await expect(page.get_by_role("alert")).to_contain_text("The model did not answer: ")
        await expect(page.locator("#judging li")).to_have_count(0)
        await expect(page.locator("#better-1")).to_be_disabled()
        assert await violations(page) == []
    finally:
        hook.remove()
    await page.get_by_role("button", name="Try again").click()
    await compared(page)


async def test_lists_of_a_version_that_came_meanwhile_are_not_judged_with_those_before(visit: Open) -> None:
    page = (await visit(path="/compare")).page
    await compared(page)

    async def newer(route: Route) -> None:
        response = await route.fetch()
        await route.fulfill(response=response, json={**await response.json(), "version": "f" * 16})

    await page.route("**/v1/recommendations", newer)
    await page.get_by_role("button", name="Skip this person").click()
    await expect(page.get_by_role("alert")).to_contain_text("The server has a new version")
    await page.locator("#judging").press("1")
    assert await ratings(page) == []
    await page.unroute("**/v1/recommendations")
    await page.get_by_role("button", name="Try again").click()
    await compared(page)
    await expect(page.locator("#person")).to_contain_text("(1 of")


async def test_variants_stand_against_each_other_and_a_key_is_asked_for_on_the_first_page(
    visit: Open, parts: Parts, tmp_path: Path
) -> None:
    key = make_key("recommend", frozenset({"recommend"}), None)
    write_keys(tmp_path / "keys.json", KeyFile(keys=(key.stored,)))
    variants = (Variant(name="plain", alpha=0.0), Variant(name="bold", alpha=1.0))
    async with parts.site(keys_file=tmp_path / "keys.json", variants=variants) as site:
        page = (await visit(site.origin, path="/compare", refusals=(401,), **PHONE)).page
        await expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
        await page.get_by_role("link", name="Try it").click()
        await page.get_by_label("This server asks for an API key").fill(key.token)
        await page.get_by_role("button", name="Use this key").click()
        await page.get_by_role("link", name="Compare").click()
        await compared(page)
        for label, name in (("One list", "plain"), ("The other", "bold")):
            await expect(page.get_by_label(label).locator("option:checked")).to_have_text(f"Variant {name}")
        assert len(await listed(page, 1)) == len(await listed(page, 2)) == 10
        await assert_fits(page, PHONE["viewport"]["width"])
        assert await violations(page) == []
