"""Spans of a request, sent with OpenTelemetry to a collector where an endpoint is set; else nothing is recorded.

A request's span has children: its wait for the model (``igd.queue``), each round of decoding (``igd.round``) and each
call of the store (``igd.store.OPERATION``). None carries a title, a history, a user id or a key. What is not a setting
here is read by the SDK from its own variables: ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*`` ...
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from igd_core.errors import InputError
from igd_core.release import RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_PROPAGATED = ("traceparent", "tracestate")
# The API's own no-op is a generator: 5 us a span instead of 0.3, and a cached answer has two to four spans.
_UNRECORDED = contextlib.nullcontext(trace.INVALID_SPAN)


class Tracing:
    """Spans to a collector, or none. A collector that is down or slow costs spans, never a request."""

    def __init__(self, provider: TracerProvider | None = None, *, timeout_s: float = 5.0) -> None:
        """``provider``: what records and sends; None for nothing. ``timeout_s``: for all that is left at the end."""
        self._provider = provider
        self._timeout_s = timeout_s
        # Of this object alone: the process-wide provider stays unset, and no library's own spans come along.
        self._tracer = None if provider is None else provider.get_tracer("igd", RELEASE)
        self._propagator = TraceContextTextMapPropagator()

    def request(self, headers: Mapping[str, str]) -> AbstractContextManager[trace.Span]:
        """The span of an HTTP request, under the ``traceparent`` that its headers name."""
        if self._tracer is None:
            return _UNRECORDED
        carrier = {header: headers[header] for header in _PROPAGATED if header in headers}
        return self._record(self._tracer, "request", trace.SpanKind.SERVER, self._propagator.extract(carrier))

    def span(self, name: str) -> AbstractContextManager[trace.Span]:
        """A span under the current one; an exception that leaves it marks it as failed.

        Nothing is recorded where there is no current one, as in work that no request waits for.
        """
        if self._tracer is None or not trace.get_current_span().is_recording():
            return _UNRECORDED
        return self._record(self._tracer, name, trace.SpanKind.INTERNAL, None)

    def trace_id(self) -> str | None:
        """The current trace's id, 32 hexadecimal digits, where it is recorded: for the log."""
        if self._tracer is None:
            return None
        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else None

    def close(self) -> None:
        """Send what is left, for at most ``timeout_s``; so not on an event loop."""
        if self._provider is None:
            return
        # The SDK would go on for 30 s when the collector hangs; a daemon thread is left behind instead.
        sending = threading.Thread(target=self._provider.shutdown, name="igd-last-spans", daemon=True)
        sending.start()
        sending.join(self._timeout_s)

    @staticmethod
    @contextlib.contextmanager
    def _record(tracer: trace.Tracer, name: str, kind: trace.SpanKind, parent: Context | None) -> Iterator[trace.Span]:
        # The SDK would tell the error's message, which may quote a user's id.
        with tracer.start_as_current_span(
            name, context=parent, kind=kind, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except asyncio.CancelledError:
                span.set_attribute("igd.cancelled", True)
                raise
            except Exception as error:
                span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
                raise


def open_tracing(endpoint: str | None, *, timeout_s: float = 5.0) -> Tracing:
    """Tracing to an OTLP collector, as ``http://collector:4318/v1/traces``, from a thread of its own; or none.

    ``timeout_s``: for one batch, and for all that is left at the end.

    Raises:
        InputError: the OpenTelemetry packages that send are not installed.
    """
    if endpoint is None:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import resources
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise InputError(
            f"otlp_endpoint: {error.name} is not installed: pip install 'igd-recommender[tracing]'"
        ) from None
    resource = resources.Resource({resources.SERVICE_NAME: "igd", resources.SERVICE_VERSION: RELEASE})
    provider = TracerProvider(
        resource=resources.Resource.get_empty().merge(resource).merge(resources.OTELResourceDetector().detect()),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=timeout_s)))
    return Tracing(provider, timeout_s=timeout_s)
