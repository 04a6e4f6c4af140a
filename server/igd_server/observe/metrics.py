"""Prometheus metrics, in a registry of their own; `docs/reference/metrics.md` lists them all.

Label values are bounded: route templates, statuses, and names from code or settings; never what a client sent.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from igd_core.engines.vllm.metrics import VLLMMetrics
from igd_core.release import RELEASE
from igd_server.api.schemas_catalogues import VersionRefusalReason
from igd_server.observe.coverage import Coverage
from igd_server.observe.gauges import AdmissionGauges, ReaderGauges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client import Metric
    from prometheus_client.registry import Collector

    from igd_core.search.identity import ModelIdentity
    from igd_core.search.session import SessionStats
    from igd_server.api.schemas import AnswerSource
    from igd_server.observe.coverage import Shown
    from igd_server.observe.gauges import AdmissionNumbers, Readers

Outcome: TypeAlias = Literal["ok", "refused", "unavailable", "cancelled"]
CacheOutcome: TypeAlias = Literal["local", "store", "miss", "joined"]
EventOutcome: TypeAlias = Literal["accepted", "duplicate", "refused"]
Rejection: TypeAlias = Literal["queue-full", "expected-wait", "rate", "key", "host", "connections"]
GivenUp: TypeAlias = Literal["late", "unasked"]
CutOff: TypeAlias = Literal["time", "bytes"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LOAD_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_COSTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_ROUNDS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantAnswers:
    """How many answers a variant gave, and how many of them at least one attributed event followed."""

    answers: int = 0
    followed: int = 0


class Metrics:
    """The counters of this process; every part that counts gets this one object.

    Attributes:
        since: when they began at zero.
    """

    def __init__(self) -> None:
        """All counters begin at zero. ``watch_catalogues`` and ``watch_admission`` add gauges of parts made later."""
        self.since = datetime.now(UTC)
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        build = Gauge("igd_build_info", "1; the release is the label.", ("version",), registry=registry)
        build.labels(RELEASE).set(1)
        self._readers: list[Readers] = []
        registry.register(ReaderGauges(self._readers))
        self._count_requests()
        self._count_answers()
        self._count_store()
        self._remember_series()
        self._coverage = Coverage(registry)

    def _count_requests(self) -> None:
        registry = self._registry
        self._requests = Counter(
            "igd_requests",
            "HTTP requests; status 499: the client left; route unmatched: no such path, unreadable: no HTTP.",
            ("route", "status"),
            registry=registry,
        )
        self._duration = Histogram(
            "igd_request_duration_seconds",
            "From the head's arrival to the answer's end.",
            ("route",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._running = Gauge("igd_requests_running", "HTTP requests not yet answered.", registry=registry)
        self._rejected = Counter(
            "igd_rejected_requests",
            "Requests turned away: queue-full, expected-wait (503), rate, connections (429), key (401, 403), "
            "host (421).",
            ("reason",),
            registry=registry,
        )
        # An alert cannot notice a new series: it must exist, with 0, before the first refusal.
        for rejection in get_args(Rejection):
            self._rejected.labels(rejection)
        self._slow_readers = Counter(
            "igd_slow_readers",
            "Connections cut off: answers unread for too long (time), or too many of them (bytes).",
            ("reason",),
            registry=registry,
        )
        self._limiter_fallbacks = Counter(
            "igd_rate_limit_fallbacks",
            "Rate checks made by this process alone, as Redis did not answer.",
            registry=registry,
        )
        self._keys_valid = Gauge(
            "igd_keys_file_valid",
            "0 while the keys file cannot be used and the keys before it hold.",
            registry=registry,
        )
        self._keys_valid.set(1)
        self._admission_wait = Histogram(
            "igd_admission_wait_seconds",
            "How long an admitted recommendation waited for its place.",
            registry=registry,
            buckets=_SECONDS,
        )

    def _count_answers(self) -> None:
        registry = self._registry
        self._cost = Histogram(
            "igd_request_cost",
            "What a recommendation is expected to cost the model, in ordinary requests.",
            registry=registry,
            buckets=_COSTS,
        )
        self._recommendations = Counter(
            "igd_recommendations",
            'Answers by who ranked: model, popularity, precomputed; variant "" where none are set.',
            ("source", "variant", "catalogue"),
            registry=registry,
        )
        self._untuned = Counter(
            "igd_untuned_answers",
            "Answers ranked by a model that was not tuned for their catalogue.",
            ("variant", "catalogue"),
            registry=registry,
        )
        self._fallbacks = Counter(
            "igd_fallbacks",
            "Popularity instead of the model: deadline-exceeded, engine-unavailable, history-unavailable.",
            ("reason",),
            registry=registry,
        )
        for code in ("deadline-exceeded", "engine-unavailable", "history-unavailable"):
            self._fallbacks.labels(code)
        self._model_faults = Counter(
            "igd_model_faults",
            'Model calls whose scores were no answer: NaN, infinite, or too few; adapter "" for the model itself.',
            ("model", "adapter"),
            registry=registry,
        )
        self._rounds = Histogram(
            "igd_decoding_rounds", "Model calls of a recommendation.", registry=registry, buckets=_ROUNDS
        )
        self._tokens = Counter(
            "igd_model_tokens",
            "Tokens: prompt (computed), cached (taken from the prompt cache), tree (of the catalogue).",
            ("kind",),
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "igd_engine_queue_seconds",
            "A recommendation's waits for the model's thread.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._model_seconds = Histogram(
            "igd_model_seconds", "A recommendation's time in the model.", registry=registry, buckets=_SECONDS
        )
        self._lookups = Counter(
            "igd_result_lookups",
            "Where an answer was found: local, store; joined: it was being computed; miss: nowhere.",
            ("outcome",),
            registry=registry,
        )
        self._events = Counter(
            "igd_events",
            "Events: accepted, duplicate, refused (answered with an error).",
            ("outcome",),
            registry=registry,
        )
        self._event_kinds = Counter(
            "igd_event_kinds",
            "Events that were recorded, by kind; sent again, they count again.",
            ("kind",),
            registry=registry,
        )
        self._impressions = Counter(
            "igd_impressions",
            "Answers with a user, where these are put on record: recorded, lost (the store did not take them).",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("recorded", "lost"):
            self._impressions.labels(outcome)
        self._attributed = Counter(
            "igd_attributed_events",
            "Events on an item of the answer they name; one an item and answer.",
            ("variant", "catalogue"),
            registry=registry,
        )
        self._followed = Counter(
            "igd_followed_answers",
            "Answers that at least one such event followed; counted by the server that gets the event.",
            ("variant", "catalogue"),
            registry=registry,
        )
        self._attributions_dropped = Counter(
            "igd_attributions_dropped", "Answers whose events can no longer be counted.", registry=registry
        )

    def _count_store(self) -> None:
        registry = self._registry
        self._store_calls = Counter(
            "igd_store_calls",
            "Calls of the store: ok, refused (its answer is an error), unavailable, cancelled (the caller left).",
            ("operation", "outcome"),
            registry=registry,
        )
        self._store_seconds = Histogram(
            "igd_store_call_duration_seconds",
            "A call of the store, retries included.",
            ("operation",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._store_up = Gauge("igd_store_up", "1 if the store answered when it was last asked.", registry=registry)
        self._store_up.set(1)
        self._store_given_up = Counter(
            "igd_store_given_up",
            "Calls of the store that a request did not wait for: late, or unasked while the store is silent.",
            ("operation", "reason"),
            registry=registry,
        )
        self._refused_versions = Counter(
            "igd_refused_versions",
            "Catalogue versions not served: missing, damaged, format, tokenizer, vocabulary, engine, "
            "unforeseen, attempt-died, canary, faults.",
            ("catalogue", "reason"),
            registry=registry,
        )
        self._attempts_died = Gauge(
            "igd_attempts_died",
            "Attempts to serve a version that ended with their process, and are on record here; 0 "
            "again when the version passes or is allowed and tried.",
            ("catalogue",),
            registry=registry,
        )
        self._swaps = Histogram(
            "igd_catalogue_swap_seconds",
            "From seeing a version to serving it; its count is the number of swaps.",
            ("catalogue",),
            registry=registry,
            buckets=_LOAD_SECONDS,
        )

    def _remember_series(self) -> None:
        """Keep the label sets that every request uses: prometheus_client takes 1.8 us to find one, of a dozen."""
        self._requests_of = functools.cache(self._requests.labels)
        self._duration_of = functools.cache(self._duration.labels)
        self._recommendations_of = functools.cache(self._recommendations.labels)
        self._untuned_of = functools.cache(self._untuned.labels)
        self._lookups_of = functools.cache(self._lookups.labels)
        self._store_calls_of = functools.cache(self._store_calls.labels)
        self._store_seconds_of = functools.cache(self._store_seconds.labels)

    def watch_catalogues(self, names: Iterable[str], gauges: Collector) -> None:
        """Expose ``gauges`` of the served versions, read at each scrape; begin the refusal counts of ``names`` at 0."""
        for name, reason in itertools.product(names, get_args(VersionRefusalReason)):
            self._refused_versions.labels(name, reason)
        self._registry.register(gauges)

    def watch_admission(self, admission: AdmissionNumbers) -> None:
        """Expose how many recommendations run and wait, read at each scrape."""
        self._registry.register(AdmissionGauges(admission))

    def watch_readers(self, readers: Readers) -> None:
        """Expose how many bytes wait for slow clients in all servers together, read at each scrape."""
        self._readers.append(readers)

    def watch_vllm(self) -> None:
        """Expose vLLM's own metrics under their names, once it has started."""
        self._registry.register(VLLMMetrics())

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        self._requests_of(route, str(status)).inc()
        self._duration_of(route).observe(seconds)

    def request_began(self) -> None:
        """Count a request as running."""
        self._running.inc()

    def request_ended(self) -> None:
        """Count it as no longer running."""
        self._running.dec()

    def observe_rejected(self, reason: Rejection) -> None:
        """Count a refused request: wrong key, rate, host, or no room."""
        self._rejected.labels(reason).inc()

    def observe_slow_reader(self, reason: CutOff) -> None:
        """Count a connection closed because its client did not read."""
        self._slow_readers.labels(reason).inc()

    def observe_limiter_fallback(self) -> None:
        """Count a rate check made without the store."""
        self._limiter_fallbacks.inc()

    def observe_keys_file(self, *, valid: bool) -> None:
        """Note whether the keys file could be read last time."""
        self._keys_valid.set(valid)

    def observe_admitted(self, waited_s: float) -> None:
        """Count a recommendation that got its slot."""
        self._admission_wait.observe(waited_s)

    def observe_cost(self, cost: float) -> None:
        """Count a recommendation that the model is asked for, by its expected cost in ordinary requests."""
        self._cost.observe(cost)

    def observe_fallback(self, reason: str) -> None:
        """Count an answer without the model, where it was wanted; ``reason`` is the name of a problem or warning."""
        self._fallbacks.labels(reason).inc()

    def begin_model(self, model: ModelIdentity) -> None:
        """Begin a model's fault counters at 0: alerts cannot compare with a missing series."""
        for adapter in model.fingerprints:
            self._model_faults.labels(model.name, adapter or "")

    def observe_model_fault(self, *, model: str, adapter: str) -> None:
        """Count scores of the model that are not usable; ``adapter`` is "" for the model itself."""
        self._model_faults.labels(model, adapter).inc()

    def observe_answer(self, source: AnswerSource, *, variant: str, catalogue: str) -> None:
        """Count an answer; ``variant`` is "" if the server has none."""
        self._recommendations_of(source, variant, catalogue).inc()

    def observe_untuned(self, *, variant: str, catalogue: str) -> None:
        """Count an answer of a model that was not tuned for its catalogue."""
        self._untuned_of(variant, catalogue).inc()

    def observe_items(self, served: Shown, rows: Sequence[int]) -> None:
        """Note which items of the catalogue's version an answer showed."""
        self._coverage.observe(served, rows)

    def observe_decoding(self, stats: SessionStats) -> None:
        """Count what the model did for one recommendation."""
        prompt = stats.prompt_tokens - stats.cached_tokens
        self._rounds.observe(stats.rounds)
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("cached").inc(stats.cached_tokens)
        self._tokens.labels("tree").inc(max(0, stats.model_tokens - prompt))
        self._queue_seconds.observe(stats.queue_s)
        self._model_seconds.observe(stats.model_s)

    def observe_cache(self, outcome: CacheOutcome) -> None:
        """Count where an answer came from: ``local``, ``store``, ``joined`` or ``miss``."""
        self._lookups_of(outcome).inc()

    def cache_outcomes(self) -> dict[str, int]:
        """How often each outcome of `observe_cache` was counted."""
        counted = dict.fromkeys(get_args(CacheOutcome), 0)
        for family in self._lookups.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    counted[sample.labels["outcome"]] = int(sample.value)
        return counted

    def observe_events(self, outcome: EventOutcome, number: int) -> None:
        """Count the events of one request."""
        self._events.labels(outcome).inc(number)

    def observe_event_kinds(self, numbers: Mapping[str, int]) -> None:
        """Count events that were recorded, by kind: one of the kinds that the server is told of."""
        for kind, number in numbers.items():
            self._event_kinds.labels(kind).inc(number)

    def observe_impressions(self, outcome: str, number: int) -> None:
        """Count answers that were put on record, or should have been."""
        self._impressions.labels(outcome).inc(number)

    def observe_attributed(self, *, variant: str, catalogue: str) -> None:
        """Count an event on an item of the recommendation that it names."""
        self._attributed.labels(variant, catalogue).inc()

    def observe_followed(self, *, variant: str, catalogue: str) -> None:
        """Count an answer at the first event on an item of it."""
        self._followed.labels(variant, catalogue).inc()

    def answers_by_variant(self) -> dict[str, VariantAnswers]:
        """Answers since this process began, and those that were followed by an event; "" without variants."""
        answers, followed = _by_variant(self._recommendations), _by_variant(self._followed)
        return {
            name: VariantAnswers(answers=answers.get(name, 0), followed=followed.get(name, 0))
            for name in answers.keys() | followed.keys()
        }

    def observe_attribution_dropped(self) -> None:
        """Count a recommendation whose items could not be stored for later events."""
        self._attributions_dropped.inc()

    def observe_store(self, operation: str, outcome: Outcome, seconds: float) -> None:
        """Count a call of the store; ``operation`` is a method's name."""
        self._store_calls_of(operation, outcome).inc()
        self._store_seconds_of(operation).observe(seconds)
        if outcome != "cancelled":
            self._store_up.set(outcome != "unavailable")

    def observe_store_given_up(self, operation: str, reason: GivenUp) -> None:
        """Count a call of the store that a request stopped waiting for."""
        self._store_given_up.labels(operation, reason).inc()
        if reason == "late":
            self._store_up.set(0)

    def observe_refused_catalogue(self, catalogue: str, reason: str) -> None:
        """Count a version that was refused; ``reason`` is one of a few codes."""
        self._refused_versions.labels(catalogue, reason).inc()

    def show_attempts_died(self, catalogue: str, number: int) -> None:
        """Set how many attempts are on record that never ended."""
        self._attempts_died.labels(catalogue).set(number)

    def observe_swap(self, catalogue: str, seconds: float) -> None:
        """Count a version that took over."""
        self._swaps.labels(catalogue).observe(seconds)

    def families(self) -> Iterable[Metric]:
        """All metrics as they are now."""
        return self._registry.collect()

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the scraper's Accept header asks for, and that format's media type."""
        encoder, media_type = choose_encoder(accept)
        return encoder(self._registry), media_type


def _by_variant(counter: Counter) -> dict[str, int]:
    """A counter's sum over all labels but ``variant``."""
    totals: dict[str, int] = {}
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                variant = sample.labels["variant"]
                totals[variant] = totals.get(variant, 0) + int(sample.value)
    return totals
