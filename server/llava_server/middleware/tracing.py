"""A request's spans, for OpenTelemetry. Off unless ``otel`` is set, and then none of its code is loaded.

    POST /v1/...          the request, from its first byte to the answer's last; a child of the caller's span
      pictures            to fetch, decode and fit them
      submit              to count it against its key's limits and put it into the queue
        (the worker's)    joined by the ``traceparent`` beside the job
      first event         until a worker's first word

    batch line            from its turn until its result is kept; a trace of its own, linked to the request
                          that began the batch, for a batch may take a day and have thousands of lines
      pictures, submit    as above

The tracer is the context's, as the current span is: what runs in a request or in a line needs no argument for
it, and what runs for nobody traces nothing. Attributes tell sizes and names of ours, never what was said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

import anyio
from fastapi import FastAPI
from llava_wire.otel import SCOPE, open_tracing
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.middleware.request_id import request_id_of, route_name

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, Tracer

__all__ = [
    "TracedRequests",
    "note_failure",
    "own_trace",
    "span",
    "traceparent",
    "traced_by",
    "tracing_opened",
]

_API = "/v1/"
_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


@asynccontextmanager
async def tracing_opened(app: FastAPI) -> AsyncIterator[None]:
    """Requests of this app are traced while it is open. Raises TracingUnavailable."""
    provider = open_tracing("llava-server")
    app.state.tracer = provider.get_tracer(SCOPE)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(provider.shutdown)


def span(name: str, **attributes: int | str) -> AbstractContextManager[object]:
    """A part of the request under way; nothing where that is not traced. ``_`` in a name stands for a dot."""
    tracer = _tracer.get()
    return nullcontext() if tracer is None else _part(tracer, name, attributes)


@contextmanager
def traced_by(tracer: Tracer | None) -> Iterator[None]:
    """Tasks that are made meanwhile may begin traces."""
    current = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(current)


def own_trace(name: str, cause: str, **attributes: int | str) -> AbstractContextManager[object]:
    """What no request waits for, linked to the span that its ``cause``, a ``traceparent`` or empty, names."""
    tracer = _tracer.get()
    if tracer is None:
        return nullcontext()
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    begun_by = TraceContextTextMapPropagator().extract({"traceparent": cause})
    linked = get_current_span(begun_by).get_span_context()
    return _part(tracer, name, attributes, [Link(linked)] if linked.is_valid else [])


def note_failure(code: str) -> None:
    """Of the part under way, where an error is an answer and goes no further."""
    if _tracer.get() is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("error.type", code)


def traceparent() -> str:
    """Of the current span, in W3C's form; empty where nothing is traced."""
    if _tracer.get() is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


class TracedRequests:
    """Middleware: a span for each request to the API, its caller's trace taken over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        with _request(scope["app"].state.tracer, scope) as request:
            await self._app(scope, receive, _watched(request, send))


@contextmanager
def _request(tracer: Tracer, scope: Scope) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers = {"traceparent": Headers(scope=scope).get("traceparent", "")}
    caller = TraceContextTextMapPropagator().extract(headers)
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    with tracer.start_as_current_span(
        method, caller, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ) as request:
        current = _tracer.set(tracer)
        request.set_attribute("http.request.method", method)
        try:
            yield request
        finally:
            _tracer.reset(current)
            _tell(request, method, scope)


def _tell(request: Span, method: str, scope: Scope) -> None:
    """What is known of it in the end. The route's own path, never the client's string."""
    state, route = scope["state"], route_name(scope)
    request.update_name(f"{method} {route}")
    told = {
        "http.route": route,
        "llava.request.id": request_id_of(scope),
        "gen_ai.response.id": state.get("job_id"),
        "error.type": state.get("error_code"),
    }
    request.set_attributes({name: value for name, value in told.items() if value})


def _watched(request: Span, send: Send) -> Send:
    from opentelemetry.trace import StatusCode
    from starlette.types import Message

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            request.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                request.set_status(StatusCode.ERROR)
        await send(message)

    return watched


@contextmanager
def _part(
    tracer: Tracer, name: str, attributes: dict[str, int | str], links: Sequence[Link] = ()
) -> Iterator[Span]:
    told = {f"llava.{key.replace('_', '.')}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(
        name, attributes=told, links=links, record_exception=False, set_status_on_exception=False
    ) as part:
        try:
            yield part
        except BaseException as error:  # by its class alone: what it says may quote the request
            part.set_attribute("error.type", type(error).__name__)
            raise
