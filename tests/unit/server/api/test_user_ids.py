"""One user, one id: what reads the same is the same, and no URL made of an id means another user."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.api.user_ids import forms_of, user_id_of

from igd_core.store.events import MAX_USER_ID_CHARS, Event

if TYPE_CHECKING:
    from films import Run, Running

COMPOSED, DECOMPOSED = "Zo\u00eb", "Zoe\u0308"
DOTTED = [".", "..", "../b", "a/..", "a/../b", "./b", "a/./b", "../../b"]
PLAIN = [
    "...",
    "a.b",
    "..a",
    "a..",
    ".a/b.",
    "a@example.org",
    "a/b",
    "https://id.example/u/1",
    "%2e%2e",
    "a\\..\\b",
    "1.0/2.0",
]


async def clicked(running: Running, user_id: str, **more: Any) -> httpx.Response:
    event = {"user_id": user_id, "item_id": "1", "timestamp": "2026-01-31T12:00:00Z", **more}
    return await running.client.post("/v1/events", json={"events": [event]})


async def source(running: Running, user_id: str) -> str:
    return str((await running.recommend(user_id=user_id, k=3)).json()["source"])


async def raw_path(running: Running, method: str, user_id: str) -> httpx.Response:
    """What a client sends that shortens no path: each character of the id percent-encoded."""
    encoded = "".join(f"%{byte:02X}" for byte in user_id.encode())
    request = running.client.build_request(method, "/v1/users/u")
    request.url = request.url.copy_with(raw_path=f"/v1/users/{encoded}".encode())
    return await running.client.send(request)


async def forget(running: Running, user_id: str) -> int:
    return (await running.client.post("/v1/users:forget", json={"user_id": user_id})).status_code


@pytest.mark.parametrize("user_id", DOTTED)
async def test_an_id_that_a_url_would_shorten_is_refused_wherever_a_user_is_named(run: Run, user_id: str) -> None:
    async with run() as running:
        refused = [await clicked(running, user_id), await running.recommend(user_id=user_id)]
        batch = await running.client.post("/v1/recommendations:batch", json={"requests": [{"user_id": user_id}]})
        assert await forget(running, user_id) == 200, "an earlier release may have stored something"
        in_path = [await raw_path(running, method, user_id) for method in ("GET", "DELETE")]
    assert [(answer.status_code, answer.json()["field"]) for answer in in_path] == [(422, "user_id")] * 2
    assert [answer.status_code for answer in refused] == [422, 422]
    assert [answer.json()["field"] for answer in refused] == ["events[0].user_id", "user_id"]
    assert "may not be '.' or '..'" in refused[0].json()["detail"]
    assert batch.json()["results"][0]["status"] == 422


@pytest.mark.parametrize("user_id", DOTTED)
def test_such_an_id_does_mean_another_user_to_a_client(user_id: str) -> None:
    """Why they are refused: what httpx sends, as browsers and curl do."""
    sent = httpx.URL(f"http://localhost/v1/users/{user_id}").raw_path
    assert sent != f"/v1/users/{user_id}".encode()


@pytest.mark.parametrize("user_id", PLAIN)
async def test_any_other_dots_and_slashes_are_kept_and_forgotten(run: Run, user_id: str) -> None:
    async with run() as running:
        assert (await clicked(running, user_id)).status_code == 200
        assert await source(running, user_id) == "model"
        deleted = await running.client.delete(f"/v1/users/{quote(user_id, safe='')}")
        assert deleted.status_code == 200
        assert await source(running, user_id) == "popularity"


@pytest.mark.parametrize(("sent", "asked"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
async def test_ids_that_read_the_same_are_one_user(run: Run, sent: str, asked: str) -> None:
    async with run() as running:
        assert (await clicked(running, sent)).json()["accepted"] == 1
        assert (await clicked(running, asked)).json()["duplicates"] == 1
        assert await source(running, asked) == "model"
        assert await forget(running, asked) == 200
        assert await source(running, sent) == "popularity"
        await clicked(running, sent)
        assert (await running.client.delete(f"/v1/users/{quote(asked)}")).status_code == 200
        assert await source(running, sent) == "popularity"


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED, ".."])
async def test_what_an_earlier_release_stored_as_it_came_is_forgotten(run: Run, stored: str) -> None:
    from igd_core.store.memory import MemoryStore

    stores: list[MemoryStore] = []
    original = MemoryStore.__init__

    def remember(self: MemoryStore, *args: Any, **kwargs: Any) -> None:
        stores.append(self)
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStore, "__init__", remember)
        async with run() as running:
            store = stores[0]
            await store.append(stored, [Event(event_id="e", item_id="1", timestamp_ms=1)])
            assert await forget(running, unicodedata.normalize("NFC", stored)) == 200
            assert await store.history(stored) == []


async def test_forgetting_asks_for_one_user_in_json(run: Run) -> None:
    async with run() as running:
        for body, field in (
            ({}, "user_id"),
            ({"user_id": ""}, "user_id"),
            ({"user_id": "a\tb"}, "user_id"),
            ([], "body"),
        ):
            refused = await running.client.post("/v1/users:forget", json=body)
            assert (refused.status_code, refused.json()["field"]) == (422, field)
        form = await running.client.post("/v1/users:forget", data={"user_id": "u"})
        assert form.status_code == 415


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=MAX_USER_ID_CHARS))
def test_an_id_is_its_own_id_and_each_of_its_forms_means_the_same(text: str) -> None:
    try:
        user_id = user_id_of(text)
    except ValueError:
        return
    assert user_id_of(user_id) == user_id
    assert user_id in forms_of(text)
    for form in forms_of(text):
        assert user_id_of(form) == user_id


def test_a_text_that_grows_when_composed_is_bounded() -> None:
    grows = "\u0958" * MAX_USER_ID_CHARS
    with pytest.raises(ValueError, match="512 characters when composed"):
        user_id_of(grows)
