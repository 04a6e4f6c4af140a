"""Gauges of what is served, read at each scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.core import Metric

    from igd_core.search.engine import EngineStats
    from igd_core.search.identity import ModelIdentity
    from igd_server.catalogues.deployment import Deployment


class DeploymentGauges(Collector):
    """The served version of each catalogue, and the state of following, refusals and engine."""

    def __init__(self, deployment: Deployment, on_model: Callable[[ModelIdentity], None]) -> None:
        """``on_model`` gets the name of the served model at each scrape, so that its counters begin at 0."""
        self._deployment = deployment
        self._on_model = on_model

    def collect(self) -> Iterator[Metric]:
        """A sample of each gauge; those of the engine only if there is one."""
        ready = self._deployment.why_not_ready() is None
        yield GaugeMetricFamily(
            "igd_ready", "1 while recommendations are served, as /readyz says; else 0.", float(ready)
        )
        served = self._deployment.serving
        models = self._deployment.models
        if served and models is not None and (stats := models.stats()) is not None:
            yield from _engine(stats)
            identities = models.identities
            for identity in identities:
                self._on_model(identity)
            yield _model(identities)
        info = GaugeMetricFamily(
            "igd_catalogue_info", "1 for the catalogue version that is served.", labels=("catalogue", "version")
        )
        loaded = GaugeMetricFamily(
            "igd_catalogue_loaded_timestamp_seconds",
            "When the served version took over, in seconds since 1970.",
            labels=("catalogue",),
        )
        items = GaugeMetricFamily("igd_catalogue_items", "Items of the served version.", labels=("catalogue",))
        for name, catalogue in served.items():
            info.add_metric((name, catalogue.version), 1)
            loaded.add_metric((name,), catalogue.loaded_at.timestamp())
            items.add_metric((name,), len(catalogue.catalogue))
        yield from (info, loaded, items)
        yield from self._following()

    def _following(self) -> Iterator[GaugeMetricFamily]:
        following = GaugeMetricFamily(
            "igd_catalogue_following",
            "0 while the pointer in the store cannot be followed, or was not read for a minute and three polls.",
            labels=("catalogue",),
        )
        lag = GaugeMetricFamily(
            "igd_catalogue_lag_seconds",
            "How long the pointer has named another version than the one served; 0 while they agree.",
            labels=("catalogue",),
        )
        for name in self._deployment.catalogue_names:
            live = self._deployment.live(name)  # None for a directory's catalogue, which never changes
            following.add_metric((name,), 1.0 if live is None else float(live.following))
            lag.add_metric((name,), 0.0 if live is None else live.lag_s)
        yield from (following, lag)


def _model(identities: Sequence[ModelIdentity]) -> GaugeMetricFamily:
    info = GaugeMetricFamily(
        "igd_model_info",
        '1 for each model that a version is served with, and for each adapter on it; adapter "" is the model itself.',
        labels=("model", "adapter", "fingerprint", "engine"),
    )
    samples = {  # one content may be published under several names, and under one name twice
        (identity.name, adapter or "", fingerprint, identity.engine)
        for identity in identities
        for adapter, fingerprint in identity.fingerprints.items()
    }
    for labels in sorted(samples):
        info.add_metric(labels, 1)
    return info


def _engine(stats: EngineStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("igd_engine_queue", "Model calls waiting.", stats.waiting)
    yield GaugeMetricFamily("igd_engine_sessions", "Recommendations being decoded.", stats.sessions)
    yield GaugeMetricFamily(
        "igd_engine_versions",
        "Catalogue versions in the engine; more than catalogues while old ones still have requests.",
        len(stats.versions),
    )
    yield GaugeMetricFamily("igd_prefix_cache_bytes", "Key-value caches of past prompts.", stats.cache_bytes)
    info = GaugeMetricFamily(
        "igd_forward_info",
        '1 for how the embedded engine runs the model, `own` or `transformers`; forward "" for other engines.',
        labels=("forward",),
    )
    info.add_metric((stats.forward,), 1)
    yield info
    precision = GaugeMetricFamily(
        "igd_precision_info",
        '1 for the precision of the embedded engine\'s products, `fp32` or `bf16`; "" where the data type says it all.',
        labels=("precision",),
    )
    precision.add_metric((stats.precision,), 1)
    yield precision
    yield CounterMetricFamily(
        "igd_passes", "Passes of the model that the embedded engine has run; 0 for other engines.", stats.passes
    )
    yield CounterMetricFamily(
        "igd_pass_recommendations",
        "Recommendations that those passes computed something for, summed; over the passes it is people a pass.",
        stats.pass_sessions,
    )
    yield CounterMetricFamily("igd_pass_tokens", "Tokens that those passes fed.", stats.pass_tokens)
    yield CounterMetricFamily(
        "igd_passes_split",
        "Passes for several recommendations that failed, so that each was run by itself.",
        stats.passes_split,
    )
