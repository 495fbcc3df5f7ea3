"""Per-request state, written by the middleware and read by the routes.

RequestIdMiddleware creates the context; all other code gets it through ``context_of``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from llava_server.errors import ApiError
from llava_server.metrics import Metrics

if TYPE_CHECKING:
    from llava_server.loaded_data import LoadedBytes

__all__ = ["RequestBody", "RequestContext", "abandon_request", "add_context", "context_of"]

_KEY = "llava_server.context"


class RequestBody:
    """The body of a request. ``on_release`` is called with the size in bytes when the body is dropped."""

    def __init__(self, on_release: Callable[[int], None]) -> None:
        self._on_release = on_release
        self._parts: list[bytes] = []
        self.num_bytes = 0

    def append(self, part: bytes) -> None:
        self._parts.append(part)
        self.num_bytes += len(part)

    @contextmanager
    def consume(self) -> Iterator[bytes]:
        """Yield the whole body and drop it when the block ends."""
        body = b"".join(self._parts)
        self._parts = []  # else the body would occupy twice its size until the block ends
        try:
            yield body
        finally:
            self.release()

    def release(self) -> None:
        """Drop the bytes. Further calls are no-ops."""
        self._on_release(self.num_bytes)
        self._parts, self.num_bytes = [], 0


@dataclass(slots=True, repr=False)
class RequestContext:
    """The state of an HTTP request. Reading ``tenant`` or ``body`` before it is set raises AttributeError."""

    request_id: str
    arrived_at: float  # time.monotonic()
    metrics: Metrics
    tenant: str = field(init=False)  # set by AuthMiddleware
    take_turn: Callable[[], Awaitable[None]] = field(init=False)  # see Turns; set by AuthMiddleware
    body: RequestBody = field(init=False)  # set by RequestLimitMiddleware for each POST request
    loaded: LoadedBytes = field(init=False)  # set by RequestLimitMiddleware
    is_head: bool = False  # set by HeadMiddleware, because routes handle HEAD requests as GET requests
    job_id: str | None = None  # set by the route after it has submitted a job
    error_code: str | None = None
    _waiting: asyncio.Task[Any] | None = None  # while the request waits for its turn
    _is_abandoned: bool = False

    async def wait_for_turn(self) -> bool:
        """Wait for a turn before the request is processed. Return False if its client has disconnected."""
        self._waiting = asyncio.current_task()
        try:
            await self.take_turn()
        except asyncio.CancelledError:
            if not self._is_abandoned:
                raise
        finally:
            self._waiting = None
        return not self._is_abandoned

    def abandon(self) -> None:
        """Record that the client has disconnected. A request that waits for its turn ends."""
        self._is_abandoned = True
        if self._waiting is not None:
            self._waiting.cancel()

    def record_error(self, error: ApiError) -> None:
        """Count the error in the metrics and add its code to the request's log line."""
        self.error_code = error.code
        self.metrics.request_failed(error.code)


def add_context(scope: Scope, context: RequestContext) -> None:
    """Attach the context to an ASGI scope."""
    scope[_KEY] = context


def abandon_request(scope: Mapping[str, Any]) -> None:
    """Record in the context, if there is one, that the client has disconnected."""
    if _KEY in scope:
        context_of(scope).abandon()


def context_of(scope: Mapping[str, Any]) -> RequestContext:
    """Return the context of a Request or an ASGI scope."""
    context = scope[_KEY]
    assert isinstance(context, RequestContext)
    return context
