"""Tracing with OpenTelemetry: spans are sent in batches, from a thread of their own, to a collector.

What is not a setting here is read by the SDK from its own variables: ``OTEL_SERVICE_NAME``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``, ``OTEL_EXPORTER_OTLP_HEADERS`` ...
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from igd_core.release import RELEASE
from igd_server.observe.tracing import UNRECORDED, Span, Tracing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context

    from igd_server.observe.tracing import Fact

_PROPAGATED = ("traceparent", "tracestate")


class OtlpTracing(Tracing):
    """Spans to a collector. One that is down or slow costs spans, never a request: the queue is bounded."""

    def __init__(self, endpoint: str, *, timeout_s: float = 5.0) -> None:
        """Start the sending thread.

        Args:
            endpoint: a full URL, as ``http://collector:4318/v1/traces``.
            timeout_s: for one batch, and for all that is left at the end.
        """
        self._timeout_s = timeout_s
        resource = Resource({SERVICE_NAME: "igd", SERVICE_VERSION: RELEASE})
        self._provider = TracerProvider(
            resource=Resource.get_empty().merge(resource).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=timeout_s)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        # Of this object alone: the process-wide provider stays unset, and no library's own spans come along.
        self._tracer = self._provider.get_tracer("igd", RELEASE)
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of an HTTP request, under the ``traceparent`` that its headers name."""
        carrier = {header: headers[header] for header in _PROPAGATED if header in headers}
        with self._record("request", trace.SpanKind.SERVER, self._propagator.extract(carrier)) as span:
            yield span

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """A span under the current one; nothing where there is none, as in work that no request waits for."""
        if not trace.get_current_span().is_recording():
            yield UNRECORDED
            return
        with self._record(name, trace.SpanKind.INTERNAL, None) as span:
            yield span

    def trace_id(self) -> str | None:
        """The current trace's id, where it is recorded."""
        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else None

    def close(self) -> None:
        """Send what is left, for at most ``timeout_s``."""
        # The SDK would go on for 30 s when the collector hangs; a daemon thread is left behind instead.
        sending = threading.Thread(target=self._provider.shutdown, name="igd-last-spans", daemon=True)
        sending.start()
        sending.join(self._timeout_s)

    @contextlib.contextmanager
    def _record(self, name: str, kind: trace.SpanKind, parent: Context | None) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=kind,
            # The SDK would tell the error's message, which may quote a user's id.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _Recorded(span)
            except asyncio.CancelledError:
                span.set_attribute("igd.cancelled", True)
                raise
            except Exception as error:
                span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
                raise


class _Recorded:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def add(self, facts: Mapping[str, Fact]) -> None:
        self._span.set_attributes(facts)

    def rename(self, name: str) -> None:
        self._span.update_name(name)
