from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from igd_server.app import Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.settings import Settings
from igd_server.variants import Variant
from publishing import PATIENT, edition, publish, serves, until

from igd_core.engines.fake import FakeEngine
from igd_core.store.files import FilesStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import TypeAlias

    from igd_server.catalogues.deployment import Deployment

    from igd_core.catalogue.tokenization import TitleTokenizer

    Serve: TypeAlias = Callable[..., AbstractAsyncContextManager["Served"]]


class Served:
    """A started app that follows a store, a client for it, and a hand that publishes."""

    def __init__(self, client: httpx.AsyncClient, deployment: Deployment, publish: Callable[..., Any]) -> None:
        self.client = client
        self.deployment = deployment
        self.publish = publish

    async def catalogues(self) -> dict[str, Any]:
        response = await self.client.get("/v1/catalogues")
        assert response.status_code == 200
        found: dict[str, Any] = response.json()
        return found

    async def admin(self, name: str, action: str, **body: Any) -> httpx.Response:
        return await self.client.post(f"/v1/admin/catalogues/{name}:{action}", json=body)


@pytest.fixture
def serve(tokenizer: TitleTokenizer, tmp_path: Path) -> Serve:
    @contextlib.asynccontextmanager
    async def serve(
        *published: str, catalogues: tuple[str, ...] = ("films",), variants: tuple[Variant, ...] = ()
    ) -> AsyncIterator[Served]:
        store = FilesStore(tmp_path / "store", PATIENT)

        async def publish_edition(number: int, name: str = "films") -> str:
            return await publish(store, edition(tokenizer, number, name=name), tmp_path)

        for name in published:
            await publish_edition(0, name)
        settings = Settings(
            catalogues=catalogues,
            variants=variants,
            store=f"file://{tmp_path}/store",
            store_timeout_ms=int(PATIENT.timeout_s * 1000),
            cache_dir=tmp_path / "cache",
            model="fake",
            poll_s=0.02,
        )
        model = OpenedModel(engine=FakeEngine(), token_texts=lambda _, ids: list(map(str, ids)))
        apps = create_apps(settings, Sources(open_model=lambda _: model))
        transport = httpx.ASGITransport(app=apps.main, raise_app_exceptions=False)
        async with (
            apps.main.router.lifespan_context(apps.main),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            for name in published:
                await until(lambda name=name: name in apps.deployment.serving)  # type: ignore[misc]
            yield Served(client, apps.deployment, publish_edition)
        await store.close()

    return serve


async def test_catalogues_tell_what_is_served_published_and_refused(serve: Serve, tmp_path: Path) -> None:
    async with serve("films") as server:
        (before,) = (await server.catalogues())["catalogues"]
        assert before["name"] == "films"
        assert before["published"] == before["version"]
        assert before["refusals"] == []
        assert {"name": "genres", "kind": "list", "type": "list-of-text"} in before["attributes"]
        bad = await server.publish(1)
        (folder,) = (tmp_path / "store" / "artifacts" / "films").glob(f"{bad}*")
        (folder / "items.parquet").write_bytes(b"not what was published")
        await until(lambda: bool(list(server.deployment.live("films").refusals)))  # type: ignore[union-attr]
        (after,) = (await server.catalogues())["catalogues"]
    assert (after["version"], after["published"]) == (before["version"], bad)
    (refusal,) = after["refusals"]
    assert (refusal["version"], refusal["reason"]) == (bad, "damaged")
    assert refusal["detail"].startswith("items.parquet: ")
    assert "trouble" not in after


async def test_a_catalogue_with_nothing_to_serve_is_listed_as_unserved(serve: Serve) -> None:
    async with serve("films", catalogues=("films", "books")) as server:
        await until(lambda: server.deployment.why_not_ready() is None)
        listed = await server.catalogues()
        search = await server.client.get("/v1/items", params={"catalogue": "books"})
    assert [info["name"] for info in listed["catalogues"]] == ["films"]
    assert listed["unserved"] == [
        {"name": "books", "trouble": "nothing is published under this name", "refusals": []},
    ]
    assert search.status_code == 503


async def test_operators_roll_back_and_forward(serve: Serve) -> None:
    async with serve("films") as server:
        first = server.deployment.served().version
        second = await server.publish(1)
        await serves(server.deployment, second)
        back = await server.admin("films", "rollback")
        await serves(server.deployment, first)
        forward = await server.admin("films", "rollback", version=second)
        await serves(server.deployment, second)
        same = await server.admin("films", "rollback", version=second)
    assert back.status_code == forward.status_code == same.status_code == 200
    assert back.json() == {
        "request_id": back.headers["x-request-id"],
        "catalogue": "films",
        "version": first,
        "before": second,
    }
    assert forward.json()["before"] == first
    assert same.json()["before"] == second


async def test_a_roll_back_passes_by_a_version_that_a_server_died_of_and_says_so(serve: Serve, tmp_path: Path) -> None:
    async with serve("films") as server:
        first = server.deployment.served().version
        dead = await server.publish(1)
        await serves(server.deployment, dead)
        third = await server.publish(2)
        await serves(server.deployment, third)
        other = FilesStore(tmp_path / "store", PATIENT)
        await other.allow("films", dead)  # what has passed stands, whatever comes after
        await other.end_trial("films", dead, "server-2", "died", "killed")
        back = await server.admin("films", "rollback")
        named = await server.admin("films", "rollback", version=dead)
        await server.admin("films", "rollback", version=first)
        await other.allow("films", first)
        await other.end_trial("films", first, "server-2", "died", "killed")
        await server.admin("films", "rollback", version=third)
        nowhere = await server.admin("films", "rollback")
        await other.close()
    assert (back.json()["version"], back.json()["before"]) == (first, third)
    assert back.json()["passed_by"] == [{"version": dead, "detail": "died on server-2 (killed)"}]
    assert "not_taken" not in back.json()
    assert (named.json()["version"], named.json()["not_taken"]) == (dead, "died on server-2 (killed)")
    assert (nowhere.status_code, nowhere.json()["field"]) == (422, "version")
    assert f"{first} died on server-2 (killed)" in nowhere.json()["detail"]


@pytest.mark.parametrize("action", ["rollback", "reload"])
async def test_only_catalogues_of_the_store_can_be_administered(serve: Serve, action: str) -> None:
    async with serve("films") as server:
        response = await server.admin("music", action)
        elsewhere = await server.client.post("/v1/admin/catalogues/films:forget", json={})
    assert response.status_code == 404
    assert response.json()["type"] == "urn:igd:problem:catalogue-not-found"
    assert response.json()["detail"] == "no catalogue 'music' follows the store; those that do: films"
    assert elsewhere.status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"version": "0" * 15}, "version"),
        ({"version": "../../../etc/pass"}, "version"),
        ({"version": 7}, "version"),
        ({"versoin": "0" * 16}, "versoin"),
        ([], "body"),
    ],
)
async def test_a_rollback_that_says_something_odd_is_refused(serve: Serve, body: Any, field: str) -> None:
    async with serve("films") as server:
        response = await server.client.post("/v1/admin/catalogues/films:rollback", json=body)
    assert (response.status_code, response.json()["field"]) == (422, field)


async def test_a_rollback_to_nowhere_is_refused_and_moves_nothing(serve: Serve) -> None:
    async with serve("films") as server:
        served = server.deployment.served().version
        unknown = await server.admin("films", "rollback", version="0" * 16)
        none_before = await server.admin("films", "rollback")
        (info,) = (await server.catalogues())["catalogues"]
    assert unknown.status_code == none_before.status_code == 422
    assert "not stored" in unknown.json()["detail"]
    assert none_before.json()["field"] == "version"
    assert (info["version"], info["published"]) == (served, served)


async def test_a_cross_site_form_can_administer_nothing(serve: Serve) -> None:
    async with serve("films") as server:
        for action in ("rollback", "reload"):
            url = f"/v1/admin/catalogues/films:{action}"
            assert (await server.client.post(url)).status_code == 415
            assert (await server.client.post(url, data={"version": "x"})).status_code == 415
            assert (await server.client.get(url)).status_code == 405


async def test_a_reload_tries_a_refused_version_again(serve: Serve, tmp_path: Path) -> None:
    async with serve("films") as server:
        bad = await server.publish(1)
        (folder,) = (tmp_path / "store" / "artifacts" / "films").glob(f"{bad}*")
        whole = (folder / "items.parquet").read_bytes()
        (folder / "items.parquet").write_bytes(whole[:-1])
        await until(lambda: bool(list(server.deployment.live("films").refusals)))  # type: ignore[union-attr]
        (folder / "items.parquet").write_bytes(whole)
        response = await server.admin("films", "reload")
        assert response.status_code == 202
        assert response.json() == {"request_id": response.headers["x-request-id"], "catalogue": "films"}
        await serves(server.deployment, bad)


async def test_items_are_looked_for_in_the_catalogue_that_is_named(serve: Serve) -> None:
    async with serve("films", "books", catalogues=("films", "books")) as server:
        by_default = await server.client.get("/v1/items", params={"limit": 1})
        books = await server.client.get("/v1/items", params={"limit": 1, "catalogue": "books"})
        book = await server.client.get("/v1/items/books-0-3", params={"catalogue": "books"})
        no_film = await server.client.get("/v1/items/books-0-3")
        unknown = [
            await server.client.get("/v1/items", params={"catalogue": "music"}),
            await server.client.get("/v1/items/books-0-3", params={"catalogue": "music"}),
        ]
    assert by_default.json()["items"][0]["item_id"] == "films-0-0"
    assert books.json()["items"][0]["item_id"] == "books-0-0"
    assert book.json()["title"] == "The books of 0, part 3"
    assert no_film.status_code == 404
    assert [(response.status_code, response.json()["field"]) for response in unknown] == [(422, "catalogue")] * 2


async def test_a_search_is_answered_by_a_thread_while_others_are_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve("films") as server:
        loop, others_served = asyncio.get_running_loop(), asyncio.Event()
        titles = server.deployment.served().titles
        find = type(titles).find

        def waits_for_others(*args: Any, **kwargs: Any) -> Any:
            asyncio.run_coroutine_threadsafe(others_served.wait(), loop).result(20)
            return find(*args, **kwargs)

        monkeypatch.setattr(type(titles), "find", waits_for_others)
        async with asyncio.TaskGroup() as group:
            searches = [group.create_task(server.client.get("/v1/items", params={"query": "part 3"})) for _ in range(4)]
            assert (await server.client.get("/healthz")).status_code == 200
            others_served.set()
    for search in searches:
        assert [item["item_id"] for item in search.result().json()["items"]] == ["films-0-3"]


async def test_a_server_that_drains_is_not_ready_and_answers_on(serve: Serve) -> None:
    async with serve("films") as server:
        server.deployment.draining = True
        ready = await server.client.get("/readyz")
        answer = await server.client.post("/v1/recommendations", json={"history": ["films-0-1"], "k": 2})
    assert (ready.status_code, answer.status_code) == (503, 200)


async def test_variants_are_listed_with_the_catalogue_that_they_name(serve: Serve) -> None:
    variants = (Variant(name="new", weight=2, catalogue="news"), Variant(name="plain"))
    async with serve("films", "news", catalogues=("films", "news"), variants=variants) as served:
        assert (await served.catalogues())["variants"] == [
            {"name": "new", "weight": 2, "catalogue": "news"},
            {"name": "plain", "weight": 1},
        ]
