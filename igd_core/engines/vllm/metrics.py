"""vLLM's own Prometheus metrics, for a registry that is not its own.

vLLM counts in prometheus_client's default registry, in this process; its engine process sends its counts here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric


class VLLMMetrics(Collector):
    """Collects all of vLLM's metrics, under vLLM's names (``vllm:...``)."""

    def collect(self) -> Iterator[Metric]:
        """The metric families at present; none before an engine has started."""
        return (family for family in REGISTRY.collect() if family.name.startswith("vllm:"))

    def describe(self) -> list[Metric]:
        """Nothing: the families are known only once an engine has started."""
        return []
