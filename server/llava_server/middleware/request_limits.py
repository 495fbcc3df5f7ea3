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
from llava_server.loaded_data import LoadedData
from llava_server.metrics import Metrics
from llava_server.middleware.auth import ApiKeys, is_public
from llava_server.middleware.open_requests import RETRY_AFTER_S, OpenRequests
from llava_server.middleware.server_error import send_error
from llava_server.middleware.uploads import Uploads
from llava_server.request_context import RequestBody, context_of
from llava_server.shutdown import GracefulShutdown

__all__ = ["BodyLimits", "RequestLimitMiddleware"]

_TRIM_BYTES = 16 << 20
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
_MAX_QUOTED = 40  # maximum number of characters that an error message quotes from a header


@dataclass(frozen=True)
class BodyLimits:
    """The limits on each request body."""

    max_body_bytes: int
    timeout_s: float


class RequestLimitMiddleware:
    """Middleware that limits the open requests, and stores the body of a POST request in its context.

    Runs after AuthMiddleware. Requests to public paths are not counted and their bodies are not read, because
    clients without a key could otherwise use up the limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: BodyLimits,
        open_requests: OpenRequests,
        loaded_data: LoadedData,
        keys: ApiKeys,
        shutdown: GracefulShutdown,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._shutdown = shutdown
        self._metrics = metrics
        self._num_released_bytes = 0  # when memory was last returned to the operating system
        self._open = open_requests
        self._loaded_data = loaded_data
        self._uploads = Uploads()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_public(scope["path"]):
            return await self._app(scope, receive, send)
        tenant, is_post = context_of(scope).tenant, scope["method"] == "POST"
        self._count(tenant, +1, is_post=is_post)
        try:
            try:
                self._check_tenant(tenant)
            except ApiError as error:
                return await send_error(scope, send, error)
            with self._loaded_data.hold(tenant) as context_of(scope).loaded:
                await (self._handle_post if is_post else self._app)(scope, receive, send)
        finally:
            self._count(tenant, -1, is_post=is_post)
            self._return_memory()

    async def _handle_post(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = context_of(scope).tenant
        body = RequestBody(on_release=lambda num_bytes: self._open.count_bytes(tenant, -num_bytes))
        try:
            try:
                self._check_before_reading(scope)
                is_complete = await self._read(body, receive, tenant)
            except ApiError as error:
                return await send_error(scope, send, error)
            if is_complete:
                context_of(scope).body = body
                await self._app(scope, receive, send)
        finally:
            body.release()

    def _count(self, tenant: str, change: int, *, is_post: bool) -> None:
        self._open.count(tenant, change, is_post=is_post)
        self._metrics.open_requests.set(self._open.num_posts)

    def _return_memory(self) -> None:
        """Return free memory to the operating system if many bytes have been released since the last time.

        glibc does not do so if memory in use lies behind the free memory, so that a few large bodies would
        increase the size of the process permanently. The call takes a few milliseconds.
        """
        num_released_bytes = self._open.num_released_bytes
        if num_released_bytes - self._num_released_bytes >= _TRIM_BYTES and _malloc_trim is not None:
            self._num_released_bytes = num_released_bytes
            _malloc_trim(0)

    def _check_tenant(self, tenant: str) -> None:
        """Raise ApiError (429) if the tenant has too many open requests and no slow upload to replace."""
        limits = self._keys.limits(tenant)
        if self._open.is_tenant_full(tenant, limits) and not self._uploads.make_room(tenant):
            raise self._open.tenant_full_error(limits)

    def _check_before_reading(self, scope: Scope) -> None:
        """Check the limits that can be checked before the body is read. Raises ApiError (413, 415, 503)."""
        if self._shutdown.rejects_requests:
            raise ApiError(
                "shutting_down", "The server is shutting down. Retry.", retry_after_s=RETRY_AFTER_S
            )
        if self._open.is_full() and not self._uploads.make_room():
            raise self._open.full_error()
        _check_encoding(Headers(scope=scope))
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal():
            num_bytes, max_body_bytes = int(length), self._limits.max_body_bytes
            if num_bytes > max_body_bytes:
                raise ApiError(
                    "request_too_large",
                    f"The request body is {num_bytes} bytes; the limit is {max_body_bytes}. Send less text, "
                    "or smaller images or files.",
                )
            self._open.check_body(self._keys.limits(context_of(scope).tenant), num_bytes)

    async def _read(self, body: RequestBody, receive: Receive, tenant: str) -> bool:
        """Read the body. Return False if the client disconnected before it had sent the whole body.

        Raises ApiError.
        """
        timeout_s = self._limits.timeout_s
        with self._uploads.receiving(tenant, timeout_s=timeout_s) as upload:
            return await self._receive_all(body, receive, tenant)
        if upload.was_ended:
            raise ApiError(
                "overloaded",
                "The request body arrived too slowly while the server or the API key was at its limit of "
                "open requests. Retry later.",
                retry_after_s=RETRY_AFTER_S,
            )
        raise ApiError(
            "request_timeout", f"The request body was not received within {timeout_s:g} seconds. Retry."
        )

    async def _receive_all(self, body: RequestBody, receive: Receive, tenant: str) -> bool:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            body.append(part)
            self._open.count_bytes(tenant, len(part))
            self._check_size(body.num_bytes)
            self._open.check_body(self._keys.limits(tenant), body.num_bytes)
            self._open.check_bytes(tenant, self._keys.limits(tenant))
            if not message.get("more_body", False):
                return True

    def _check_size(self, num_bytes: int) -> None:
        """Check the number of bytes received so far. Raises ApiError (413)."""
        limits = self._limits
        if num_bytes > limits.max_body_bytes:
            raise ApiError(
                "request_too_large",
                f"The request body exceeds the limit of {limits.max_body_bytes} bytes. "
                "Send less text, or smaller images or files.",
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
