"""The outermost middleware: assigns an ID and a RequestContext to each request, and logs the request."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_server.metrics import Metrics
from llava_server.request_context import RequestContext, add_context, context_of

__all__ = ["RequestIdMiddleware", "route_path"]

logger = logging.getLogger(__name__)

_VALID_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# These paths are polled often, so they are logged at debug level.
_DEBUG_PATHS = frozenset({"/livez", "/readyz", "/health", "/ping", "/load", "/metrics"})


class RequestIdMiddleware:
    """Middleware that adds a request ID to the ``X-Request-Id`` response header, to errors and to the log.

    A client's ``X-Request-Id`` is used only if it consists of 1 to 64 letters, digits, ``_`` or ``-``. Other
    characters could be used to forge headers or log lines.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _VALID_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        add_context(scope, RequestContext(request_id, time.monotonic(), self._metrics))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _log_request(scope, status)


def route_path(scope: Scope) -> str:
    """Return the path template of the matched route, not the path that the client sent."""
    route = scope.get("route")
    return str(getattr(route, "path", "(no route)"))


def _log_request(scope: Scope, status: int) -> None:
    context = context_of(scope)
    fields = {
        "method": scope["method"],
        "route": route_path(scope),
        "status": status,
        "duration_s": round(time.monotonic() - context.arrived_at, 3),
        "request_id": context.request_id,
        "job_id": context.job_id or "-",
        "error": context.error_code or "-",
        "tenant": getattr(context, "tenant", "-"),
    }
    logger.log(
        logging.DEBUG if scope["path"] in _DEBUG_PATHS else logging.INFO,
        "%(method)s %(route)s %(status)d %(duration_s).3fs "
        "request_id=%(request_id)s job_id=%(job_id)s error=%(error)s tenant=%(tenant)s",
        fields,
        extra={"fields": fields},
    )
