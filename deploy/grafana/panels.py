"""What the dashboard shows: its rows, and what each panel asks Prometheus."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        title: what is seen.
        queries: PromQL by legend; ``$job`` is the deployment, ``$w`` the window of a rate.
        unit: Grafana's name of the unit.
        kind: ``timeseries``, ``stat`` or ``table``.
        note: what to read from it.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    note: str = ""


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Of a counter, per second."""
    labels = ", ".join(filter(None, ['job=~"$job"', where]))
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$w]))" if by else f"sum(rate({metric}{{{labels}}}[$w]))"


def gauge(metric: str, by: str) -> str:
    """Of each server, or another label."""
    return f'sum by ({by}) ({metric}{{job=~"$job"}})'


def quantile(share: float, histogram: str, by: str = "", where: str = "") -> str:
    """Of a histogram's observations."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', f'{by}, le'.removeprefix(', '), where)})"


def mean(histogram: str) -> str:
    """Of a histogram's observations."""
    return f"{rate(f'{histogram}_sum')} / {rate(f'{histogram}_count')}"


def stages(share: float) -> dict[str, str]:
    """Where a recommendation's time goes, in the order in which it passes there."""
    return {
        "wait for a place": quantile(share, "igd_admission_wait_seconds"),
        "wait for the model's thread": quantile(share, "igd_engine_queue_seconds"),
        "model": quantile(share, "igd_model_seconds"),
        "store, a call": quantile(share, "igd_store_call_duration_seconds"),
        "all": quantile(share, "igd_request_duration_seconds", where='route="/v1/recommendations"'),
    }


_API = 'route=~"/v1/.*"'
_HITS = 'outcome=~"local|store|joined"'

ROWS: dict[str, list[Panel]] = {
    "Service": [
        Panel(title="Servers that serve", kind="stat", queries={"ready": 'igd:servers_ready:count{job=~"$job"}'}),
        Panel(
            title="Requests that fail, last hour",
            kind="stat",
            unit="percentunit",
            queries={"5xx": 'igd:request_errors:ratio_rate1h{job=~"$job"}'},
        ),
        Panel(
            title="Slowest 1 %",
            kind="stat",
            unit="s",
            queries={"p99": 'igd:request_duration_seconds:p99_rate5m{job=~"$job", route="/v1/recommendations"}'},
        ),
        Panel(
            title="Answers without the model for want of it",
            kind="stat",
            unit="percentunit",
            queries={"fallbacks": 'igd:fallbacks:ratio_rate5m{job=~"$job"}'},
        ),
    ],
    "Traffic": [
        Panel(
            title="Requests",
            unit="reqps",
            queries={"{{route}} {{status}}": rate("igd_requests_total", "route, status")},
        ),
        Panel(
            title="Requests, running",
            queries={"{{instance}}": gauge("igd_requests_running", "instance")},
        ),
        Panel(
            title="Turned away",
            unit="reqps",
            queries={"{{reason}}": rate("igd_rejected_requests_total", "reason")},
            note="queue-full, expected-wait: too little capacity. rate, key: the client.",
        ),
        Panel(
            title="Latency by route, p99",
            unit="s",
            queries={"{{route}}": quantile(0.99, "igd_request_duration_seconds", "route", _API)},
        ),
    ],
    "Latency by stage": [
        Panel(title="Median", unit="s", queries=stages(0.5)),
        Panel(title="p99", unit="s", queries=stages(0.99)),
    ],
    "Engine": [
        Panel(
            title="Recommendations in the model, and waiting",
            queries={
                "{{instance}} in": gauge("igd_admission_running", "instance"),
                "{{instance}} waiting": gauge("igd_admission_waiting", "instance"),
            },
        ),
        Panel(
            title="Model calls waiting, recommendations being decoded",
            queries={
                "{{instance}} waiting": gauge("igd_engine_queue", "instance"),
                "{{instance}} decoded": gauge("igd_engine_sessions", "instance"),
            },
        ),
        Panel(title="Model calls a recommendation", queries={"mean": mean("igd_decoding_rounds")}),
        Panel(title="Tokens", unit="cps", queries={"{{kind}}": rate("igd_model_tokens_total", "kind")}),
        Panel(
            title="A pass of the model",
            queries={
                "people": f"{rate('igd_pass_recommendations_total')} / {rate('igd_passes_total')}",
                "tokens": f"{rate('igd_pass_tokens_total')} / {rate('igd_passes_total')}",
            },
        ),
    ],
    "Caches and store": [
        Panel(
            title="Answers found, of those looked for",
            unit="percentunit",
            queries={
                "found": f"{rate('igd_result_lookups_total', where=_HITS)} / {rate('igd_result_lookups_total')}",
            },
        ),
        Panel(
            title="Prompt tokens found in the prefix cache",
            unit="percentunit",
            queries={
                "found": rate("igd_model_tokens_total", where='kind="cached"')
                + " / "
                + rate("igd_model_tokens_total", where='kind=~"cached|prompt"')
            },
        ),
        Panel(
            title="Prefix cache", unit="bytes", queries={"{{instance}}": gauge("igd_prefix_cache_bytes", "instance")}
        ),
        Panel(
            title="Store answers",
            queries={"{{instance}}": 'min by (instance) (igd_store_up{job=~"$job"})'},
        ),
        Panel(
            title="Calls of the store",
            unit="ops",
            queries={"{{operation}} {{outcome}}": rate("igd_store_calls_total", "operation, outcome")},
        ),
        Panel(
            title="Calls of the store, p99",
            unit="s",
            queries={"{{operation}}": quantile(0.99, "igd_store_call_duration_seconds", "operation")},
        ),
    ],
    "Catalogues": [
        Panel(
            title="Versions served, by how many servers",
            kind="table",
            queries={"": 'count by (catalogue, version) (igd_catalogue_info{job=~"$job"})'},
        ),
        Panel(
            title="How long what is published has not been served",
            unit="s",
            queries={
                "{{catalogue}} {{instance}}": gauge("igd_catalogue_lag_seconds", "catalogue, instance"),
                "{{catalogue}} {{instance}}: followed": gauge("igd_catalogue_following", "catalogue, instance"),
            },
        ),
        Panel(
            title="Time since the version took over",
            unit="s",
            queries={
                "{{catalogue}} {{instance}}": "time() - max by (catalogue, instance) "
                '(igd_catalogue_loaded_timestamp_seconds{job=~"$job"})'
            },
        ),
        Panel(
            title="Items",
            queries={"{{catalogue}}": 'max by (catalogue) (igd_catalogue_items{job=~"$job"})'},
        ),
        Panel(
            title="Swaps and refusals since the servers started",
            queries={
                "{{catalogue}} swapped": gauge("igd_catalogue_swap_seconds_count", "catalogue"),
                "{{catalogue}} refused: {{reason}}": gauge("igd_refused_versions_total", "catalogue, reason"),
            },
        ),
    ],
    "Variants": [
        Panel(
            title="Answers",
            unit="reqps",
            queries={"{{variant}}": rate("igd_recommendations_total", "variant")},
        ),
        Panel(
            title="Clicks an answer",
            unit="percentunit",
            queries={
                "{{variant}}": 'sum by (variant) (increase(igd_attributed_events_total{job=~"$job"}[$__range])) / '
                'sum by (variant) (increase(igd_recommendations_total{job=~"$job"}[$__range]))'
            },
            note="Events of a kind of success that name the answer which showed their item, over the time that is "
            "shown. To tell a tenth more from chance takes some 1,600 clicks a variant (5 %, 80 %).",
        ),
        Panel(title="Events", unit="ops", queries={"{{outcome}}": rate("igd_events_total", "outcome")}),
        Panel(title="Events by kind", unit="ops", queries={"{{kind}}": rate("igd_event_kinds_total", "kind")}),
        Panel(
            title="Answers put on record",
            unit="ops",
            queries={"{{outcome}}": rate("igd_impressions_total", "outcome")},
            note="Nothing unless IGD_IMPRESSIONS is true. lost: the store did not take them.",
        ),
    ],
    "Quality": [
        Panel(
            title="Who ranked the answers",
            unit="percentunit",
            queries={
                "{{source}}": f"{rate('igd_recommendations_total', 'source')} "
                f"/ scalar({rate('igd_recommendations_total')})"
            },
            note="popularity: users without a history, and fallbacks. precomputed: fallbacks to lists made in advance.",
        ),
        Panel(
            title="Catalogue that has been recommended",
            unit="percentunit",
            queries={
                "{{catalogue}} {{instance}}": 'igd_catalogue_items_recommended{job=~"$job"} '
                '/ igd_catalogue_items{job=~"$job"}'
            },
            note="Since the version took over, by each server: it grows with answers, so compare versions at equal "
            "numbers of them.",
        ),
        Panel(
            title="Popularity in the model's place, by reason",
            unit="reqps",
            queries={"{{reason}}": rate("igd_fallbacks_total", "reason")},
        ),
    ],
    "Processes": [
        Panel(
            title="Memory", unit="bytes", queries={"{{instance}}": gauge("process_resident_memory_bytes", "instance")}
        ),
        Panel(title="CPU", queries={"{{instance}} cores": rate("process_cpu_seconds_total", "instance")}),
        Panel(title="Descriptors", queries={"{{instance}}": gauge("process_open_fds", "instance")}),
    ],
}
