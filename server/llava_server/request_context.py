"""The state of one HTTP request: what the middlewares record about it and routes read.

RequestIdMiddleware creates the context; ``context_of`` is the only access to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from llava_server.errors import ApiError
from llava_server.request_metrics import Metrics

__all__ = ["RequestBody", "RequestContext", "add_context", "context_of"]

_KEY = "llava_server.context"


class RequestBody:
    """The bytes of a request's body. ``on_release`` is called with their number once they are dropped."""

    def __init__(self, on_release: Callable[[int], None]) -> None:
        self._on_release = on_release
        self._parts: list[bytes] = []
        self.num_bytes = 0

    def append(self, part: bytes) -> None:
        self._parts.append(part)
        self.num_bytes += len(part)

    @contextmanager
    def consume(self) -> Iterator[bytes]:
        """Yield the whole body and drop it at the end of the block."""
        try:
            yield b"".join(self._parts)
        finally:
            self.release()

    def release(self) -> None:
        """Drop the bytes. Calling it again has no effect."""
        self._on_release(self.num_bytes)
        self._parts, self.num_bytes = [], 0


@dataclass(slots=True, repr=False)
class RequestContext:
    """One HTTP request. Reading ``tenant`` or ``body`` before it is set raises AttributeError."""

    request_id: str
    arrived_at: float  # time.monotonic()
    metrics: Metrics
    tenant: str = field(init=False)  # set by AuthMiddleware
    body: RequestBody = field(init=False)  # set by BodyLimitMiddleware for each POST
    job_id: str | None = None  # set by the route once it has a job
    error_code: str | None = None

    def record_error(self, error: ApiError) -> None:
        """Count the error that the response reports and name it in the request's log line."""
        self.error_code = error.code
        self.metrics.request_failed(error.code)


def add_context(scope: Scope, context: RequestContext) -> None:
    """Attach the context to an ASGI scope."""
    scope[_KEY] = context


def context_of(scope: Mapping[str, Any]) -> RequestContext:
    """Return the context of a Request or an ASGI scope."""
    context = scope[_KEY]
    assert isinstance(context, RequestContext)
    return context
