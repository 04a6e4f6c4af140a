"""Gauges that are asked for at each scrape rather than kept up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class AdmissionNumbers(Protocol):
    """What admission says of itself."""

    @property
    def running(self) -> int:
        """Recommendations in the model."""
        ...

    @property
    def waiting(self) -> int:
        """Recommendations that wait for that."""
        ...


class AdmissionGauges(Collector):
    """How full the model's waiting room is."""

    def __init__(self, admission: AdmissionNumbers) -> None:
        self._admission = admission

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample of each gauge."""
        yield GaugeMetricFamily("igd_admission_running", "Recommendations in the model.", self._admission.running)
        yield GaugeMetricFamily(
            "igd_admission_waiting", "Recommendations that wait for a place in the model.", self._admission.waiting
        )


class Readers(Protocol):
    """What is known of clients that read slowly."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for them."""
        ...


class ReaderGauges(Collector):
    """How much waits for clients that do not read."""

    def __init__(self, readers: Sequence[Readers]) -> None:
        self._readers = readers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample, of all servers of the process."""
        unsent = sum(each.unsent_bytes for each in self._readers)
        yield GaugeMetricFamily("igd_unsent_bytes", "Bytes of answers that slow clients have not read.", unsent)
