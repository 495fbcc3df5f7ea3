"""Where a process's OpenTelemetry spans go, the same for controllers and workers; the package is optional.

OpenTelemetry's own variables, ``OTEL_*``, say where to, how many and under which name. The wire makes no
spans; it carries a ``traceparent`` from who submits a job to the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["SCOPE", "TracingUnavailable", "open_tracing"]

SCOPE = "llava_serve"  # what the spans say made them


class TracingUnavailable(Exception):
    """Traces are asked for and cannot be made; the message says what to install."""


def open_tracing(service: str) -> TracerProvider:
    """Spans of ``service`` (or of OTEL_SERVICE_NAME) go to a collector by OTLP over HTTP, in batches.

    Whoever has it must ``shutdown`` it, which sends what is left. Raises TracingUnavailable.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable(
            f"traces are asked for (LLAVA_OTEL) and {error.name} is missing: pip install 'llava-serve[otel]'"
        ) from error
    named = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
