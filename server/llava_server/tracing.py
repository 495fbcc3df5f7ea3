"""OpenTelemetry spans of requests and batch lines. Nothing of it is imported unless ``otel`` is set.

    POST /v1/...          the whole request, from its first byte to the last of the response; child of the
                          client's span. Started by TracingMiddleware.
      pictures            fetch, decode and preprocess the images
      submit              charge the rate limits and submit the job
        (the worker's)    linked by the ``traceparent`` that is sent with the job
      first event         wait for the worker's first event

    batch line            from the line's turn until its result is stored; a trace of its own, linked to the
                          request that created the batch: a batch may take a day and have thousands of lines
      pictures, submit    as above

The tracer is a context variable, like the current span: code that runs in a request or a batch line needs no
tracer argument, and code outside of them creates no spans. Attributes hold sizes and our own names, never
content.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

import anyio
from llava_wire.otel import SCOPE, open_tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, Tracer

__all__ = ["Tracing", "linked_span", "set_error_type", "span", "traceparent", "use_tracer"]

_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


class Tracing:
    """The process's tracer; None until ``open`` and for good where tracing is disabled."""

    def __init__(self) -> None:
        self.tracer: Tracer | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Export spans while open. Raises TracingUnavailable."""
        provider = open_tracing("llava-server")
        self.tracer = provider.get_tracer(SCOPE)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(provider.shutdown)


@contextmanager
def use_tracer(tracer: Tracer | None) -> Iterator[None]:
    """Make this the tracer of the code in the block and of the tasks created in it."""
    token = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(token)


def span(name: str, **attributes: int | str) -> AbstractContextManager[object]:
    """Start a child of the current span, if there is a tracer. ``_`` in attribute names becomes a dot."""
    tracer = _tracer.get()
    return nullcontext() if tracer is None else _start_span(tracer, name, attributes)


def linked_span(name: str, parent: str, **attributes: int | str) -> AbstractContextManager[object]:
    """Start a trace of its own, linked to the span that ``parent`` (a ``traceparent`` or empty) names."""
    tracer = _tracer.get()
    if tracer is None:
        return nullcontext()
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent})
    linked = get_current_span(context).get_span_context()
    return _start_span(tracer, name, attributes, [Link(linked)] if linked.is_valid else [])


def set_error_type(code: str) -> None:
    """Set the error of the current span where the error is a result and not raised any further."""
    if _tracer.get() is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("error.type", code)


def traceparent() -> str:
    """Return the current span in W3C format; empty without a tracer."""
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
        except BaseException as error:  # the class only: the message may quote the request
            started.set_attribute("error.type", type(error).__name__)
            raise
