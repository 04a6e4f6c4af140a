"""What somebody sees who only looks: a person's list at once, reasons in words, and an address to send on."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import CHROMIUM, PHONE, violations, visiting
from films import ITEM_IDS, TITLES
from page_site import ALL_TITLES, GENRE_OF, LIKED, SCRIPT_TITLE, add, ranked, shown_request, titles
from playwright.async_api import expect

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.items import Catalogue

if TYPE_CHECKING:
    from page_site import Open, Parts, Site
    from playwright.async_api import Browser, Page, Route

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]

PICTURE = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""A GIF of one point."""


async def history(page: Page) -> list[str]:
    return await page.locator("#history .title").all_inner_texts()


async def fragment(page: Page) -> str:
    found: str = await page.evaluate("() => location.hash")
    return found


async def test_it_opens_with_a_person_their_list_and_what_is_most_popular(visit: Open, site: Site) -> None:
    page = (await visit(path="/")).page
    await ranked(page)
    sample = page.get_by_label("or pick a sample user")
    await expect(sample.locator("option:checked")).to_have_text(f"Likes {LIKED[0]}")
    liked = await history(page)
    assert len(liked) == 4
    ids = [str(ALL_TITLES.index(title) + 1) for title in liked]
    answer = await site.recommend({"history": ids, "k": 10, "alpha": 0.2, "beams": 10})
    assert await titles(page) == [item["title"] for item in answer["items"]]
    await expect(page.locator("#popular .item")).to_have_count(10)
    assert await page.locator(".token, .score").count() == 0
    first = page.locator("#chosen .attributes").first
    genres = ", ".join(GENRE_OF[answer["items"][0]["title"]])
    year = 1990 + ALL_TITLES.index(answer["items"][0]["title"])
    await expect(first).to_have_text(" · ".join(part for part in (genres, f"year {year}") if part))
    assert await violations(page) == []
    await page.get_by_role("button", name="Another").click()
    await expect(sample.locator("option:checked")).to_have_text(f"Likes {LIKED[1]}")
    await ranked(page)


async def test_a_recommended_item_joins_the_history_and_back_takes_it_out_again(visit: Open) -> None:
    page = (await visit(path="/")).page
    await ranked(page)
    before, best = await history(page), (await titles(page))[0]
    await page.get_by_role("button", name=f"Add to history {best}").click()
    await expect(page.locator("#history .title")).to_have_text([*before, best])
    await ranked(page)
    assert best not in await titles(page)
    await page.go_back()
    await expect(page.locator("#history .title")).to_have_text(before)
    await ranked(page)
    assert (await titles(page))[0] == best


async def test_the_address_alone_shows_the_same_to_somebody_else(visit: Open) -> None:
    page = (await visit(path="/")).page
    await page.get_by_role("button", name="Clear").click()
    await add(page, "Star Wars")
    await add(page, "Fargo")
    await page.get_by_role("slider", name="Alpha").fill("0.6")
    await page.get_by_role("slider", name="Beams").fill("23")
    await page.get_by_label("Decisions alone").check()
    await page.locator("#k").select_option("20")
    await page.get_by_label("Only where").select_option("year")
    await page.get_by_label("is", exact=True).fill("..2000")
    await page.get_by_label("Explain by tokens").check()
    await expect(page.locator("#curl")).to_contain_text("2000")
    await expect(page.locator("#chosen-heading")).to_contain_text("decisions alone")
    await ranked(page)
    shown, _, body = [await titles(page), *(await shown_request(page))[1:]]
    other = (await visit(path=f"/{await fragment(page)}")).page
    await ranked(other)
    await expect(other.locator("#chosen-heading")).to_have_text("Alpha 0.60, decisions alone")
    assert (await shown_request(other))[2] == body
    assert await titles(other) == shown
    assert await history(other) == ["Star Wars", "Fargo"]
    await other.get_by_role("button", name="Clear").click()
    await other.reload()
    await expect(other.locator("#message")).to_contain_text("Nothing to go on yet")  # and not the first person


async def test_what_an_address_says_wrongly_is_as_usual_and_unknown_items_are_named(visit: Open) -> None:
    wrong = (
        "alpha=much&beams=9e9&k=1000&where=%3Cimg%3E&is=x&gamma=NaN&item=1&item=nobody&item=<b>&item=.&item=..&item=6"
    )
    page = (await visit(path=f"/#{wrong}", refusals=(404,))).page
    await ranked(page)
    await expect(page.locator("#history-note")).to_contain_text("Not in this catalogue: nobody, <b>, ., ...")
    _, _, body = await shown_request(page)
    assert body == {"history": ["1", "6"], "k": 10, "alpha": 0.2, "forced_weight": 1, "beams": 60}
    assert await history(page) == ["Star Wars", "Fargo"]


async def test_why_names_the_title_without_which_an_item_falls_most(visit: Open, site: Site) -> None:
    ids = ["1", "6", "9"]
    page = (await visit(path="/#item=1&item=6&item=9")).page
    await ranked(page)
    best = (await site.recommend({"history": ids, "alpha": 0.2}))["items"][2]
    row = page.locator("#chosen li").nth(2)
    await row.get_by_role("button", name="Why this?").click()
    expected = await told(site, best, ids)
    await expect(row.locator(".why")).to_have_text(expected)
    await expect(page.locator("#announcement")).to_have_text(expected)
    await expect(row.get_by_role("button", name="Why this?")).to_be_hidden()
    assert await violations(page) == []
    await page.get_by_role("button", name="Remove Fargo").click()
    await page.get_by_role("button", name="Remove Toy Story").click()
    await ranked(page)
    row = page.locator("#chosen li").first
    await row.get_by_role("button", name="Why this?").click()
    await expect(row.locator(".why")).to_have_text("Because of Star Wars, the only title here.")


async def told(site: Site, item: dict[str, Any], ids: list[str]) -> str:
    """The sentence, from one recommendation without each title."""
    losses = {}
    for left in ids:
        rest = [each for each in ids if each != left]
        asked = {"history": rest, "exclude": ids, "k": 20, "alpha": 0.2, "beams": 20}
        found = (await site.recommend(asked))["items"]
        place = next((each for each in found if each["item_id"] == item["item_id"]), None)
        score = place["score"] if place else min(found[-1]["score"], item["score"] - 1e-9)
        losses[left] = (item["score"] - score, place["rank"] if place else math.inf)
    first, *others = sorted(losses, key=lambda left: -losses[left][0])
    most, rank = losses[first]
    if most <= 0:
        return "Not because of one title: without any one of them its score would be no lower."
    second = next((left for left in others if losses[left][0] > 0 and losses[left][0] >= most / 2), None)
    name = ALL_TITLES[int(first) - 1]
    named = f"Because of {name}" + (
        f" and {ALL_TITLES[int(second) - 1]}; without {name}," if second else "; without it,"
    )
    if rank == math.inf:
        return f"{named} it would not be among the first 20."
    still = "" if rank > item["rank"] else " all the same, with a lower score"
    return f"{named} it would be number {rank}{still}."


async def test_items_of_one_title_are_one_reason(visit: Open, parts: Parts) -> None:
    twice = Catalogue.build(
        item_ids=["a", "b", *ITEM_IDS[1:9]], titles=[TITLES[0], *TITLES[:9]], frequency=np.arange(10, 0, -1)
    )
    async with replace(
        parts, artifact=build_artifact(twice, parts.tokenizer, BuildOptions(name="twice"))
    ).site() as own:
        page = (await visit(own.origin, path="/#item=a&item=b")).page
        await ranked(page)
        row = page.locator("#chosen li").first
        await row.get_by_role("button", name="Why this?").click()
        await expect(row.locator(".why")).to_have_text("Because of Star Wars, the only title here.")


async def test_reasons_asked_for_at_once_share_their_rankings(visit: Open) -> None:
    page = (await visit(path="/#item=1&item=6")).page
    await ranked(page)
    asked: list[str | None] = []
    page.on("request", lambda request: asked.append(request.post_data))
    await page.evaluate("() => document.querySelectorAll('.actions button:last-child').forEach((b) => b.click())")
    for row in await page.locator("#chosen li .why").all():
        await expect(row).to_have_text(re.compile("^(Not b|B)ecause of "))
    assert len(asked) == 2  # one without each title, for all ten items


async def test_a_link_that_cannot_be_read_now_is_followed_when_it_is_tried_again(visit: Open) -> None:
    page = (await visit(path="/", refusals=(404, 502))).page
    await ranked(page)
    await page.route("**/v1/items/**", lambda route: route.fulfill(status=502, body="no"))
    await page.evaluate("() => (location.hash = 'item=script&item=nobody')")
    await expect(page.get_by_role("alert")).to_contain_text("HTTP 502")
    await page.unroute("**/v1/items/**")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#history .title")).to_have_text([SCRIPT_TITLE])
    await expect(page.locator("#history-note")).to_have_text("Not in this catalogue: nobody.")


@pytest.mark.parametrize("path", ["/", "/compare"])
async def test_a_browser_that_stores_nothing_shows_the_page(path: str, browser: Browser, site: Site) -> None:
    context = await browser.new_context()
    refuse = "get() { throw new DOMException('no', 'SecurityError'); }"
    for store in ("sessionStorage", "localStorage"):
        await context.add_init_script(f"Object.defineProperty(window, '{store}', {{ {refuse} }})")
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(f"{site.origin}{path}")
    await expect(page.locator("li .title").last).to_be_visible()
    if path == "/compare":
        await expect(page.locator("#better-1")).to_be_enabled()
        await page.locator("#better-1").click()
        await expect(page.locator("#last")).to_contain_text("keeps nothing, so it is not counted")
    assert complaints == []
    await context.close()


async def test_a_why_that_cannot_be_told_says_so_and_can_be_asked_again(visit: Open) -> None:
    page = (await visit(path="/#item=1&item=6", refusals=(503,))).page
    await ranked(page)
    problem = {"title": "Busy", "detail": "Too many wait.", "status": 503}

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, json=problem)

    await page.route("**/v1/recommendations", refuse)
    row = page.locator("#chosen li").first
    await row.get_by_role("button", name="Why this?").click()
    await expect(row.locator(".why")).to_have_text("Too many wait.")
    await page.unroute("**/v1/recommendations")
    await row.get_by_role("button", name="Why this?").click()
    await expect(row.locator(".why")).to_have_text(re.compile("^(Not b|B)ecause of "))


async def test_the_token_that_ends_a_title_is_called_end(visit: Open, site: Site) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await ranked(page)
    answer = await site.recommend({"history": ["1"], "alpha": 0.2, "explain": True})
    name = answer["items"][0]["explanation"][-1]["token"]
    last = page.locator("#chosen li").first.locator(".token").last
    await expect(last).to_have_text("end")
    await last.hover()
    await expect(page.get_by_role("tooltip")).to_contain_text("end")
    assert name.strip()
    assert name not in await page.locator("main").inner_text()


async def test_pictures_come_from_a_column_that_is_named_so_over_https_alone(browser: Browser, parts: Parts) -> None:
    addresses = ["https://pictures.example/1.gif", "http://pictures.example/2.gif", "javascript:alert(1)", ""] * 8
    catalogue = Catalogue.build(
        item_ids=[str(row + 1) for row in range(len(ALL_TITLES))],
        titles=ALL_TITLES,
        frequency=np.arange(len(ALL_TITLES), 0, -1),
        metadata={"image_url": addresses[: len(ALL_TITLES)]},
    )
    artifact = build_artifact(catalogue, parts.tokenizer, BuildOptions(name="films"))
    asked: list[str] = []

    async def answer(route: Route) -> None:
        asked.append(route.request.url)
        await route.fulfill(body=PICTURE, content_type="image/gif")

    async with replace(parts, artifact=artifact).site() as site, visiting(browser, site.origin, path="/#k=20") as seen:
        page = seen.page
        await page.route("https://pictures.example/**", answer)
        await add(page, "Star Trek: First Contact")
        await ranked(page)
        shown = await titles(page)
        safe = [title for title in shown if addresses[ALL_TITLES.index(title)].startswith("https:")]
        assert 0 < len(safe) < len(shown)
        await expect(page.locator("#chosen .picture")).to_have_count(len(safe))
        pictures = page.locator("#chosen .picture")
        await pictures.first.scroll_into_view_if_needed()
        await expect(pictures.first).to_have_js_property("naturalWidth", 1)
        assert set(asked) == {"https://pictures.example/1.gif"}
        assert seen.complaints == []
        assert await violations(page) == []


async def test_on_a_phone_the_list_of_the_first_person_is_in_view(visit: Open) -> None:
    page = (await visit(path="/", **PHONE)).page
    await ranked(page)
    box = await page.locator("#chosen li").first.bounding_box()
    assert box is not None
    assert box["y"] + 60 < PHONE["viewport"]["height"]
    await expect(page.get_by_role("slider", name="Alpha")).to_be_hidden()
    await page.get_by_text("Ranking", exact=True).click()
    await expect(page.get_by_role("slider", name="Alpha")).to_be_visible()
    assert await violations(page) == []
