"""The door: how many requests are open at once, how large a body is, and how long it may take to come.

Bodies are read here and nowhere else, counted while they arrive. A handler takes the body once and lets it
go as soon as it has what it needs, so that a long stream does not hold its upload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.middleware.request_id import send_error
from llava_server.request_metrics import Metrics
from llava_server.shutdown import Drain

__all__ = ["Admission", "AdmissionLimits", "Body"]

_RETRY_AFTER_S = 1.0


class AdmissionLimits:
    """Bounds of the door, in bytes and seconds."""

    def __init__(
        self, *, max_open: int, max_body_bytes: int, max_inflight_bytes: int, body_timeout_s: float
    ) -> None:
        self.max_open = max_open
        self.max_body_bytes = max_body_bytes
        self.max_inflight_bytes = max_inflight_bytes
        self.body_timeout_s = body_timeout_s


class Body:
    """The bytes of one request, and their share of the bytes in flight."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._parts: list[bytes] = []
        self._num_bytes = 0

    @contextmanager
    def taken(self) -> Iterator[bytes]:
        """The whole body; forgotten afterwards."""
        try:
            yield b"".join(self._parts)
        finally:
            self.release()

    def grow(self, part: bytes) -> None:
        """Raises ApiError if the body or all bodies together become too large."""
        self._parts.append(part)
        self._num_bytes += len(part)
        self._admission.num_inflight_bytes += len(part)
        limits = self._admission.limits
        check_length(self._num_bytes, limits)
        if self._admission.num_inflight_bytes > limits.max_inflight_bytes:
            raise ApiError(
                "overloaded", "too many uploads at once; come again shortly", retry_after_s=_RETRY_AFTER_S
            )

    def release(self) -> None:
        """Forgets the bytes; does nothing the second time."""
        self._admission.num_inflight_bytes -= self._num_bytes
        self._num_bytes = 0
        self._parts = []


class Admission:
    """Middleware for whatever has a body: refuses early or puts a ``Body`` into the request's state."""

    def __init__(self, app: ASGIApp, *, limits: AdmissionLimits, drain: Drain, metrics: Metrics) -> None:
        self._app = app
        self.limits = limits
        self.num_inflight_bytes = 0
        self._num_open = 0
        self._drain = drain
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        body = Body(self)
        self._count(+1)
        try:
            try:
                self._check(scope)
                is_whole = await self._read(body, receive)
            except ApiError as error:
                return await send_error(scope, send, error)
            if is_whole:
                scope.setdefault("state", {})["body"] = body
                await self._app(scope, receive, send)
        finally:
            body.release()
            self._count(-1)

    def _count(self, change: int) -> None:
        self._num_open += change
        self._metrics.open_requests.set(self._num_open)

    def _check(self, scope: Scope) -> None:
        if self._drain.refuses_new:
            raise ApiError(
                "shutting_down", "this server is shutting down; ask again", retry_after_s=_RETRY_AFTER_S
            )
        if self._num_open > self.limits.max_open:
            raise ApiError(
                "overloaded",
                f"{self.limits.max_open} requests are open, which is the limit; come again shortly",
                retry_after_s=_RETRY_AFTER_S,
            )
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal():
            check_length(int(length), self.limits)

    async def _read(self, body: Body, receive: Receive) -> bool:
        """True if the body came whole, False if the client left."""
        try:
            return await asyncio.wait_for(_receive_into(body, receive), self.limits.body_timeout_s)
        except asyncio.TimeoutError:
            raise ApiError(
                "request_timeout", f"the body did not arrive within {self.limits.body_timeout_s:g} s"
            ) from None


async def _receive_into(body: Body, receive: Receive) -> bool:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        body.grow(message.get("body", b""))
        if not message.get("more_body", False):
            return True


def check_length(num_bytes: int, limits: AdmissionLimits) -> None:
    """Raises ApiError (413) above the limit."""
    if num_bytes > limits.max_body_bytes:
        raise ApiError(
            "request_too_large",
            f"the body is larger than {limits.max_body_bytes} bytes: send fewer or smaller pictures",
        )
