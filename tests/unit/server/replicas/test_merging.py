"""Many pages of metrics as one."""

from __future__ import annotations

import pytest
from igd_server.observe.metrics import Metrics
from igd_server.replicas.merging import OPENMETRICS, labelled, merged
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families


def page(requests: int) -> tuple[Metrics, str]:
    metrics = Metrics()
    for _ in range(requests):
        metrics.observe_request("/v1/recommendations", 200, 0.02)
    return metrics, metrics.render(OPENMETRICS)[0].decode()


@pytest.mark.parametrize("accept", ["", OPENMETRICS, "text/plain; version=0.0.4"])
def test_every_sample_of_every_replica_is_there_under_its_number(accept: str) -> None:
    (one, first), (two, second) = page(3), page(4)
    body, media_type = merged({"1": first, "2": second}, [], accept)
    assert media_type.startswith("application/openmetrics-text" if accept == OPENMETRICS else "text/plain")
    parse = openmetrics.text_string_to_metric_families if accept == OPENMETRICS else text_string_to_metric_families
    families = {family.name: family for family in parse(body.decode())}

    def found(replica: str) -> dict[object, float]:
        return {
            (sample.name, frozenset((name, value) for name, value in sample.labels.items() if name != "replica")): (
                sample.value
            )
            for family in families.values()
            for sample in family.samples
            if sample.labels["replica"] == replica and not changes(sample.name)
        }

    def rendered(metrics: Metrics) -> dict[object, float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in metrics.families()
            for sample in family.samples
            if not changes(sample.name)
        }

    assert found("1") == rendered(one)
    assert found("2") == rendered(two)
    assert families["igd_request_duration_seconds"].type == "histogram"
    assert body.decode().count("# TYPE igd_requests_running") == 1


def changes(name: str) -> bool:
    """Values of the process, which go on."""
    return name.startswith(("process_", "python_gc"))


def test_a_label_that_is_there_stays_where_the_sample_is_the_supervisors_own() -> None:
    family = Metric("igd_replica_up", "Up.", "gauge")
    family.add_sample("igd_replica_up", {"replica": "2"}, 1.0)
    own = Metric("process_resident_memory_bytes", "Memory.", "gauge")
    own.add_sample("process_resident_memory_bytes", {}, 5.0)
    body, _ = merged({}, [family, *labelled([own], "supervisor")], "")
    assert 'igd_replica_up{replica="2"} 1.0' in body.decode()
    assert 'process_resident_memory_bytes{replica="supervisor"} 5.0' in body.decode()
