"""The metrics as a scraper reads them: names, units, bounded labels, and the gauges of live parts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from film_apps import ask, running
from igd_server.observe.metrics import Metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from igd_core.search.session import SessionStats

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer

UNITS = ("_total", "_seconds", "_bytes", "_info")
COUNTS = {
    "igd_attempts_died",  # gauges and histograms of plain numbers, which have no unit
    "igd_ready",
    "igd_requests_running",
    "igd_request_cost",
    "igd_admission_running",
    "igd_admission_waiting",
    "igd_catalogue_following",
    "igd_catalogue_items",
    "igd_catalogue_items_recommended",
    "igd_decoding_rounds",
    "igd_engine_queue",
    "igd_engine_sessions",
    "igd_engine_versions",
    "igd_keys_file_valid",
    "igd_store_up",
}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, through the OpenMetrics text that Prometheus asks for first."""
    text = metrics.render("application/openmetrics-text; version=1.0.0")[0].decode()
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


async def test_every_metric_of_ours_says_its_unit_and_what_it_is(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with running(films, tokenizer, tmp_path) as apps:
        text = (await ask(apps, "/metrics")).text
    described = dict(re.findall(r"^# HELP (igd_\S+(?<!_created)) (.+)$", text, re.MULTILINE))
    # Series of creation times are switched off where a server runs, for the whole process.
    kinds = dict(re.findall(r"^# TYPE (igd_\S+(?<!_created)) (\S+)$", text, re.MULTILINE))
    assert set(described) == set(kinds)
    assert {name for name in kinds if not name.endswith(UNITS)} == COUNTS
    for name, kind in kinds.items():
        assert (kind == "counter") == name.endswith("_total"), name


async def test_gauges_show_what_is_served_and_who_waits(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with running(films, tokenizer, tmp_path) as apps:
        labels = {"catalogue": "films", "version": films.version}
        assert value(apps.metrics, "igd_catalogue_info", **labels) == 1
        assert value(apps.metrics, "igd_catalogue_items", catalogue="films") == 20
        loaded = value(apps.metrics, "igd_catalogue_loaded_timestamp_seconds", catalogue="films")
        assert loaded == pytest.approx(apps.deployment.served().loaded_at.timestamp())
        assert value(apps.metrics, "igd_ready") == 1
        assert value(apps.metrics, "igd_engine_versions") == 1
        assert value(apps.metrics, "igd_admission_running") == value(apps.metrics, "igd_admission_waiting") == 0
        apps.deployment.draining = True
        assert value(apps.metrics, "igd_ready") == 0


async def test_answers_are_counted_by_source_variant_and_catalogue_and_lookups_by_outcome(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    variants = ({"name": "a", "weight": 1}, {"name": "b", "weight": 0, "alpha": 0.5})
    async with running(films, tokenizer, tmp_path, variants=variants) as apps:
        for _ in range(2):
            await ask(apps, "/v1/recommendations", {"history": ["1"], "k": 3})
        await ask(apps, "/v1/recommendations", {"history": [], "variant": "b"})
        await ask(apps, "/v1/recommendations", {"k": 0})
        await ask(apps, f"/{'x' * 50}")
        metrics = apps.metrics
        model = {"source": "model", "variant": "a", "catalogue": "films"}
        assert value(metrics, "igd_recommendations_total", **model) == 2
        assert value(metrics, "igd_recommendations_total", source="popularity", variant="b", catalogue="films") == 1
        assert value(metrics, "igd_result_lookups_total", outcome="miss") == 1
        assert value(metrics, "igd_result_lookups_total", outcome="local") == 1
        assert value(metrics, "igd_decoding_rounds_count") == 1
        assert value(metrics, "igd_admission_wait_seconds_count") == 1
        assert value(metrics, "igd_requests_total", route="/v1/recommendations", status="422") == 1
        assert value(metrics, "igd_requests_total", route="unmatched", status="404") == 1
        assert value(metrics, "igd_requests_running") == 0
        assert "xxx" not in metrics.render("")[0].decode()


async def test_items_that_answers_showed_are_counted_once_each(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with running(films, tokenizer, tmp_path) as apps:
        shown: set[str] = set()
        for history in (["1"], ["1"], ["5", "9"], []):
            answer = (await ask(apps, "/v1/recommendations", {"history": history, "k": 3})).json()
            shown |= {name for item in answer["items"] for name in (item["item_id"], *item.get("duplicates", ()))}
            assert value(apps.metrics, "igd_catalogue_items_recommended", catalogue="films") == len(shown)


async def test_store_calls_are_counted_by_method_and_outcome(
    films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "1", "timestamp": 1_700_000_000_000}
    async with running(films, tokenizer, tmp_path) as apps:
        for _ in range(2):
            assert (await ask(apps, "/v1/events", {"events": [event]})).status_code == 200
        assert value(apps.metrics, "igd_store_calls_total", operation="append", outcome="ok") == 2
        assert value(apps.metrics, "igd_store_call_duration_seconds_count", operation="append") == 2
        assert value(apps.metrics, "igd_events_total", outcome="accepted") == 1
        assert value(apps.metrics, "igd_events_total", outcome="duplicate") == 1
        assert value(apps.metrics, "igd_store_up") == 1


def test_the_store_is_down_from_a_call_that_failed_to_one_that_was_answered() -> None:
    metrics = Metrics()

    def up() -> float | None:
        return value(metrics, "igd_store_up")

    assert up() == 1  # innocent until asked
    metrics.observe_store("get", "unavailable", 0.25)
    assert up() == 0
    metrics.observe_store("get", "cancelled", 0.1)  # says nothing of the store
    assert up() == 0
    metrics.observe_store("fetch", "refused", 0.1)  # it answered
    assert up() == 1
    metrics.observe_store_given_up("history", "late")
    assert up() == 0
    metrics.observe_store("history", "ok", 0.01)
    metrics.observe_store_given_up("history", "unasked")
    assert up() == 1
    assert value(metrics, "igd_store_given_up_total", operation="history", reason="late") == 1


def test_what_others_count_arrives_under_its_name() -> None:
    metrics = Metrics()
    metrics.observe_rejected("queue-full")
    metrics.observe_limiter_fallback()
    metrics.observe_keys_file(valid=False)
    metrics.observe_fallback("deadline-exceeded")
    metrics.observe_attributed(variant="a", catalogue="films")
    metrics.observe_followed(variant="a", catalogue="films")
    metrics.observe_attribution_dropped()
    metrics.observe_refused_catalogue("films", "tokenizer")
    metrics.observe_swap("films", 3.0)
    stats = SessionStats(rounds=3, prompt_tokens=10, cached_tokens=4, model_tokens=20, queue_s=0.5, model_s=1.0)
    metrics.observe_decoding(stats)
    for name, labels, expected in (
        ("igd_rejected_requests_total", {"reason": "queue-full"}, 1),
        ("igd_rate_limit_fallbacks_total", {}, 1),
        ("igd_keys_file_valid", {}, 0),
        ("igd_fallbacks_total", {"reason": "deadline-exceeded"}, 1),
        ("igd_attributed_events_total", {"variant": "a", "catalogue": "films"}, 1),
        ("igd_followed_answers_total", {"variant": "a", "catalogue": "films"}, 1),
        ("igd_attributions_dropped_total", {}, 1),
        ("igd_refused_versions_total", {"catalogue": "films", "reason": "tokenizer"}, 1),
        ("igd_catalogue_swap_seconds_sum", {"catalogue": "films"}, 3),
        ("igd_decoding_rounds_sum", {}, 3),
        ("igd_model_tokens_total", {"kind": "prompt"}, 6),
        ("igd_model_tokens_total", {"kind": "cached"}, 4),
        ("igd_model_tokens_total", {"kind": "tree"}, 14),
        ("igd_engine_queue_seconds_sum", {}, 0.5),
        ("igd_model_seconds_sum", {}, 1.0),
    ):
        assert value(metrics, name, **labels) == expected, name


def test_two_processes_worth_of_metrics_are_apart() -> None:
    one, other = Metrics(), Metrics()
    one.observe_rejected("rate")
    assert value(one, "igd_rejected_requests_total", reason="rate") == 1
    assert value(other, "igd_rejected_requests_total", reason="rate") == 0.0
