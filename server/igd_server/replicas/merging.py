"""The metrics of all replicas as one page: every sample with the number of its replica as a label.

prometheus_client's own way for several processes (``PROMETHEUS_MULTIPROC_DIR``) was not taken: in it collectors that
read their values at the scrape do not work, and half of our gauges are such (served versions, admission, slow readers,
process and garbage collector); gauges need a rule each for what several of them come to; and files of replicas that
died stay in its folder. Here each replica renders what it always has, and Prometheus adds up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
"""The ``Accept`` header for pages that `merged` reads."""

LABEL = "replica"


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def merged(pages: Mapping[str, str], own: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """One page in the format that ``accept`` asks for, and that format's media type.

    Args:
        pages: OpenMetrics text by the replica's label.
        own: families of this process.
        accept: the scraper's header.
    """
    families: dict[str, Metric] = {}
    for family in own:
        _add(families, family, {})
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]
            _add(families, family, {LABEL: replica})
    collector = _Families(families.values())
    encoder, media_type = choose_encoder(accept)
    return encoder(collector), media_type


def labelled(families: Iterable[Metric], replica: str) -> Iterator[Metric]:
    """The families with the label."""
    for family in families:
        known: dict[str, Metric] = {}
        _add(known, family, {LABEL: replica})
        yield from known.values()


def _add(families: dict[str, Metric], family: Metric, labels: Mapping[str, str]) -> None:
    whole = families.get(family.name)
    if whole is None:
        whole = families[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
    whole.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]
