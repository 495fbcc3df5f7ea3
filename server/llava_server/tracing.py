"""OpenTelemetry spans for requests and batch lines. OpenTelemetry is imported only if ``otel`` is set.

    POST /v1/...          the request, from its first byte to the last byte of the response; child of the
                          client's span, started by TracingMiddleware
      images              fetch, decode and preprocess the images
      submit              charge the tokens against the rate limits and submit the job
        (worker spans)    part of the same trace through the ``traceparent`` sent with the job
      first event         wait for the worker's first event

    batch line            one line of a batch, until its result is stored; a separate trace with a link to
                          the request that created the batch, because a batch can run for a day
      images, submit      as above

The tracer is stored in a context variable, like the current span, so code that handles a request or a batch
line does not need a tracer argument. No other code creates spans. Attributes contain sizes and identifiers,
never content.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

import anyio
from llava_wire.otel_setup import SCOPE, open_tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, Tracer

__all__ = [
    "TRACED_PATHS",
    "Tracing",
    "linked_span",
    "set_error_type",
    "span",
    "traceparent",
    "use_tracer",
]

TRACED_PATHS = ("/v1/", "/api/")  # prefixes

_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


class Tracing:
    """The tracer of the process. ``tracer`` is None until ``open`` is called.

    If tracing is disabled, it remains None.
    """

    def __init__(self) -> None:
        self.tracer: Tracer | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Create the tracer, and export its spans until the block ends. Raises TracingUnavailable."""
        provider = open_tracing("llava-server")
        self.tracer = provider.get_tracer(SCOPE)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(provider.shutdown)


@contextmanager
def use_tracer(tracer: Tracer | None) -> Iterator[None]:
    """Set the tracer for the code in the block and for tasks created in it."""
    token = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(token)


def span(name: str, **attributes: int | str) -> AbstractContextManager[object]:
    """Start a child of the current span if there is a tracer. Underscores in attribute names become dots."""
    tracer = _tracer.get()
    return nullcontext() if tracer is None else _start_span(tracer, name, attributes)


def linked_span(name: str, parent: str, **attributes: int | str) -> AbstractContextManager[object]:
    """Start a new trace with a link to the span that ``parent`` identifies.

    ``parent`` is a ``traceparent`` value. If it is empty, the trace has no link.
    """
    tracer = _tracer.get()
    if tracer is None:
        return nullcontext()
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent})
    linked = get_current_span(context).get_span_context()
    return _start_span(tracer, name, attributes, [Link(linked)] if linked.is_valid else [])


def set_error_type(code: str) -> None:
    """Set the error type of the current span, for an error that is returned instead of raised."""
    if _tracer.get() is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("error.type", code)


def traceparent() -> str:
    """Return the W3C ``traceparent`` of the current span, or an empty string if there is no tracer."""
    if _tracer.get() is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


@contextmanager
def _start_span(
    tracer: Tracer, name: str, attributes: dict[str, int | str], links: Sequence[Link] = ()
) -> Iterator[Span]:
    named = {f"llava.{key.replace('_', '.')}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(
        name, attributes=named, links=links, record_exception=False, set_status_on_exception=False
    ) as started:
        try:
            yield started
        except BaseException as error:  # only the class, because the message may contain request content
            started.set_attribute("error.type", type(error).__name__)
            raise
