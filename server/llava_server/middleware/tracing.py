"""Middleware that starts a span for each API request, as a child of the client's span."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_server.middleware.request_id import route_path
from llava_server.request_context import context_of
from llava_server.tracing import TRACED_PATHS, Tracing, use_tracer

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

__all__ = ["TracingMiddleware"]

_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class TracingMiddleware:
    """Middleware that traces requests to the APIs. See ``llava_server.tracing`` for the child spans."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or not scope["path"].startswith(TRACED_PATHS)
            or self._tracing.tracer is None
        ):
            return await self._app(scope, receive, send)
        with use_tracer(self._tracing.tracer), _request_span(self._tracing.tracer, scope) as span:
            return await self._app(scope, receive, _recording_status(span, send))


@contextmanager
def _request_span(tracer: Tracer, scope: Scope) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers = {"traceparent": Headers(scope=scope).get("traceparent", "")}
    parent = TraceContextTextMapPropagator().extract(headers)
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    with tracer.start_as_current_span(
        method, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ) as span:
        span.set_attribute("http.request.method", method)
        try:
            yield span
        finally:
            _set_attributes(span, method, scope)


def _set_attributes(span: Span, method: str, scope: Scope) -> None:
    """Set the attributes whose values are known only when the request ends."""
    context, route = context_of(scope), route_path(scope)
    span.update_name(f"{method} {route}")
    attributes = {
        "http.route": route,
        "llava.request.id": context.request_id,
        "gen_ai.response.id": context.job_id,
        "error.type": context.error_code,
    }
    span.set_attributes({name: value for name, value in attributes.items() if value})


def _recording_status(span: Span, send: Send) -> Send:
    from opentelemetry.trace import StatusCode

    async def send_and_record(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                span.set_status(StatusCode.ERROR)
        await send(message)

    return send_and_record
