"""Traces as a collector receives them: a real OTLP receiver, a real app."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from film_apps import ask, running
from igd_server.observe.tracing import Tracing, open_tracing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx
    from igd_server.app import Apps
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Keeps every span it is sent; slow where told."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.release = threading.Event()
        self.release.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.release.wait(20)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append({at.key: at.value.string_value for at in resource.resource.attributes})
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.release.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def facts(span: Span) -> dict[str, Any]:
    return {at.key: getattr(at.value, at.value.WhichOneof("value") or "") for at in span.attributes}


async def recommend(apps: Apps, **headers: str) -> httpx.Response:
    body = {"history": ["1", "5"], "k": 3, "user_id": "secret-user"}
    return await ask(apps, "/v1/recommendations", body, **headers)


async def test_a_request_is_one_trace_of_queue_rounds_and_store_calls(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(films, tokenizer, tmp_path, otlp_endpoint=collector.endpoint) as apps:
        with caplog.at_level(logging.INFO, "igd"):
            answer = await recommend(apps, traceparent=f"00-{TRACE}-{PARENT}-01")
        await ask(apps, "/v1/items/ghost")
    await asyncio.to_thread(apps.tracing.close)

    (request,) = collector.named("POST /v1/recommendations")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    found = facts(request)
    assert found["http.route"] == "/v1/recommendations"
    assert found["http.response.status_code"] == 200
    assert found["igd.request_id"] == answer.json()["request_id"]

    of_it = [span for span in collector.spans if span.trace_id == request.trace_id and span is not request]
    names = {span.name for span in of_it}
    assert names == {"igd.store.get", "igd.queue", "igd.round"}
    assert all(span.parent_span_id == request.span_id for span in of_it)
    rounds = collector.named("igd.round")
    assert len(rounds) == answer.json()["timings"]["rounds"]
    for span in rounds:
        assert facts(span).keys() == {"igd.nodes", "igd.tokens", "igd.queue_ms", "igd.model_ms"}
        assert facts(span)["igd.nodes"] >= 1
    for span in of_it:
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano

    (other,) = collector.named("GET /v1/items/{item_id}")
    assert other.trace_id != request.trace_id
    assert facts(other)["http.response.status_code"] == 404
    # Warming, writing behind the answer: no request waits for them, so they are nobody's spans.
    assert {span.trace_id for span in collector.spans} == {request.trace_id, other.trace_id}
    assert collector.resources[0]["service.name"] == "igd"
    (line,) = [record for record in caplog.records if record.message == "request"]
    assert line.fields["trace_id"] == TRACE  # type: ignore[attr-defined]


async def test_spans_hold_no_titles_histories_users_or_keys(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path, collector: Collector
) -> None:
    async with running(films, tokenizer, tmp_path, otlp_endpoint=collector.endpoint) as apps:
        await recommend(apps, **{"X-API-Key": "igd_secret-key"})
        event = {"event_id": "e", "user_id": "secret-user", "item_id": "1", "timestamp": 1_700_000_000_000}
        await ask(apps, "/v1/events", {"events": [event]})
        await ask(apps, "/v1/items?query=secret-query")
    await asyncio.to_thread(apps.tracing.close)
    assert len(collector.named("igd.store.append")) == 1
    everything = str(collector.spans)
    assert "secret" not in everything
    assert not any(title in everything for title in films.catalogue.titles)


async def test_a_request_that_the_caller_does_not_sample_is_not_recorded(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path, collector: Collector
) -> None:
    async with running(films, tokenizer, tmp_path, otlp_endpoint=collector.endpoint) as apps:
        await recommend(apps, traceparent=f"00-{TRACE}-{PARENT}-00")
        assert (await recommend(apps, traceparent="nonsense")).status_code == 200
    await asyncio.to_thread(apps.tracing.close)
    (request,) = collector.named("POST /v1/recommendations")
    assert request.trace_id.hex() != TRACE


def test_a_collector_that_hangs_delays_neither_requests_nor_the_end(collector: Collector) -> None:
    collector.release.clear()
    tracing = open_tracing(collector.endpoint, timeout_s=0.5)
    started = time.monotonic()
    for _ in range(3000):  # more than the queue holds
        with tracing.request({}), tracing.span("igd.queue"):
            pass
    assert time.monotonic() - started < 60  # one export after the other: 1,500
    closing = time.monotonic()
    tracing.close()
    assert time.monotonic() - closing < 15  # the SDK's own end: 20 at least
    collector.release.set()
    for thread in threading.enumerate():
        if thread.name == "igd-last-spans":
            thread.join(20)


def fail(tracing: Tracing, name: str, error: BaseException) -> None:
    with tracing.request({}) as span:
        span.update_name(name)
        span.set_attributes({"a": 1})
        raise error


def test_what_ends_a_span_goes_on_though_nothing_is_recorded() -> None:
    with pytest.raises(ValueError, match="broken"):
        fail(Tracing(), "failed", ValueError("broken"))
    assert Tracing().trace_id() is None


async def test_failures_and_cancellations_are_marked(collector: Collector) -> None:
    tracing = open_tracing(collector.endpoint)
    with pytest.raises(ValueError, match="broken"):
        fail(tracing, "failed", ValueError("broken"))
    with pytest.raises(asyncio.CancelledError):
        fail(tracing, "cancelled", asyncio.CancelledError())
    await asyncio.to_thread(tracing.close)
    (failed,), (cancelled,) = collector.named("failed"), collector.named("cancelled")
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert facts(cancelled)["igd.cancelled"] is True
    assert "broken" not in str((failed, cancelled))  # a message may hold what a client sent


def test_without_an_endpoint_nothing_that_sends_is_imported() -> None:
    # redis-py imports parts of OpenTelemetry by itself where that is installed.
    code = (
        "import sys, igd_server.process; from igd_server.observe.tracing import open_tracing\n"
        "with open_tracing(None).request({}) as span: assert not span.is_recording()\n"
        "assert not {'opentelemetry.exporter', 'opentelemetry.sdk.trace.export'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_endpoint_without_the_packages_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        InputError, match=r"^otlp_endpoint: .* is not installed: pip install 'igd-recommender\[tracing\]'"
    ):
        open_tracing("http://127.0.0.1:1/v1/traces")
