"""The page at ``/operate``: what is served and refused, what became of each variant's answers, and commands."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from browser import CHROMIUM, PHONE, tab_to, violations
from igd_server.app import Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.http.keys import KeyFile, make_key, write_keys
from igd_server.settings import Settings
from igd_server.variants import Variant
from page_site import assert_fits
from playwright.async_api import expect
from publishing import PATIENT, edition, publish, until
from scipy.stats import binomtest
from sockets import listening

from igd_core.engines.fake import FakeEngine
from igd_core.store.files import FilesStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from igd_server.app import Apps
    from igd_server.http.keys import NewKey, Scope
    from page_site import Open
    from playwright.async_api import Locator, Page

    from igd_core.catalogue.tokenization import TitleTokenizer

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]

VARIANTS = (Variant(name="old", weight=3), Variant(name="new", catalogue="books"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operated:
    """A server that follows a store of films and books; of a third catalogue nothing is published."""

    apps: Apps
    origin: str
    store: FilesStore
    root: Path
    tokenizer: TitleTokenizer

    async def publish(self, number: int, name: str = "films", *, damaged: bool = False) -> str:
        """Publish an edition, and wait for what becomes of it."""
        made = edition(self.tokenizer, number, name=name)
        version = await publish(self.store, made, self.root)
        if damaged:
            (folder,) = (self.root / "store" / "artifacts" / name).glob(f"{version}*")
            (folder / "items.parquet").rename(self.root / "items.parquet")
            (folder / "items.parquet").write_bytes(b"not what was published")
            await until(lambda: version in {each.version for each in self.live(name).refusals})
        else:
            await until(lambda: self.served(name) == version)
        return version

    def live(self, name: str = "films") -> Any:
        return self.apps.deployment.live(name)

    def served(self, name: str = "films") -> str | None:
        return found.version if (found := self.apps.deployment.serving.get(name)) else None

    async def answer(self, variant: str, answers: int, followed: int) -> None:
        """Recommend so often, and choose from so many of the answers."""
        item = {"old": "films-0-0", "new": "books-0-0"}[variant]
        async with httpx.AsyncClient(base_url=self.origin) as client:
            for number in range(answers):
                body = {"variant": variant, "history": [item], "k": 3}
                told = (await client.post("/v1/recommendations", json=body)).raise_for_status().json()
                for shown in told["items"][:2] if number < followed else ():
                    event = {"user_id": "u", "item_id": shown["item_id"], "request_id": told["request_id"]}
                    events = [{**event, "timestamp": 1_700_000_000 + number}]
                    (await client.post("/v1/events", json={"events": events})).raise_for_status()
            await until(lambda: self.apps.metrics.answers_by_variant()[variant].followed == followed)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, NewKey]:
    scopes: dict[str, frozenset[Scope]] = {
        "visitor": frozenset({"recommend"}),
        "operator": frozenset({"admin"}),
    }
    made = {name: make_key(name, of, None) for name, of in scopes.items()}
    write_keys(tmp_path / "keys.json", KeyFile(keys=tuple(key.stored for key in made.values())))
    return made


@contextlib.asynccontextmanager
async def operated(
    tokenizer: TitleTokenizer, root: Path, *, variants: Sequence[Variant] = VARIANTS, **settings: Any
) -> AsyncIterator[Operated]:
    """Films and books are served."""
    store = FilesStore(root / "store", PATIENT)
    for name in ("films", "books"):
        await publish(store, edition(tokenizer, 0, name=name), root)
    given = Settings(
        catalogues=("films", "books", "music"),
        store=f"file://{root}/store",
        store_timeout_ms=int(PATIENT.timeout_s * 1000),
        cache_dir=root / "cache",
        model="fake",
        poll_s=0.02,
        trial_s=0,
        variants=tuple(variants),
        **settings,
    )
    model = OpenedModel(engine=FakeEngine(), token_texts=lambda _, ids: list(map(str, ids)))
    apps = create_apps(given, Sources(open_model=lambda _: model))
    async with apps.main.router.lifespan_context(apps.main), listening(apps.main) as port:
        made = Operated(apps=apps, origin=f"http://127.0.0.1:{port}", store=store, root=root, tokenizer=tokenizer)
        for name in ("films", "books"):
            await until(lambda name=name: made.served(name) is not None)  # type: ignore[misc]
        yield made
    await store.close()


def catalogue(page: Page, name: str) -> Locator:
    return page.locator(f'.served[data-name="{name}"]')


async def facts(place: Locator) -> dict[str, str]:
    names = await place.locator("dt").all_inner_texts()
    return dict(zip(names, await place.locator("dd").all_inner_texts(), strict=True))


async def test_what_is_served_and_refused_is_told_and_a_roll_back_takes_two_clicks(
    visit: Open, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with operated(tokenizer, tmp_path) as server:
        first = server.served()
        second = await server.publish(1)
        bad = await server.publish(2, damaged=True)
        page = (await visit(server.origin, path="/operate", refusals=(422,))).page
        films = catalogue(page, "films")
        await expect(films.locator(".standing")).to_have_text("published version refused")
        told = await facts(films)
        assert (told["Version"], told["Published"], told["Items"]) == (second, bad, "12")
        assert told["Model"] == "fake, the server's own"
        assert re.fullmatch("[0-9a-f]{16}", told["Fingerprint"])
        await expect(films.locator(".refusals li")).to_contain_text(f"{bad} damaged, ")
        await expect(films.locator(".refusals li .note")).to_contain_text("items.parquet: ")
        await expect(catalogue(page, "books").locator(".standing")).to_have_text("serving")
        await expect(catalogue(page, "books")).to_contain_text("No version is refused.")
        music = catalogue(page, "music")
        await expect(music.locator(".standing")).to_have_text("nothing served")
        await expect(music.locator(".warning")).to_have_text("nothing is published under this name")
        newest = page.locator("#event-list > li").first
        await expect(newest).to_contain_text("version_refused (")
        await expect(newest.locator(".note")).to_contain_text(f"catalogue: films, version: {bad}")
        assert await violations(page) == []

        back = films.get_by_role("button", name="Roll back")
        await tab_to(page, back)
        await page.keyboard.press("Enter")
        yes = films.get_by_role("button", name="Yes, roll back")
        await expect(yes).to_be_focused()
        await expect(films.get_by_role("group")).to_contain_text("on all servers?")
        assert await violations(page) == []
        await films.get_by_role("button", name="Cancel").click()
        await expect(back).to_be_focused()
        assert server.live().published == bad, "one click moves nothing"
        await back.click()
        await yes.click()  # back to what is served, from the bad one
        await expect(page.locator("#message")).to_contain_text(f"films goes back to {second}, from {bad}.")
        await expect(page.locator("#event-list")).to_contain_text("rolled_back (warning)")
        await expect(films.locator(".standing")).to_have_text("serving")
        assert await server.store.current("films") == second
        await back.click()
        await yes.click()
        await expect(page.locator("#message")).to_contain_text(f"films goes back to {first}, from {second}.")
        await expect(films.locator("dd").first).to_have_text(str(first))  # by itself, once the server has taken it
        await back.click()
        await yes.click()
        await expect(page.get_by_role("alert")).to_contain_text("no version was current before this one")
        assert await server.store.current("films") == first


async def test_a_version_that_was_healed_is_allowed_and_taken(
    visit: Open, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with operated(tokenizer, tmp_path) as server:
        bad = await server.publish(1, damaged=True)
        page = (await visit(server.origin, path="/operate")).page
        films = catalogue(page, "films")
        (folder,) = (tmp_path / "store" / "artifacts" / "films").glob(f"{bad}*")
        (tmp_path / "items.parquet").rename(folder / "items.parquet")
        await films.get_by_role("button", name=f"Allow {bad}").click()
        await films.get_by_role("button", name="Yes, allow").click()
        await expect(page.locator("#message")).to_have_text(f"All servers may try {bad} of films again.")
        await films.get_by_role("button", name="Look at the store now").click()
        await expect(films.locator("dd").first).to_have_text(bad)
        await expect(films.locator(".standing")).to_have_text("serving")
        await expect(films).to_contain_text("No version is refused.")


async def test_variants_have_shares_click_rates_and_a_difference_with_their_intervals(
    visit: Open, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with operated(tokenizer, tmp_path) as server:
        page = (await visit(server.origin, path="/operate")).page
        await expect(page.locator("#difference")).to_contain_text("new less old: nothing to say yet.")
        await server.answer("old", 20, 4)
        await server.answer("new", 30, 21)
        await page.get_by_role("button", name="Read now").click()
        old, new = (page.locator("#variant-list > li").nth(at) for at in (0, 1))
        await expect(old).to_contain_text("20")

        def percent(share: float) -> str:
            return f"{100 * share:.1f} %"

        intervals = {}
        for place, name, answers, followed, share in ((old, "old", 20, 4, "75 %"), (new, "new", 30, 21, "25 %")):
            interval = intervals[name] = binomtest(followed, answers).proportion_ci(method="wilson")
            told = await facts(place)
            assert await place.locator("h3").inner_text() == name
            assert (told["Share of people"], told["Answers"], told["With a success"]) == (
                share,
                str(answers),
                str(followed),
            )
            rate = f"{percent(followed / answers)} ({percent(interval.low)} to {percent(interval.high)})"
            assert told["Click rate (95 %)"] == rate
            drawn = [await place.locator(f".track{part}").bounding_box() for part in ("", " span")]
            assert drawn[0] is not None
            assert drawn[1] is not None
            shares = [(drawn[1]["x"] - drawn[0]["x"]) / drawn[0]["width"], drawn[1]["width"] / drawn[0]["width"]]
            most = binomtest(21, 30).proportion_ci(method="wilson").high
            assert shares == pytest.approx([interval.low / most, (interval.high - interval.low) / most], abs=0.01)
        assert (await facts(new))["Catalogue"] == "books"
        found = await facts(page.locator("#cache"))
        assert [told.split(" (")[0] for told in found.values()] == ["48", "0", "0", "2"]  # each asks the same thing
        low = 0.5 - math.hypot(0.7 - intervals["new"].low, intervals["old"].high - 0.2)
        high = 0.5 + math.hypot(intervals["new"].high - 0.7, 0.2 - intervals["old"].low)
        sentence = f"new less old: +50.0 points (+{100 * low:.1f} to +{100 * high:.1f})."
        await expect(page.locator("#difference .line").first).to_have_text(sentence)
        assert await violations(page) == []


async def test_without_the_scope_admin_nothing_can_be_pressed_and_the_key_stays_in_the_tab(
    visit: Open, tokenizer: TitleTokenizer, tmp_path: Path, keys: dict[str, NewKey]
) -> None:
    async with operated(tokenizer, tmp_path, keys_file=tmp_path / "keys.json") as server:
        page = (await visit(server.origin, path="/operate", refusals=(401, 403))).page
        field = page.get_by_label("API key")
        await expect(field).to_be_focused()
        await expect(page.locator("#served")).to_be_hidden()
        await field.fill(make_key("nobody", frozenset(), None).token)
        await field.press("Enter")
        await expect(page.locator("#key-note")).to_contain_text("there is no such API key")

        await field.fill(keys["visitor"].token)
        await field.press("Enter")
        await expect(page.locator("#key-note")).to_contain_text("need a key with the scope admin")
        await expect(catalogue(page, "films").locator(".standing")).to_have_text("serving")
        await expect(page.locator(".commands")).to_have_count(0)
        for section in ("#cache", "#events"):
            await expect(page.locator(section)).to_be_hidden()
        await expect(page.locator("#variants-note")).to_have_text("Click rates are for operators.")
        await expect(page.get_by_role("alert")).to_have_count(0)
        assert "Answers" not in await facts(page.locator("#variant-list > li").first)
        assert await violations(page) == []

        await field.fill(keys["operator"].token)
        await field.press("Enter")
        await expect(page.locator(".commands")).to_have_count(3)
        await expect(page.locator("#key-form")).to_be_hidden()
        assert "Answers" in await facts(page.locator("#variant-list > li").first)
        token = keys["operator"].token
        assert token not in page.url
        assert token not in await page.content()
        assert await page.evaluate("() => localStorage.length") == 0
        assert await page.evaluate("() => document.cookie") == ""
        await page.reload()
        await expect(page.locator(".commands")).to_have_count(3)
        other = (await visit(server.origin, path="/operate", refusals=(401,))).page
        await expect(other.get_by_label("API key")).to_be_visible()


async def test_the_address_says_what_is_folded_and_how_often_the_page_reads(
    visit: Open, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with operated(tokenizer, tmp_path, variants=()) as server:
        page = (await visit(server.origin, path="/operate")).page
        await expect(page.locator("#variants-heading")).to_have_text("Answers")
        await catalogue(page, "books").locator("summary").click()
        await expect(page).to_have_url(re.compile(r"/operate#closed=books$"))
        await page.get_by_label("Read again").select_option("every 5 seconds")
        await expect(page).to_have_url(re.compile(r"/operate#closed=books&every=5$"))
        await page.reload()
        await expect(catalogue(page, "films")).to_have_attribute("open", "")
        await expect(catalogue(page, "books")).not_to_have_attribute("open", "")
        await expect(page.get_by_label("Read again")).to_have_value("5")
        second = await server.publish(1)
        await catalogue(page, "films").get_by_role("button", name="Roll back").focus()
        await expect(catalogue(page, "films").locator("dd").first).to_have_text(second)  # nobody pressed anything
        await expect(catalogue(page, "films").get_by_role("button", name="Roll back")).to_be_focused()
        await page.evaluate("() => (location.hash = 'closed=films')")
        await expect(catalogue(page, "books")).to_have_attribute("open", "")
        await expect(catalogue(page, "films")).not_to_have_attribute("open", "")
        await expect(page.get_by_label("Read again")).to_have_value("0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_in_both_schemes(
    scheme: str, visit: Open, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with operated(tokenizer, tmp_path) as server:
        await server.publish(1, damaged=True)
        await server.answer("old", 8, 2)
        await server.answer("new", 8, 5)
        page = (await visit(server.origin, path="/operate", color_scheme=scheme, **PHONE)).page
        await catalogue(page, "films").get_by_role("button", name="Roll back").click()
        await assert_fits(page, PHONE["viewport"]["width"])
        assert await violations(page) == []
        for button in await page.get_by_role("button").all():
            box = await button.bounding_box()
            assert box is not None
            assert box["height"] >= 40, "a finger meets it"


async def test_where_commands_are_on_another_port_the_page_is_there_too(
    visit: Open, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with operated(tokenizer, tmp_path, operations_port=1) as server:
        page = (await visit(server.origin, path="/operate", refusals=(404,))).page
        await expect(page.locator("#message")).to_contain_text("on the operations port, at /operate there")
        await expect(catalogue(page, "films").locator(".standing")).to_have_text("serving")
        await expect(page.locator(".commands")).to_have_count(0)
        assert server.apps.operations is not None
        async with listening(server.apps.operations) as port:
            page = (await visit(f"http://127.0.0.1:{port}", path="/operate", refusals=(404,))).page
            await expect(page.locator(".commands")).to_have_count(3)
            await expect(page.get_by_role("link", name="Try it")).to_be_hidden()
            await expect(page.get_by_role("link", name="API")).to_be_visible()
