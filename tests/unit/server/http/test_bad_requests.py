from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from films import Run

PATH = "/v1/recommendations"
JSON = {"Content-Type": "application/json"}


def check_problem(response: Any, status: int, name: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) - {"field"} == {"type", "title", "status", "detail", "request_id"}
    assert body["type"] == f"urn:igd:problem:{name}"
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    return body


@pytest.mark.parametrize(
    ("body", "field", "shown"),
    [
        ({"k": 0}, "k", "got 0"),
        ({"k": 101}, "k", "got 101"),
        ({"k": 21}, "k", "21 items wanted; the catalogue has 20"),
        ({"k": True}, "k", "got true"),
        ({"k": "5"}, "k", "got '5'"),
        ({"k": 5.0}, "k", "got 5.0"),
        ({"k": None}, "k", "got null"),
        ({"alpha": 7}, "alpha", "got 7"),
        ({"alpha": -0.1}, "alpha", "got -0.1"),
        ({"alpha": True}, "alpha", "got true"),
        ({"beams": 0}, "beams", "got 0"),
        ({"beams": 201}, "beams", "got 201"),
        ({"temperature": 0}, "temperature", "got 0"),
        ({"length_penalty": 2.5}, "length_penalty", "got 2.5"),
        ({"forced_weight": 1.5}, "forced_weight", "got 1.5"),
        ({"history": ["1"] * 10_000}, "history", "10000 items; this server takes at most 1000"),
        ({"history": "1"}, "history", "got '1'"),
        ({"history": None}, "history", "got null"),
        ({"history": ["1", 2]}, "history[1]", "got 2"),
        ({"history": [""]}, "history[0]", "got ''"),
        ({"history": ["x" * 257]}, "history[0]", "256"),
        ({"history": ["\ud800"]}, "history[0]", "unicode"),
        ({"allow": {"1": 2}}, "allow", "an object of 1"),
        ({"exclude_seen": 1}, "exclude_seen", "got 1"),
        ({"explain": "yes"}, "explain", "got 'yes'"),
        ({"timeout_ms": 0}, "timeout_ms", "got 0"),
        ({"timeout_ms": 60_001}, "timeout_ms", "60001; this server takes at most 60000"),
        ({"filter": []}, "filter", "an array of 0"),
        ({"filter": {"genres": None}}, "filter.genres", "got null"),
        ({"filter": {"genres": []}}, "filter.genres", "0 values"),
        ({"filter": {"genres": [["Drama"]]}}, "filter.genres", "of operators; got an array of 1"),
        ({"filter": {"genres": ["x"] * 101}}, "filter.genres", "101 values"),
        ({"filter": {"director": "Coen"}}, "filter", "no attribute 'director'; the catalogue has: genres, year"),
        ({"filter": {f"c{n}": 1 for n in range(17)}}, "filter", "17"),
        ({"user": "u1"}, "user", "no such field"),
        ({"user_id": ""}, "user_id", "got ''"),
        ({"user_id": "a\nb"}, "user_id", r"got 'a\nb'"),
        ({"variant": "b"}, "variant", "'b'"),
        ({"catalogue": "books"}, "catalogue", "no catalogue 'books'; this server has: films"),
        ([], "body", "an array of 0"),
        ("text", "body", "got 'text'"),
        (None, "body", "required"),
    ],
)
async def test_a_bad_value_is_refused_with_its_field_and_the_value(run: Run, body: Any, field: str, shown: str) -> None:
    async with run() as running:
        response = await running.client.post(PATH, content=json.dumps(body), headers=JSON)
    problem = check_problem(response, 422, "invalid-field")
    assert problem["field"] == field
    assert shown in problem["detail"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"history": ["1"',
        b"{'history': []}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"history": []}}',
    ],
    ids=["cut", "quotes", "no-utf8", "nested", "trailing"],
)
async def test_what_is_no_json_is_400(run: Run, raw: bytes) -> None:
    async with run() as running:
        response = await running.client.post(PATH, content=raw, headers=JSON)
    check_problem(response, 400, "malformed-json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["alpha", "temperature", "k"])
async def test_a_number_that_is_none_is_refused(run: Run, number: str, field: str) -> None:
    async with run() as running:
        response = await running.client.post(PATH, content=f'{{"{field}": {number}}}', headers=JSON)
    assert check_problem(response, 422, "invalid-field")["field"] == field


@pytest.mark.parametrize("name", ["x" * 500_000, "\ud800", "a\nb", "a.b[0]"])
async def test_an_odd_field_name_comes_back_bounded_and_encodable(run: Run, name: str) -> None:
    async with run() as running:
        response = await running.client.post(PATH, content=json.dumps({name: "\ud800" * 3}), headers=JSON)
    problem = check_problem(response, 422, "invalid-field")
    assert len(response.content) < 2000
    assert problem["field"] in {name[:128], "body"}


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
async def test_another_content_type_is_415(run: Run, media_type: str) -> None:
    async with run() as running:
        response = await running.client.post(PATH, content=b"{}", headers={"Content-Type": media_type})
        fine = await running.client.post(
            PATH, content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}
        )
    check_problem(response, 415, "unsupported-media-type")
    assert response.headers["accept"] == "application/json"
    assert fine.status_code == 200


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([("Content-Encoding", "gzip")], "content-encoding: 'gzip'; expected 'identity'"),
        ([("Content-Encoding", "identity"), ("Content-Encoding", "Br")], "content-encoding: 'Br'"),
        ([("Content-Encoding", "identity, deflate")], "content-encoding: 'deflate'"),
        ([("Transfer-Encoding", "gzip, chunked")], "transfer-encoding: 'gzip'; expected 'chunked'"),
    ],
)
async def test_a_coded_body_is_415_on_every_route_that_reads_one(
    run: Run, headers: list[tuple[str, str]], detail: str
) -> None:
    async with run() as running:
        document = running.app.openapi()
        reading = [path for path, methods in document["paths"].items() if "requestBody" in methods.get("post", {})]
        assert len(reading) == 8
        for path in reading:
            response = await running.client.post(
                path.replace("{name}", "films"), content=gzip.compress(b"{}"), headers=[*JSON.items(), *headers]
            )
            assert detail in check_problem(response, 415, "unsupported-media-type")["detail"]
            assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("header", ["Identity", "identity, identity", "", " , "])
async def test_a_body_that_is_not_coded_may_say_so(run: Run, header: str) -> None:
    async with run() as running:
        response = await running.client.post(PATH, content=b"{}", headers={**JSON, "Content-Encoding": header})
    assert response.status_code == 200


async def test_a_body_that_says_it_is_too_large_is_refused_unread(run: Run) -> None:
    async with run(max_body_bytes=2048) as running:
        response = await running.client.post(PATH, content=b"{" + b" " * 2048, headers=JSON)
        fits = await running.client.post(PATH, content=b"{}" + b" " * 2046, headers=JSON)
    assert "2048 bytes" in check_problem(response, 413, "body-too-large")["detail"]
    assert fits.status_code == 200


async def test_a_body_of_unsaid_length_is_refused_as_soon_as_it_is_too_large(run: Run) -> None:
    chunks_taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal chunks_taken
        while True:
            chunks_taken += 1
            yield b" " * 1024

    async with run(max_body_bytes=10_240) as running:
        response = await running.client.post(PATH, content=endless(), headers=JSON)
    check_problem(response, 413, "body-too-large")
    assert chunks_taken == 11


async def test_a_body_that_does_not_arrive_is_408(run: Run) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        import asyncio

        yield b"{"
        await asyncio.sleep(30)

    async with run(body_timeout_s=0.05) as running:
        response = await running.client.post(PATH, content=stalled(), headers=JSON)
    check_problem(response, 408, "body-timeout")


async def test_unknown_paths_and_methods_are_problems_too(run: Run) -> None:
    async with run() as running:
        check_problem(await running.client.get("/v2/recommendations"), 404, "not-found")
        check_problem(await running.client.get("/v1/recommendations/"), 404, "not-found")
        wrong = await running.client.delete(PATH)
        check_problem(wrong, 405, "method-not-allowed")
    assert wrong.headers["allow"] == "POST"


async def test_an_unforeseen_error_is_a_problem_that_tells_nothing(run: Run) -> None:
    async with run() as running:
        running.deployment.lease = lambda _=None: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        response = await running.recommend(history=["1"])
    problem = check_problem(response, 500, "internal-error")
    assert "division" not in json.dumps(problem)
