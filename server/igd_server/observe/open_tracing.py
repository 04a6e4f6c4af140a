"""Tracing as the settings ask for it; what sends spans is imported only then."""

from __future__ import annotations

from igd_core.errors import InputError
from igd_server.observe.tracing import Tracing


def open_tracing(endpoint: str | None) -> Tracing:
    """Tracing to an OTLP collector over HTTP, or none.

    Raises:
        InputError: the OpenTelemetry packages are not installed.
    """
    if endpoint is None:
        return Tracing()
    try:
        from igd_server.observe.otlp import OtlpTracing
    except ModuleNotFoundError as error:
        raise InputError(
            f"otlp_endpoint: {error.name} is not installed: pip install 'igd-recommender[tracing]'"
        ) from None
    return OtlpTracing(endpoint)
