"""An OpenTelemetry collector for tests. It receives spans via OTLP over HTTP and stores them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.waiting import wait_until


class Span:
    """A span reported by a service. The attributes are converted to Python values."""

    def __init__(self, service: str, raw: Any) -> None:
        self.service = service
        self.name: str = raw.name
        self.trace_id: str = raw.trace_id.hex()
        self.span_id: str = raw.span_id.hex()
        self.parent: str = raw.parent_span_id.hex()
        self.began: int = raw.start_time_unix_nano
        self.ended: int = raw.end_time_unix_nano
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in raw.links]
        self.events = [event.name for event in raw.events]
        self.is_error = raw.status.code == 2
        self.attributes = _values(raw.attributes)


class Collector:
    """The spans received so far. ``raw`` contains the bytes of all request bodies."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.raw = b""
        self.spans: list[Span] = []

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = str(_values(resource.resource.attributes)["service.name"])
            self.spans += [Span(service, raw) for scope in resource.scope_spans for raw in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def trace(self, trace_id: str, num_spans: int) -> dict[str, Span]:
        """Wait for all spans of a trace and return them, keyed by name. The names must be unique."""
        found = self.grouped(trace_id, num_spans)
        assert all(len(spans) == 1 for spans in found.values()), found
        return {name: spans[0] for name, spans in found.items()}

    def grouped(self, trace_id: str, num_spans: int) -> dict[str, list[Span]]:
        """Wait for all spans of a trace and return them, grouped by name.

        Raises AssertionError if the trace has more than ``num_spans`` spans.
        """
        wait_until(lambda: sum(span.trace_id == trace_id for span in self.spans) >= num_spans)
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            if span.trace_id == trace_id:
                found.setdefault(span.name, []).append(span)
        assert sum(map(len, found.values())) == num_spans, sorted(found)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            """Suppress the log lines of BaseHTTPRequestHandler."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _values(attributes: Any) -> dict[str, Any]:
    found = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        found[attribute.key] = (
            [item.string_value for item in value.values] if kind == "array_value" else value
        )
    return found
