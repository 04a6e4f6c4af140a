from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from films import TITLES, RecordingEngine
from igd_server.app import Sources, create_apps
from igd_server.catalogues.deployment import Deployment
from igd_server.observe.logs import JsonFormatter
from patience import PATIENCE_S

from igd_core.engines.fake import FakeEngine
from igd_core.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from films import Run

    from igd_core.artifact import Artifact


async def test_the_server_is_healthy_at_once_and_ready_when_warm(run: Run, films: Artifact) -> None:
    loaded = asyncio.Event()
    async with run() as running:
        loop = asyncio.get_running_loop()

        def read_when_told(_: Path) -> Artifact:
            asyncio.run_coroutine_threadsafe(loaded.wait(), loop).result()
            return films

        open_model = running.deployment._open_model
        apps = create_apps(running.settings, Sources(open_model=open_model, read_artifact=read_when_told))
        app = apps.main
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            early = await client.get("/readyz")
            unserved = await client.post("/v1/recommendations", json={})
            assert (await client.get("/v1/catalogues")).json()["catalogues"] == []
            assert "igd_ready 0.0" in (await client.get("/metrics")).text
            loaded.set()
            async with asyncio.timeout(PATIENCE_S):
                while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - as an orchestrator does
                    await asyncio.sleep(0.01)
            assert (await client.post("/v1/recommendations", json={})).status_code == 200
            assert "igd_ready 1.0" in (await client.get("/metrics")).text
    assert (early.status_code, unserved.status_code) == (503, 503)
    assert "being loaded" in early.json()["detail"]
    assert early.headers["retry-after"]
    assert apps.deployment.why_not_ready() == "the server is stopping"


async def test_a_start_that_fails_is_kept_and_reported(run: Run) -> None:
    calls: list[str] = []

    def refuse(_: Path) -> Artifact:
        raise ArtifactError("trie.safetensors: altered")

    async with run() as running:
        deployment = Deployment(running.settings, read_artifact=refuse)
        deployment.on_failure = lambda: calls.append("failed")
        await deployment.start()
    assert isinstance(deployment.failure, ArtifactError)
    assert calls == ["failed"]
    assert deployment.why_not_ready() == "the server could not start"


async def test_warming_is_a_real_recommendation_with_a_full_history(run: Run) -> None:
    engine = RecordingEngine()
    async with run(engine):
        pass
    assert len(engine.prompts) == 1
    assert len(engine.prompts[0]) > 40


async def test_a_dead_engine_is_not_ready(run: Run) -> None:
    engine = FakeEngine()
    async with run(engine) as running:
        assert (await running.client.get("/readyz")).status_code == 200
        await engine.close()
        response = await running.client.get("/readyz")
        assert (await running.client.get("/healthz")).status_code == 200
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"


async def test_catalogues_say_what_is_served(run: Run, films: Artifact) -> None:
    async with run() as running:
        (info,) = (await running.client.get("/v1/catalogues")).json()["catalogues"]
    assert info["version"] == films.version
    assert (info["name"], info["model"], info["items"], info["titles"]) == ("films", "fake", 20, 19)
    assert info["entropy_nats"] == pytest.approx(films.manifest.entropy_nats)
    assert (info["alpha"], info["max_history"]) == (0.0, 10)
    assert info["attributes"] == [
        {"name": "genres", "kind": "list", "type": "list-of-text"},
        {"name": "year", "kind": "number", "type": "integer"},
    ]


@pytest.mark.parametrize("offered", ["abc-1.2_Z", "x" * 128])
async def test_a_good_request_id_is_kept(run: Run, offered: str) -> None:
    async with run() as running:
        response = await running.client.post("/v1/recommendations", json={}, headers={"X-Request-ID": offered})
    assert response.headers["x-request-id"] == response.json()["request_id"] == offered


@pytest.mark.parametrize("offered", ["", "x" * 129, "a b", "a/b", "é", "a\x01"])
async def test_any_other_request_id_is_replaced(run: Run, offered: str) -> None:
    async with run() as running:
        headers = {b"X-Request-ID": offered.encode()}
        response = await running.client.post("/v1/recommendations", json={}, headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["x-request-id"] == response.json()["request_id"]


async def test_metrics_count_requests_by_template_and_what_the_model_did(run: Run) -> None:
    async with run() as running:
        answer = (await running.recommend(history=["1"], k=3)).json()
        await running.recommend(k=0)
        await running.recommend(history=[])
        await running.client.get("/v1/items/1")
        await running.client.get("/v1/items/ghost")
        for path in ("/nope", "/neither", "/v1/items/a/b/c"):
            await running.client.get(path)
        response = await running.client.get("/metrics")
    timings, text = answer["timings"], response.text
    assert response.headers["content-type"].startswith("text/plain")
    for line in (
        'igd_requests_total{route="/v1/recommendations",status="200"} 2.0',
        'igd_requests_total{route="/v1/recommendations",status="422"} 1.0',
        'igd_requests_total{route="/v1/items/{item_id}",status="200"} 1.0',
        'igd_requests_total{route="/v1/items/{item_id}",status="404"} 2.0',
        'igd_requests_total{route="unmatched",status="404"} 2.0',
        'igd_request_duration_seconds_count{route="/v1/recommendations"} 3.0',
        'igd_recommendations_total{catalogue="films",source="model",variant=""} 1.0',
        'igd_recommendations_total{catalogue="films",source="popularity",variant=""} 1.0',
        f"igd_decoding_rounds_sum {timings['rounds']:.1f}",
        f'igd_model_tokens_total{{kind="prompt"}} {timings["prompt_tokens"]:.1f}',
        f'igd_model_tokens_total{{kind="tree"}} {timings["model_tokens"] - timings["prompt_tokens"]:.1f}',
        'igd_model_tokens_total{kind="cached"} 0.0',
        "igd_engine_queue_seconds_count 1.0",
        "igd_model_seconds_count 1.0",
        "igd_engine_queue 0.0",
        "igd_passes_total 0.0",  # the fake engine has none
        "igd_pass_recommendations_total 0.0",
        "igd_pass_tokens_total 0.0",
        "igd_passes_split_total 0.0",
        "igd_engine_sessions 0.0",
        "igd_prefix_cache_bytes 0.0",
        "igd_ready 1.0",
        f'igd_catalogue_info{{catalogue="films",version="{answer["version"]}"}} 1.0',
    ):
        assert f"{line}\n" in text
    assert "process_resident_memory_bytes" in text


async def test_two_apps_in_one_process_count_apart(run: Run) -> None:
    async with run() as one, run() as other:
        await one.recommend(history=[])
        assert "igd_recommendations_total{" in (await one.client.get("/metrics")).text
        assert "igd_recommendations_total{" not in (await other.client.get("/metrics")).text


async def test_each_request_logs_one_line_without_titles_and_histories(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async with run() as running:
        with caplog.at_level(logging.INFO, "igd"):
            answer = (await running.recommend(history=["1", "secret-id"], k=3)).json()
            await running.client.get("/v1/items", params={"query": "star"})
            await running.client.get("/healthz")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "igd.server"]
    assert [line["event"] for line in lines] == ["request", "request"]
    first = lines[0]
    assert first["request_id"] == answer["request_id"]
    assert (first["route"], first["status"], first["source"]) == ("/v1/recommendations", 200, "model")
    assert first["version"] == answer["version"]
    assert first["duration_ms"] > 0
    written = json.dumps(lines)
    assert "secret-id" not in written
    assert "star" not in written.lower()
    assert not any(title in written for title in TITLES)


def test_log_lines_of_libraries_are_json_too() -> None:
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "x.py", 1, "odd %s\n%d", ("thing", 3), None)
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["logger"], line["message"]) == ("log", "uvicorn.error", "odd thing\n3")


async def test_the_page_and_its_files_are_served_under_a_strict_policy(run: Run, tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "index.html").write_text("<!doctype html><title>IGD</title>")
    (web / "app.js").write_text("export {}")
    (tmp_path / "secret").write_text("s")
    async with run() as running:
        page = await running.client.get("/")
        script = await running.client.get("/web/app.js")
        absent = await running.client.get("/web/none.css")
        outside = await running.client.get("/web/%2e%2e/secret")
    assert page.headers["content-type"].startswith("text/html")
    assert "javascript" in script.headers["content-type"]
    for response in (page, script):
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    for response in (absent, outside):
        assert response.status_code == 404
        assert response.json()["type"] == "urn:igd:problem:not-found"


async def test_without_a_page_the_root_is_404(run: Run) -> None:
    async with run() as running:
        assert (await running.client.get("/")).status_code == 404
        assert (await running.client.get("/web/app.js")).status_code == 404


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [reference for value in node.values() for reference in _references(value)]
    return [reference for value in node for reference in _references(value)] if isinstance(node, list) else []


async def test_openapi_documents_problems_as_problems_and_resolves(run: Run) -> None:
    async with run() as running:
        schema = (await running.client.get("/openapi.json")).json()
        docs = await running.client.get("/docs")
    assert docs.status_code == 200
    names = set(schema["components"]["schemas"])
    assert {reference.rpartition("/")[2] for reference in _references(schema)} <= names
    assert "HTTPValidationError" not in names
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == ["application/problem+json"]
    examples = schema["components"]["schemas"]["RecommendationRequest"]["examples"]
    async with run() as running:
        for example in examples:
            assert (await running.recommend(**example)).status_code == 200
