"""Prometheus metrics, in a registry of their own. Labels are bounded: route templates, statuses, sources, reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from igd_core.recommender import Recommendation
    from server.deployment import Deployment

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROUNDS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40)


class Metrics:
    """What this process counts."""

    def __init__(self, deployment: Deployment) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_DeploymentCollector(deployment))
        self._requests = Counter(
            "igd_requests", "HTTP requests; status 499: the client left.", ("route", "status"), registry=registry
        )
        self._duration = Histogram(
            "igd_request_duration_seconds", "From request to response.", ("route",), registry=registry, buckets=_SECONDS
        )
        self._recommendations = Counter(
            "igd_recommendations", "Answers, by who ranked them.", ("source",), registry=registry
        )
        self._fallbacks = Counter(
            "igd_fallbacks", "Popularity answers because the model gave none.", ("reason",), registry=registry
        )
        self._rounds = Histogram(
            "igd_decoding_rounds", "Model calls of a recommendation.", registry=registry, buckets=_ROUNDS
        )
        self._tokens = Counter(
            "igd_model_tokens",
            "Tokens: computed for prompts, taken from the prompt cache, computed for the catalogue's tree.",
            ("kind",),
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "igd_engine_queue_seconds", "A recommendation's wait for the model.", registry=registry, buckets=_SECONDS
        )
        self._model_seconds = Histogram(
            "igd_model_seconds", "A recommendation's time in the model.", registry=registry, buckets=_SECONDS
        )

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def observe_fallback(self, reason: str) -> None:
        """Count a popularity answer that stands in for the model's."""
        self._fallbacks.labels(reason).inc()

    def observe_recommendation(self, recommendation: Recommendation) -> None:
        """Count an answer and what it cost."""
        self._recommendations.labels(recommendation.source).inc()
        stats = recommendation.stats
        if not stats.rounds:
            return
        prompt = stats.prompt_tokens - stats.cached_tokens
        self._rounds.observe(stats.rounds)
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("cached").inc(stats.cached_tokens)
        self._tokens.labels("tree").inc(max(0, stats.model_tokens - prompt))
        self._queue_seconds.observe(stats.queue_s)
        self._model_seconds.observe(stats.model_s)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the format that a scraper's Accept header asks for; and that format's media type."""
        encoder, media_type = choose_encoder(accept)
        return encoder(self._registry), media_type


class _DeploymentCollector(Collector):
    """Gauges that are asked for at each scrape rather than kept up to date."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample of each gauge; the engine's only while there is one."""
        ready = self._deployment.why_not_ready() is None
        yield GaugeMetricFamily("igd_ready", "1 while recommendations are served.", value=float(ready))
        served = self._deployment.current
        if served is None:
            return
        stats = served.recommender.engine.stats()
        yield GaugeMetricFamily("igd_engine_queue", "Model calls waiting.", value=stats.waiting)
        yield GaugeMetricFamily("igd_engine_sessions", "Recommendations being decoded.", value=stats.sessions)
        yield GaugeMetricFamily("igd_prefix_cache_bytes", "Key-value caches of past prompts.", value=stats.cache_bytes)
        info = GaugeMetricFamily("igd_catalogue_info", "1 for the version served.", labels=("catalogue", "version"))
        info.add_metric((served.artifact.manifest.name, served.artifact.version), 1)
        yield info
