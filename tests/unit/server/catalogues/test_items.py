from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from films import ITEM_IDS, NUM_ITEMS, TITLES
from hypothesis import given
from hypothesis import strategies as st
from igd_server.catalogues.titles import TitleSearch, normalised
from patience import PATIENCE_S

from igd_core.catalogue.items import Catalogue

if TYPE_CHECKING:
    from films import Run


def found_by_looking(titles: list[str], frequency: list[int], query: str) -> list[int]:
    """Every title, one by one."""
    needle = normalised(query)
    by_popularity = sorted(range(len(titles)), key=lambda row: (-frequency[row], row))
    if not query.strip():
        return by_popularity
    padded = {row: f" {normalised(titles[row])}" for row in by_popularity}
    begins = [row for row in by_popularity if needle and f" {needle}" in padded[row]]
    return begins + [row for row in by_popularity if needle and needle in padded[row] and row not in begins]


@given(
    titles=st.lists(st.text("ab é'-Ab", min_size=1, max_size=8), min_size=1, max_size=12),
    query=st.text("abé -", max_size=3),
    limit=st.integers(1, 5),
    offset=st.integers(0, 5),
    data=st.data(),
)
def test_the_search_finds_what_looking_at_every_title_finds(
    titles: list[str], query: str, limit: int, offset: int, data: st.DataObject
) -> None:
    frequency = data.draw(st.lists(st.integers(0, 3), min_size=len(titles), max_size=len(titles)))
    catalogue = Catalogue(
        item_ids=[str(row) for row in range(len(titles))],
        titles=titles,
        texts=titles,
        frequency=np.array(frequency, dtype=np.int64),
        metadata={},
    )
    found = TitleSearch(catalogue).find(query, limit=limit, offset=offset)
    assert list(found) == found_by_looking(titles, frequency, query)[offset : offset + limit]


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("star", ["Star Wars", "Star Trek: First Contact", "Stargate", "The Star Maker"]),
        ("STAR w", ["Star Wars"]),
        ("trek first", ["Star Trek: First Contact"]),
        ("amelie", ["Le Fabuleux Destin d'Amélie Poulain"]),
        ("BOHÈME", ["La Vie de Bohème"]),
        ("damelie", ["Le Fabuleux Destin d'Amélie Poulain"]),
        ("ustard", ["Mustard"]),
        ("の侍", ["七人の侍"]),
        ("no such film", []),
        ("!?", []),
        ("% _ .*", []),
    ],
)
async def test_titles_are_found_whatever_the_case_and_accents(run: Run, query: str, titles: list[str]) -> None:
    async with run() as running:
        body = (await running.client.get("/v1/items", params={"query": query, "limit": 4})).json()
    assert [item["title"] for item in body["items"]] == titles


async def test_pages_follow_one_another_and_end(run: Run) -> None:
    seen: list[str] = []
    offset: int | None = 0
    async with run() as running:
        while offset is not None:
            body = (await running.client.get("/v1/items", params={"limit": 7, "offset": offset})).json()
            seen += [item["item_id"] for item in body["items"]]
            offset = body.get("next_offset")
    assert seen == ITEM_IDS
    assert len(seen) == NUM_ITEMS


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"offset": "-1"}, "offset"),
        ({"offset": "1001"}, "offset"),
        ({"query": "x" * 201}, "query"),
        ({"q": "star"}, "q"),
    ],
)
async def test_bad_parameters_are_refused_by_name(run: Run, params: dict[str, str], field: str) -> None:
    async with run() as running:
        response = await running.client.get("/v1/items", params=params)
    assert response.status_code == 422
    assert response.json()["field"] == field


async def test_one_item_by_its_id_even_an_odd_one(run: Run) -> None:
    async with run() as running:
        first = (await running.client.get("/v1/items/1")).json()
        odd = (await running.client.get("/v1/items/odd%2Fid%2020%25")).json()
        missing = await running.client.get("/v1/items/ghost")
    assert first == {
        "item_id": "1",
        "title": TITLES[0],
        "interactions": NUM_ITEMS,
        "attributes": {"genres": ["Action", "Sci-Fi"], "year": 1990},
    }
    assert odd["title"] == TITLES[-1]
    assert missing.status_code == 404
    assert missing.json()["type"] == "urn:igd:problem:item-not-found"
    assert missing.json()["field"] == "item_id"


async def test_a_caller_of_many_searches_does_not_keep_anothers_waiting(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Semaphore(0), threading.Event()
    find = TitleSearch.find

    def slow(self: TitleSearch, query: str, **options: Any) -> Any:
        if query == "slow":
            begun.release()
            release.wait(10)
        return find(self, query, **options)

    monkeypatch.setattr(TitleSearch, "find", slow)
    async with run() as running:
        other = httpx.ASGITransport(running.app, client=("192.0.2.7", 1))
        async with httpx.AsyncClient(transport=other, base_url="http://localhost") as client:
            many = [asyncio.create_task(running.client.get("/v1/items", params={"query": "slow"})) for _ in range(8)]
            try:
                for _ in range(2):
                    assert await asyncio.to_thread(begun.acquire, timeout=10)
                async with asyncio.timeout(PATIENCE_S):
                    answer = await client.get("/v1/items", params={"query": "star w"})
                assert not any(task.done() for task in many)
            finally:
                release.set()
            assert {task.result().status_code for task in many if await task} == {200}
    assert [item["title"] for item in answer.json()["items"]] == ["Star Wars"]
