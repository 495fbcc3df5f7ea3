"""Middleware that reads request bodies: limits their size and upload time, and the number of open requests.

Bodies are read here and nowhere else, counted while they arrive. A route consumes the body once and drops it
as soon as it is parsed, so that a long stream does not hold its upload in memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.middleware.error_handler import send_error
from llava_server.request_context import RequestBody, context_of
from llava_server.request_metrics import Metrics
from llava_server.shutdown import GracefulShutdown

__all__ = ["BodyLimitMiddleware", "BodyLimits"]

_RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class BodyLimits:
    """Limits of BodyLimitMiddleware; ``max_inflight_bytes`` is for the bodies of all requests together."""

    max_open_requests: int
    max_body_bytes: int
    max_inflight_bytes: int
    timeout_s: float


class BodyLimitMiddleware:
    """Rejects a POST early or puts its RequestBody into the request's context."""

    def __init__(
        self, app: ASGIApp, *, limits: BodyLimits, shutdown: GracefulShutdown, metrics: Metrics
    ) -> None:
        self._app = app
        self._limits = limits
        self._shutdown = shutdown
        self._metrics = metrics
        self._num_open_requests = 0
        self._num_inflight_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        body = RequestBody(on_release=self._subtract_bytes)
        self._count_request(+1)
        try:
            try:
                self._check_before_reading(scope)
                is_complete = await self._read(body, receive)
            except ApiError as error:
                return await send_error(scope, send, error)
            if is_complete:
                context_of(scope).body = body
                await self._app(scope, receive, send)
        finally:
            body.release()
            self._count_request(-1)

    def _count_request(self, change: int) -> None:
        self._num_open_requests += change
        self._metrics.open_requests.set(self._num_open_requests)

    def _subtract_bytes(self, num_bytes: int) -> None:
        self._num_inflight_bytes -= num_bytes

    def _check_before_reading(self, scope: Scope) -> None:
        """Raises ApiError (413, 503)."""
        if self._shutdown.rejects_requests:
            raise ApiError(
                "shutting_down", "this server is shutting down; ask again", retry_after_s=_RETRY_AFTER_S
            )
        if self._num_open_requests > self._limits.max_open_requests:
            raise ApiError(
                "overloaded",
                f"{self._limits.max_open_requests} requests are open, which is the limit; come again shortly",
                retry_after_s=_RETRY_AFTER_S,
            )
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal():
            self._check_size(int(length))

    async def _read(self, body: RequestBody, receive: Receive) -> bool:
        """Return whether the body is complete; False if the client disconnected. Raises ApiError."""
        try:
            return await asyncio.wait_for(self._receive_all(body, receive), self._limits.timeout_s)
        except asyncio.TimeoutError:
            raise ApiError(
                "request_timeout", f"the body did not arrive within {self._limits.timeout_s:g} s"
            ) from None

    async def _receive_all(self, body: RequestBody, receive: Receive) -> bool:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            body.append(part)
            self._num_inflight_bytes += len(part)
            self._check_size(body.num_bytes)
            if self._num_inflight_bytes > self._limits.max_inflight_bytes:
                raise ApiError(
                    "overloaded", "too many uploads at once; come again shortly", retry_after_s=_RETRY_AFTER_S
                )
            if not message.get("more_body", False):
                return True

    def _check_size(self, num_bytes: int) -> None:
        """Raises ApiError (413)."""
        if num_bytes > self._limits.max_body_bytes:
            raise ApiError(
                "request_too_large",
                f"the body is larger than {self._limits.max_body_bytes} bytes: "
                "send fewer or smaller pictures",
            )
