"""The page at ``/`` in a real Chromium, on a real server with a tiny model: what people see and what they can do.

Every visit also shows that the page asks nobody but its server and that no script fails (`browser.Visit`).
"""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, PHONE, tab_to, violations
from films import ITEM_IDS, TITLES
from igd_server.http.keys import KeyFile, make_key, write_keys
from igd_server.variants import Variant
from page_site import (
    ALL_TITLES,
    GENRE_OF,
    LIKED,
    LONG_TITLE,
    SCRIPT_TITLE,
    add,
    assert_fits,
    ranked,
    shown_request,
    titles,
)
from playwright.async_api import Page, expect

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.items import Catalogue

if TYPE_CHECKING:
    from pathlib import Path

    from page_site import Open, Parts, Site
    from playwright.async_api import Route

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]


async def test_a_title_is_searched_added_and_recommended_from(visit: Open, site: Site) -> None:
    page = (await visit()).page
    await expect(page.locator("#message")).to_contain_text("Nothing to go on yet")
    await add(page, "Star Wars")
    await ranked(page)
    answer = await site.recommend({"history": ["1"], "k": 10, "alpha": 0.2, "beams": 10})
    assert await titles(page) == [item["title"] for item in answer["items"]]
    await expect(page.locator("#facts")).to_contain_text(answer["version"])
    await expect(page.locator("#facts")).to_contain_text("Source\nmodel", use_inner_text=True)
    await add(page, "Fargo")
    await ranked(page)
    _, _, body = await shown_request(page)
    assert body["history"] == ["1", "6"]
    await page.get_by_role("button", name="Move Fargo up").click()
    await page.get_by_role("button", name="Remove Star Wars").click()
    await expect(page.locator("#history .title")).to_have_text(["Fargo"])


async def test_a_catalogue_of_six_titles_is_ranked_though_ten_are_asked_for(visit: Open, parts: Parts) -> None:
    six = Catalogue.build(item_ids=ITEM_IDS[:6], titles=TITLES[:6], frequency=np.arange(6, 0, -1))
    small = replace(parts, artifact=build_artifact(six, parts.tokenizer, BuildOptions(name="six")))
    async with small.site() as site:
        page = (await visit(site.origin)).page
        await add(page, TITLES[0])
        await ranked(page)
        assert sorted(await titles(page)) == sorted(TITLES[1:6])


async def test_a_catalogue_of_three_titles_leaves_its_made_up_person_something(visit: Open, parts: Parts) -> None:
    three = Catalogue.build(item_ids=ITEM_IDS[:3], titles=TITLES[:3], frequency=np.arange(3, 0, -1))
    small = replace(parts, artifact=build_artifact(three, parts.tokenizer, BuildOptions(name="three")))
    async with small.site() as site:
        page = (await visit(site.origin, path="/")).page
        await ranked(page)
        assert await titles(page) == [TITLES[2]]
        await page.get_by_role("button", name="Add to history").first.click()
        await expect(page.locator("#message")).to_contain_text("no title that the history does not have")
        page = (await visit(site.origin, path="/compare")).page
        await expect(page.locator("#better-1")).to_be_enabled()
        person = await page.locator("#person").inner_text()  # in an order that is drawn
        assert person in {"Likes what most like (1 of 2)", "Likes what many like, 2 (1 of 2)"}


async def test_a_sample_user_has_a_history_that_can_be_changed(visit: Open) -> None:
    page = (await visit()).page
    sample = page.get_by_label("or pick a sample user")
    await expect(sample.locator("option")).to_have_text(["(pick one)", *(f"Likes {genre}" for genre in LIKED)])
    await sample.select_option("Likes Drama")
    await expect(page.locator("#history .title")).to_have_count(4)
    for title in await page.locator("#history .title").all_inner_texts():
        assert "Drama" in GENRE_OF[title]
    await ranked(page)
    await expect(page.locator("#said")).to_have_text("Likes Drama: 4 items.")
    await page.locator("#history").get_by_role("button", name="Remove").first.click()
    await expect(sample).to_have_value("")  # this is nobody's sample any more
    await expect(page.locator("#history .title")).to_have_count(3)


async def test_the_alpha_slider_ranks_again_at_once(visit: Open, site: Site) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await ranked(page)
    async with page.expect_request(lambda request: (request.post_data_json or {}).get("alpha") == 1):
        await page.get_by_role("slider", name="Alpha").fill("1")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 1.00")
    await ranked(page)
    answer = await site.recommend({"history": ["1"], "k": 10, "alpha": 1.0, "beams": 10})
    assert await titles(page) == [item["title"] for item in answer["items"]]
    await page.get_by_role("slider", name="Alpha").fill("0")
    await expect(page.locator("#baseline")).to_be_hidden()  # beside itself it would say nothing
    await page.get_by_role("slider", name="Beams").fill("20")
    await expect(page.locator("#curl")).to_contain_text('"beams":20')


async def test_alpha_0_stands_beside_the_chosen_alpha_with_every_move(visit: Open, site: Site) -> None:
    page = (await visit()).page
    await add(page, "Toy Story")
    await page.get_by_role("slider", name="Alpha").fill("1")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 1.00")
    await expect(page.locator("#baseline .move").first).to_be_visible()
    chosen, plain = [
        {item["item_id"]: item["rank"] for item in answer["items"]}
        for answer in [await site.recommend({"history": ["9"], "alpha": alpha}) for alpha in (1.0, 0.0)]
    ]
    assert list(chosen) != list(plain)
    said = {
        "chosen": [from_plain(rank, plain.get(item)) for item, rank in chosen.items()],
        "baseline": [to_chosen(rank, chosen.get(item)) for item, rank in plain.items()],
    }
    for ranking, moves in said.items():
        signs = page.locator(f"#{ranking} .move > [aria-hidden]")
        assert await signs.all_inner_texts() == moves


def from_plain(rank: int, before: int | None) -> str:
    if before is None:
        return "new"
    return "=" if before == rank else f"{'▲' if before > rank else '▼'} {abs(before - rank)}"


def to_chosen(rank: int, after: int | None) -> str:
    if after is None:
        return "leaves"
    return "=" if after == rank else f"→ {after}"


@pytest.mark.parametrize("way", ["hover", "focus"])
async def test_a_token_tells_its_numbers(way: str, visit: Open, site: Site) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await ranked(page)
    answer = await site.recommend({"history": ["1"], "alpha": 0.2, "explain": True})
    numbers = answer["items"][0]["explanation"]
    tokens = page.locator("#chosen li").first.locator(".token")
    await expect(tokens).to_have_count(len(numbers))
    tooltip = page.get_by_role("tooltip")
    await expect(tooltip).to_be_hidden()
    for at in (0, 1):
        if way == "hover":
            await tokens.nth(at).hover()
        elif at == 0:
            await tab_to(page, tokens.first)
        else:
            await page.keyboard.press("ArrowRight")
        minus = f"{numbers[at]['logprob']:.3f} nats".replace("-", "−")
        await expect(tooltip).to_contain_text(f"log-probability{minus}")
        await expect(tooltip).to_contain_text(f"weight{numbers[at]['weight']:.3f}")
        await expect(tooltip).to_contain_text(f"information gain{numbers[at]['information_gain']:.3f} nats")
        label = await tokens.nth(at).get_attribute("aria-label")
        assert label is not None
        assert minus in label  # a screen reader has them too
    if way == "focus":
        await page.keyboard.press("Escape")
    else:
        await page.mouse.move(0, 0)
    await expect(tooltip).to_be_hidden()


async def test_a_token_whose_log_probability_was_not_computed_tells_the_rest(visit: Open) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await page.get_by_label("Decisions alone").check()
    await expect(page.locator("#chosen-heading")).to_contain_text("decisions alone")
    await ranked(page)
    token = page.locator("#chosen li").first.locator(".token").last
    await token.hover()
    tooltip = page.get_by_role("tooltip")
    await expect(tooltip).to_contain_text("weighted0.000 nats")
    await expect(tooltip).not_to_contain_text("log-probability")


async def test_what_the_box_says_is_asked_for_whatever_the_servers_variant_has(visit: Open, parts: Parts) -> None:
    async with parts.site(variants=(Variant(name="decisions", forced_weight=0.0),)) as site:
        page = (await visit(site.origin)).page
        await add(page, "Star Wars")
        await ranked(page)
        await expect(page.get_by_label("Decisions alone")).not_to_be_checked()
        shown = await page.locator("#chosen .score").evaluate_all("all => all.map(score => score.firstChild.data)")
        in_full, by_variant = [
            [f"{item['score']:.2f}".replace("-", "\N{MINUS SIGN}") for item in answer["items"]]
            for weights in ({"forced_weight": 1}, {})
            for answer in [await site.recommend({"history": ["1"], "alpha": 0.2, **weights})]
        ]
        assert shown == in_full != by_variant


async def test_where_scores_are_probabilities_they_stand_beside_them(visit: Open, parts: Parts) -> None:
    async with parts.site(normalise="children") as site:
        page = (await visit(site.origin, viewport={"width": 360, "height": 800})).page
        await add(page, "Star Wars")
        await ranked(page)
        answer = await site.recommend({"history": ["1"], "alpha": 0.2})
        for item, shown in zip(answer["items"], await page.locator("#chosen .score").all_inner_texts(), strict=True):
            assert f" · {100 * item['probability']:.2f} %" in shown
            assert "given by the model alone" in shown, "for screen readers; a score may be the scorer's too"
        title = await page.locator("#chosen .score").first.get_attribute("title")
        assert title == "score in nats; what the model alone gives it, of 100 %"
        wide = await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide, "a narrow page does not scroll sideways"


async def test_decisions_alone_ranks_both_lists_without_forced_tokens(visit: Open, site: Site) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await ranked(page)
    assert (await shown_request(page))[2]["forced_weight"] == 1
    await tab_to(page, page.get_by_label("Decisions alone"))
    await page.keyboard.press("Space")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, decisions alone")
    await ranked(page)
    assert (await shown_request(page))[2]["forced_weight"] == 0
    await expect(page.locator("#baseline-heading")).to_have_text("Alpha 0, decisions alone")
    for ranking, alpha in (("chosen", 0.2), ("baseline", 0.0)):
        answer = await site.recommend({"history": ["1"], "alpha": alpha, "forced_weight": 0})
        await expect(page.locator(f"#{ranking} .title")).to_have_text([item["title"] for item in answer["items"]])
    assert await violations(page) == []


async def test_forced_tokens_are_dimmed_and_chosen_ones_coloured_by_gain(visit: Open, site: Site) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await ranked(page)
    answer = await site.recommend({"history": ["1"], "alpha": 0.2, "explain": True})
    numbers = [token for item in answer["items"] for token in item["explanation"]]
    found = await page.locator("#chosen .token").evaluate_all(
        "all => all.map(token => [token.classList.contains('forced'), getComputedStyle(token).color,"
        " getComputedStyle(token).backgroundColor, Number(token.style.getPropertyValue('--heat-share'))])"
    )
    assert [forced for forced, *_ in found] == [token["forced"] for token in numbers]
    dimmed, plain = ({color for forced, color, *_ in found if forced is wanted} for wanted in (True, False))
    assert len(dimmed) == len(plain) == 1
    assert dimmed.isdisjoint(plain)
    heat = [(token["information_gain"], share) for token, (*_, share) in zip(numbers, found, strict=True)]
    assert [share for _, share in sorted(heat)] == sorted(share for _, share in heat)
    hottest = max(found, key=lambda entry: entry[3])
    assert hottest[2] not in {background for forced, _, background, _ in found if forced}


async def test_the_curl_command_gives_the_items_that_the_page_shows(visit: Open) -> None:
    page = (await visit(permissions=["clipboard-read", "clipboard-write"])).page
    await add(page, "Alien")
    await page.get_by_label("Only where").select_option("genres")
    await page.get_by_label("is", exact=True).fill("Drama")
    await expect(page.locator("#curl")).to_contain_text('"filter":{"genres":"Drama"}')
    await ranked(page)
    url, headers, body = await shown_request(page)
    async with httpx.AsyncClient() as client:
        answer = (await client.post(url, headers=headers, json=body)).raise_for_status().json()
    assert answer["items"]
    assert await titles(page) == [item["title"] for item in answer["items"]]
    await page.get_by_role("button", name="Copy").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("() => navigator.clipboard.readText()") == await page.locator("#curl").inner_text()


async def test_a_server_with_keys_is_asked_with_the_one_that_is_given(
    visit: Open, parts: Parts, tmp_path: Path
) -> None:
    keys = {scope: make_key(scope, frozenset({scope}), None) for scope in ("recommend", "events")}
    write_keys(tmp_path / "keys.json", KeyFile(keys=tuple(key.stored for key in keys.values())))
    async with parts.site(keys_file=tmp_path / "keys.json") as site:
        page = (await visit(site.origin, refusals=(401, 403))).page
        field = page.get_by_label("This server asks for an API key")
        await expect(field).to_be_focused()
        assert await violations(page) == []
        await expect(page.locator("#key-note")).to_contain_text("igd keys create")
        for unfit, why in ((keys["events"].token, "has not the scope"), ("nonsense", "this is no API key")):
            await field.fill(unfit)
            await field.press("Enter")
            await expect(page.locator("#key-note")).to_contain_text(why)
            await expect(field).to_have_value("")
        await field.fill(keys["recommend"].token)
        await field.press("Enter")
        await add(page, "Star Wars")
        await ranked(page)
        _, headers, _ = await shown_request(page)
        assert headers["Authorization"] == "Bearer $KEY"
        assert keys["recommend"].token not in await page.content()
        write_keys(tmp_path / "keys.json", KeyFile(keys=(keys["events"].stored,)))  # taken back
        await site.until_refused(keys["recommend"].token)
        await page.get_by_role("slider", name="Alpha").fill("1")
        await expect(field).to_be_focused()


async def test_two_refusals_at_once_ask_for_one_key(visit: Open) -> None:
    opened = await visit(path="/#item=1", refusals=(401,))
    page = opened.page
    await ranked(page)
    refused = {"title": "No key", "status": 401, "detail": "It was taken back"}
    await page.route("**/v1/**", lambda route: route.fulfill(status=401, json=refused))
    async with page.expect_response("**/v1/items?**"), page.expect_response("**/v1/recommendations"):
        await page.get_by_role("combobox", name="Add an item by title").fill("Fargo")
        await page.get_by_role("slider", name="Alpha").fill("1")
    field = page.get_by_label("This server asks for an API key")
    await expect(field).to_be_focused()
    await page.unroute("**/v1/**")
    await field.fill("sesame")
    await field.press("Enter")
    await expect(page.locator("#results")).to_be_visible()
    await ranked(page)
    assert await page.evaluate("() => sessionStorage.getItem('igd-key')") == "sesame"


async def test_a_refusal_says_what_is_wrong_where_and_under_which_id(visit: Open, parts: Parts) -> None:
    async with parts.site(max_history_items=1) as site:
        page = (await visit(site.origin, refusals=(422,))).page
        await add(page, "Star Wars")
        await ranked(page)
        await add(page, "Fargo")
        alert = page.get_by_role("alert")
        await expect(alert).to_contain_text("Field: history")
        await expect(alert).to_contain_text(re.compile("Request: [0-9a-f]{32}"))
        await expect(page.locator("#answer")).to_be_hidden()
        assert await violations(page) == []
        await page.get_by_role("button", name="Remove Star Wars").click()
        await ranked(page)
        await expect(alert).to_have_count(0)


async def test_a_proxy_that_answers_for_the_server_is_told_apart_and_tried_again(visit: Open) -> None:
    page = (await visit(refusals=(502,))).page
    await page.route("**/v1/recommendations", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    await add(page, "Star Wars")
    await expect(page.get_by_role("alert")).to_contain_text("The answer is not JSON")
    await expect(page.get_by_role("alert")).to_contain_text("HTTP 502")
    await page.unroute("**/v1/recommendations")
    await page.get_by_role("button", name="Try again").click()
    await ranked(page)
    assert len(await titles(page)) == 10


async def test_popularity_is_said_to_be_what_it_is(visit: Open, site: Site) -> None:
    page = (await visit()).page

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = site.checkpoint.model.register_forward_pre_hook(fail)
    try:
        await add(page, "Mustard")
        await expect(page.locator("#message")).to_contain_text("Ranked by popularity, not by the model")
        await ranked(page)
    finally:
        hook.remove()
    await expect(page.locator("#facts")).to_contain_text("Source\npopularity", use_inner_text=True)
    await expect(page.locator("#chosen-heading")).to_have_text("By popularity")
    assert (await titles(page))[:4] == ["Star Wars", "Star Trek: First Contact", "Stargate", "The Star Maker"]
    for absent in ("#baseline", "#legend"):
        await expect(page.locator(absent)).to_be_hidden()
    assert await violations(page) == []


async def test_while_the_model_works_the_page_says_so(visit: Open, site: Site) -> None:
    page = (await visit()).page
    site.engine.free.clear()
    try:
        await add(page, "Star Wars")
        await expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
        await expect(page.locator("#message")).to_contain_text("Ranking…")
        await expect(page.locator("#answer")).to_be_hidden()
        assert await violations(page) == []
    finally:
        site.engine.free.set()
    await ranked(page)
    await expect(page.get_by_text("Ranking…")).to_have_count(0)


async def test_a_page_opened_too_early_goes_on_by_itself(visit: Open, parts: Parts) -> None:
    loaded = threading.Event()
    try:
        async with parts.site(loaded) as site:
            page = (await visit(site.origin, refusals=(503,))).page
            await expect(page.get_by_text("The server is starting")).to_be_visible()
            assert await violations(page) == []
            loaded.set()
            await expect(page.locator("#controls")).to_be_visible()
    finally:
        loaded.set()


async def test_a_filter_that_leaves_nothing_says_so(visit: Open) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await page.get_by_label("Only where").select_option("year")
    await page.get_by_label("is", exact=True).fill("1990")  # the film in the history
    await expect(page.locator("#message")).to_contain_text("No item is left to recommend")
    assert await titles(page) == []


@pytest.mark.parametrize(
    ("text", "sent", "years"),
    [
        ("1991..1993", '"filter":{"year":{"gte":1991,"lte":1993}}', range(1991, 1994)),
        ("..1992", '"filter":{"year":{"lte":1992}}', range(1991, 1993)),
        ("1993", '"filter":{"year":1993}', range(1993, 1994)),
    ],
)
async def test_numbers_are_filtered_by_one_or_by_a_range(visit: Open, text: str, sent: str, years: range) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")  # of 1990
    await page.get_by_label("Only where").select_option("year")
    await expect(page.get_by_placeholder("one, or from..to")).to_be_visible()
    await page.get_by_label("is", exact=True).fill(text)
    await expect(page.locator("#curl")).to_contain_text(sent)
    await ranked(page)
    assert sorted(await titles(page)) == sorted({ALL_TITLES[year - 1990] for year in years})


async def test_everything_can_be_done_from_the_keyboard(visit: Open) -> None:
    page = (await visit()).page
    await expect(page.locator("#controls")).to_be_visible()
    keys = page.keyboard
    await tab_to(page, page.locator("#search"))
    await keys.press("ArrowDown")  # the most popular
    await expect(page.locator("#found li")).to_have_count(8)
    await keys.press("Escape")
    await expect(page.get_by_role("listbox")).to_be_hidden()
    await keys.type("star")
    await expect(page.locator("#found .title")).to_have_text([title for title in ALL_TITLES if "star" in title.lower()])
    await expect(page.locator("#found li").first).to_have_attribute("aria-selected", "true")
    await keys.press("ArrowDown")
    await keys.press("Enter")
    await expect(page.locator("#history .title")).to_have_text(["Star Trek: First Contact"])
    await ranked(page)
    await tab_to(page, page.locator("#alpha"))
    await keys.press("ArrowRight")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.25")
    await ranked(page)
    first, second = (page.locator("#chosen li").nth(row).locator(".token") for row in (0, 1))
    await tab_to(page, first.first)
    await expect(page.get_by_role("tooltip")).to_be_visible()
    await keys.press("End")
    await expect(first.last).to_be_focused()
    await tab_to(page, second.first, most=3)  # one stop for an item's tokens, and two buttons
    await tab_to(page, page.get_by_role("button", name="Copy"))
    await keys.press("Enter")
    await expect(page.locator("#announcement")).to_have_text(re.compile("Copied|Selected"))
    await page.locator("#skip").focus()
    await keys.press("Enter")
    await expect(page.locator("#results")).to_be_focused()
    await expect(page.locator("#history .title")).not_to_have_count(0)  # the address is the history's still


async def test_the_arrow_keys_choice_stays_when_the_answer_to_more_letters_comes_after_it(visit: Open) -> None:
    page = (await visit()).page
    found = page.locator("#found li")
    held, pressed = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        held.set()
        await pressed.wait()
        await route.continue_()

    search = page.get_by_role("combobox", name="Add an item by title")
    await search.fill("alien")
    await expect(found).to_have_count(3)
    await page.route("**/v1/items?*aliens*", hold)
    await search.fill("aliens")
    await held.wait()
    await search.press("ArrowDown")
    await expect(found.nth(1)).to_have_attribute("aria-selected", "true")
    pressed.set()
    await expect(found).to_have_count(1)
    await expect(found).to_have_attribute("aria-selected", "true")
    await search.fill("alien")
    await expect(found).to_have_count(3)
    await expect(found.nth(1)).to_have_attribute("aria-selected", "true")
    await search.press("Enter")
    await expect(page.locator("#history .title")).to_have_text(["Aliens"])


async def listed(site: Site, **body: Any) -> list[str]:
    return [item["title"] for item in (await site.recommend({"history": ["1", "16"], "alpha": 0.2} | body))["items"]]


async def others_show(page: Page, lists: dict[str, list[str]]) -> None:
    """The lists below the recommendations, and none besides; with where each item stands among those."""
    await ranked(page)
    chosen = await titles(page)
    await expect(page.locator(".brief").filter(visible=True)).to_have_count(len(lists))
    for ranking, wanted in lists.items():
        await expect(page.locator(f"#{ranking} .item > .title")).to_have_text(wanted)
        places = [f"→ {chosen.index(title) + 1}" if title in chosen else "–" for title in wanted]
        assert await page.locator(f"#{ranking} .move > [aria-hidden]").all_inner_texts() == places


async def test_recommendations_and_most_popular_stand_side_by_side_without_a_scorer(visit: Open, site: Site) -> None:
    page = (await visit()).page
    await add(page, "Star Wars")
    await add(page, "Sabrina")
    popular = [title for title in ALL_TITLES if title not in {"Star Wars", "Sabrina"}][:10]  # of two, one was seen
    await others_show(page, {"popular": popular})
    assert await titles(page) == await listed(site)
    await expect(page.locator("#others")).to_be_hidden()  # the model alone is what is recommended
    await expect(page.locator("#gamma-field")).to_be_hidden()
    await expect(page.locator("#facts")).not_to_contain_text("Gamma")
    await page.get_by_label("Only where").select_option("genres")
    await page.get_by_label("is", exact=True).fill("Drama")
    await expect(page.locator("#curl")).to_contain_text("Drama")
    drama = [title for title in popular if "Drama" in GENRE_OF[title]]
    await expect(page.locator("#popular .title").first).to_have_text(drama[0])
    await ranked(page)
    assert (await titles(page, "popular"))[: len(drama)] == drama


async def test_with_a_scorer_gamma_is_the_servers_until_it_is_moved_and_each_parent_is_shown(
    visit: Open, scored: Site
) -> None:
    page = (await visit(scored.origin)).page
    await add(page, "Star Wars")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, gamma 0.25")
    await ranked(page)
    await add(page, "Sabrina")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, gamma 0.75")
    await expect(page.locator("#baseline-heading")).to_have_text("Alpha 0, gamma 0.75")
    await expect(page.get_by_role("slider", name="Gamma")).to_have_value("0.75")
    popular = [title for title in ALL_TITLES if title not in {"Star Wars", "Sabrina"}][:10]
    lists = {"model": await listed(scored, gamma=0), "scorer": await listed(scored, gamma=1), "popular": popular}
    await others_show(page, lists)
    assert await titles(page) == await listed(scored) != lists["model"] != lists["scorer"]
    await expect(page.locator("#others h4")).to_have_text(["Model", "Transitions"])
    await expect(page.locator("#facts")).to_contain_text("Gamma\n0.75, log-linear", use_inner_text=True)
    assert "gamma" not in (await shown_request(page))[2]
    await expect(page.locator("#decisions")).to_be_hidden()  # with a scorer nothing else counts
    await page.get_by_role("slider", name="Gamma").fill("0")
    await page.get_by_label("Decisions alone").check()
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, decisions alone")
    assert (await shown_request(page))[2]["forced_weight"] == 0
    await page.get_by_role("slider", name="Gamma").fill("0.4")
    await expect(page.locator("#decisions")).to_be_hidden()
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, gamma 0.40")
    assert (await shown_request(page))[2]["forced_weight"] == 1
    await expect(page.locator("#facts")).to_contain_text("Normalised over\nchildren of a node", use_inner_text=True)
    assert (await shown_request(page))[2]["gamma"] == 0.4
    await expect(page.get_by_label("Gamma as the server has it")).not_to_be_checked()
    await others_show(page, lists)
    assert await titles(page) == await listed(scored, gamma=0.4)
    await page.get_by_label("Gamma as the server has it").check()
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, gamma 0.75")
    await expect(page.locator("#gamma-value")).to_have_text("0.75")
    token = page.locator("#chosen .token:not(.forced)").filter(has_text=re.compile(r"\w")).first
    await token.hover()
    await expect(page.get_by_role("tooltip")).to_contain_text("scorer’s log-probability")
    await expect(page.get_by_role("tooltip")).to_contain_text("adds to the score")
    await page.evaluate("() => (location.hash = 'gamma=much&item=1&tokens=1')")  # no number: as the server has it
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, gamma 0.25")
    await expect(page.get_by_label("Gamma as the server has it")).to_be_checked()


async def test_gamma_and_the_lists_of_each_alone_are_for_keyboards_screen_readers_and_phones(
    visit: Open, scored: Site
) -> None:
    async def places(page: Page) -> list[tuple[float, float]]:
        boxes = [await page.locator(f"#{each}").bounding_box() for each in ("popular", "model", "scorer")]
        return [(box["x"], box["y"]) for box in boxes if box is not None]

    page = (await visit(scored.origin, viewport={"width": 1280, "height": 900})).page
    await add(page, "Star Wars")
    await ranked(page)
    await tab_to(page, page.get_by_role("slider", name="Gamma"))
    await page.keyboard.press("ArrowRight")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, gamma 0.30")
    await tab_to(page, page.get_by_label("Gamma as the server has it"))
    await page.keyboard.press("Space")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 0.20, gamma 0.25")
    await ranked(page)
    await expect(page.get_by_role("region", name="The same history, ranked by each alone")).to_be_visible()
    for name in ("Model", "Transitions", "Most popular"):
        await expect(page.get_by_role("region", name=name, exact=True).get_by_role("listitem")).to_have_count(10)
    said = page.get_by_role("region", name="Transitions", exact=True).locator(".move .unseen").first
    await expect(said).to_have_text(re.compile(r"^, (recommended at rank \d+|not recommended)$"))
    assert await violations(page) == []
    (_, above), (left, top), (right, level) = await places(page)
    assert left < right
    assert above < top == level
    await page.set_viewport_size(PHONE["viewport"])
    await assert_fits(page, PHONE["viewport"]["width"])
    (left, top), (middle, below), (right, last) = await places(page)
    assert left == middle == right
    assert top < below < last
    assert await violations(page) == []


async def test_a_list_that_does_not_come_says_why_and_the_others_stay(visit: Open, scored: Site) -> None:
    page = (await visit(scored.origin, refusals=(503,))).page
    problem = {"title": "Busy", "detail": "Too many wait.", "status": 503}

    async def refuse(route: Route) -> None:
        alone = (route.request.post_data_json or {}).get("gamma") == 1
        await (route.fulfill(status=503, json=problem) if alone else route.continue_())

    await page.route("**/v1/recommendations", refuse)
    await add(page, "Star Wars")
    await ranked(page)
    await expect(page.locator("#scorer li")).to_have_text(["Too many wait."])
    for other in ("chosen", "model", "popular"):
        await expect(page.locator(f"#{other} .item")).to_have_count(10)


async def test_titles_are_text_whatever_is_in_them(visit: Open) -> None:
    page = (await visit()).page
    await add(page, SCRIPT_TITLE)
    await page.locator("#k").select_option("20")
    await ranked(page)
    await add(page, "Star Wars")
    await page.get_by_role("button", name="Remove <img").click()
    await page.get_by_label("Only where").select_option("genres")
    await page.get_by_label("is", exact=True).fill("Drama")
    await expect(page.locator("#chosen .title").get_by_text(SCRIPT_TITLE, exact=True)).to_be_visible()
    await ranked(page)
    assert await page.locator("img, body script").count() == 0


async def test_a_phone_shows_everything_without_scrolling_sideways(visit: Open) -> None:
    page = (await visit(**PHONE)).page
    width = PHONE["viewport"]["width"]
    await expect(page.locator("#message")).to_contain_text("Nothing to go on yet")
    await assert_fits(page, width)
    await add(page, LONG_TITLE)
    await add(page, SCRIPT_TITLE)
    await ranked(page)
    await assert_fits(page, width)
    await page.locator("#chosen .token").last.tap()
    box = await page.get_by_role("tooltip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    await assert_fits(page, width)
    assert await violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_in_either_scheme(scheme: str, visit: Open) -> None:
    page = (await visit(color_scheme=scheme)).page
    await expect(page.locator("#message")).to_contain_text("Nothing to go on yet")
    red, green, blue = (
        int(part)
        for part in re.findall(
            r"\d+", await page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        )
    )
    assert (min(red, green, blue) > 200) if scheme == "light" else (max(red, green, blue) < 50)
    assert await violations(page) == []
    await page.locator("#search").fill("star")
    await expect(page.locator("#found li").first).to_be_visible()
    assert await violations(page) == []
    await page.locator("#search").press("Enter")
    await page.get_by_role("slider", name="Alpha").fill("1")
    await expect(page.locator("#chosen-heading")).to_have_text("Alpha 1.00")
    await ranked(page)
    await expect(page.locator("#baseline .move").first).to_be_visible()
    await page.locator("#chosen .token").first.hover()
    await expect(page.get_by_role("tooltip")).to_be_visible()
    assert await violations(page) == []


async def test_the_page_asks_for_its_own_files_and_the_api_alone(visit: Open) -> None:
    seen = await visit()
    await add(seen.page, "Star Wars")
    await ranked(seen.page)
    paths = {urlsplit(url).path for url in seen.requested}
    files = {
        "/",
        "/web/style.css",
        *(
            f"/web/{name}.js"
            for name in (
                "actions",
                "address",
                "api",
                "app",
                "dom",
                "items",
                "lists",
                "others",
                "ranking",
                "samples",
                "search",
                "why",
            )
        ),
    }
    asked = {"/v1/catalogues", "/v1/items", "/v1/recommendations"}
    assert files | asked <= paths <= files | asked | {"/web/icon.svg"}
