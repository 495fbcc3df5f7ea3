"""Middleware that reads request bodies and enforces limits on body size, upload time and open requests.

No other code reads bodies, so all bytes are counted as they arrive. A route consumes the body once and drops
it as soon as it is parsed, so that a long stream does not keep the request body in memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.metrics import Metrics
from llava_server.middleware.auth import is_public
from llava_server.middleware.server_error import send_error
from llava_server.middleware.uploads import Uploads
from llava_server.request_context import RequestBody, context_of
from llava_server.shutdown import GracefulShutdown

__all__ = ["BodyLimitMiddleware", "BodyLimits"]

_RETRY_AFTER_S = 1.0
_TRIM_BYTES = 16 << 20
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
_MAX_QUOTED = 40  # maximum number of characters that an error message quotes from a header


@dataclass(frozen=True)
class BodyLimits:
    """The limits of BodyLimitMiddleware. ``max_inflight_bytes`` limits the total size of bodies in memory."""

    max_open_requests: int
    max_body_bytes: int
    max_inflight_bytes: int
    timeout_s: float


class BodyLimitMiddleware:
    """Middleware that either rejects a POST request early or stores its body in the request context.

    The bodies of requests to public paths are not read, because clients without a key could otherwise use up
    the limits.
    """

    def __init__(
        self, app: ASGIApp, *, limits: BodyLimits, shutdown: GracefulShutdown, metrics: Metrics
    ) -> None:
        self._app = app
        self._limits = limits
        self._shutdown = shutdown
        self._metrics = metrics
        self._num_open_requests = 0
        self._num_inflight_bytes = 0
        self._num_released_bytes = 0  # since memory was last returned to the operating system
        self._uploads = Uploads()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or is_public(scope["path"]):
            return await self._app(scope, receive, send)
        body = RequestBody(on_release=self._subtract_bytes)
        self._count_request(+1)
        try:
            try:
                self._check_before_reading(scope)
                is_complete = await self._read(body, receive, context_of(scope).tenant)
            except ApiError as error:
                return await send_error(scope, send, error)
            if is_complete:
                context_of(scope).body = body
                await self._app(scope, receive, send)
        finally:
            body.release()
            self._count_request(-1)
            self._return_memory()

    def _count_request(self, change: int) -> None:
        self._num_open_requests += change
        self._metrics.open_requests.set(self._num_open_requests)

    def _subtract_bytes(self, num_bytes: int) -> None:
        self._num_inflight_bytes -= num_bytes
        self._num_released_bytes += num_bytes

    def _return_memory(self) -> None:
        """Return free memory to the operating system if many bytes have been released since the last time.

        glibc does not do so if memory in use lies behind the free memory, so that a few large bodies would
        increase the size of the process permanently. The call takes a few milliseconds.
        """
        if self._num_released_bytes >= _TRIM_BYTES and _malloc_trim is not None:
            self._num_released_bytes = 0
            _malloc_trim(0)

    def _check_before_reading(self, scope: Scope) -> None:
        """Check the limits that can be checked before the body is read. Raises ApiError (413, 415, 503)."""
        if self._shutdown.rejects_requests:
            raise ApiError(
                "shutting_down", "The server is shutting down. Retry.", retry_after_s=_RETRY_AFTER_S
            )
        limits = self._limits
        if self._num_open_requests > limits.max_open_requests and not self._uploads.make_room():
            raise ApiError(
                "overloaded",
                f"The server has reached its limit of {limits.max_open_requests} open requests. Retry later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        _check_encoding(Headers(scope=scope))
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal():
            num_bytes, max_body_bytes = int(length), self._limits.max_body_bytes
            if num_bytes > max_body_bytes:
                raise ApiError(
                    "request_too_large",
                    f"The request body is {num_bytes} bytes; the limit is {max_body_bytes}. Send less text, "
                    "or fewer or smaller images.",
                )

    async def _read(self, body: RequestBody, receive: Receive, tenant: str) -> bool:
        """Read the body. Return False if the client disconnected before it had sent the whole body.

        Raises ApiError.
        """
        timeout_s = self._limits.timeout_s
        with self._uploads.receiving(tenant, timeout_s=timeout_s) as upload:
            return await self._receive_all(body, receive)
        if upload.was_ended:
            raise ApiError(
                "overloaded",
                "The request body arrived too slowly while the server was at its limit of open requests. "
                "Retry later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        raise ApiError(
            "request_timeout", f"The request body was not received within {timeout_s:g} seconds. Retry."
        )

    async def _receive_all(self, body: RequestBody, receive: Receive) -> bool:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            body.append(part)
            self._num_inflight_bytes += len(part)
            self._check_size(body.num_bytes)
            max_inflight_bytes = self._limits.max_inflight_bytes
            if self._num_inflight_bytes > max_inflight_bytes:
                raise ApiError(
                    "overloaded",
                    "The server has too many concurrent uploads. Their total size exceeds the limit of "
                    f"{max_inflight_bytes} bytes. Retry later.",
                    retry_after_s=_RETRY_AFTER_S,
                )
            if not message.get("more_body", False):
                return True

    def _check_size(self, num_bytes: int) -> None:
        """Check the number of bytes received so far. Raises ApiError (413)."""
        limits = self._limits
        if num_bytes > limits.max_body_bytes:
            raise ApiError(
                "request_too_large",
                f"The request body exceeds the limit of {limits.max_body_bytes} bytes. "
                "Send less text, or fewer or smaller images.",
            )


def _check_encoding(headers: Headers) -> None:
    """Raise ApiError (415) if the body is compressed."""
    value = ", ".join(headers.getlist("content-encoding"))
    encodings = [encoding for each in value.split(",") if (encoding := each.strip().lower())]
    if any(encoding != "identity" for encoding in encodings):
        quoted = value[:_MAX_QUOTED]
        raise ApiError(
            "unsupported_encoding",
            f"The request body has the Content-Encoding {quoted!a}, but the server accepts only uncompressed "
            "bodies. Disable compression of requests in the client or the proxy.",
        )
