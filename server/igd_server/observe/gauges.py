"""Gauges whose values are read at each scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class AdmissionNumbers(Protocol):
    """The numbers that admission reports."""

    @property
    def running(self) -> int:
        """Recommendations in the model."""
        ...

    @property
    def waiting(self) -> int:
        """Recommendations that wait for the model."""
        ...


class AdmissionGauges(Collector):
    """Recommendations that run, and that wait."""

    def __init__(self, admission: AdmissionNumbers) -> None:
        self._admission = admission

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A sample of each gauge."""
        yield GaugeMetricFamily("igd_admission_running", "Recommendations in the model.", self._admission.running)
        yield GaugeMetricFamily(
            "igd_admission_waiting", "Recommendations that wait for a place in the model.", self._admission.waiting
        )


class Readers(Protocol):
    """The number of bytes that slow clients have not read."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes waiting for clients to read them."""
        ...


class ReaderGauges(Collector):
    """Bytes waiting for slow clients."""

    def __init__(self, readers: Sequence[Readers]) -> None:
        self._readers = readers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample for all servers of the process."""
        unsent = sum(each.unsent_bytes for each in self._readers)
        yield GaugeMetricFamily("igd_unsent_bytes", "Bytes of answers that slow clients have not read.", unsent)
