"""OpenTelemetry export for controllers and workers. The OpenTelemetry packages are optional.

The standard ``OTEL_*`` variables configure the endpoint, sampling and service name. This package does not
create spans. It only passes the ``traceparent`` of each job from the submitter to the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["SCOPE", "TracingUnavailable", "open_tracing"]

SCOPE = "llava_serve"  # instrumentation scope of the spans


class TracingUnavailable(Exception):
    """Tracing is enabled, but a package is missing. The message contains the install command."""


def open_tracing(service: str) -> TracerProvider:
    """Return a provider that exports spans in batches with OTLP over HTTP.

    OTEL_SERVICE_NAME overrides ``service``. The caller must call ``shutdown`` on the provider, which exports
    the remaining spans. Raise TracingUnavailable if a package is missing.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable(
            f"LLAVA_OTEL is enabled, but {error.name} is not installed. Run pip install 'llava-serve[otel]'."
        ) from error
    named = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
