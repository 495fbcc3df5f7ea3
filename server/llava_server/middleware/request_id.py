"""Errors as HTTP answers, and the two outermost middlewares: the request's id, and the net under all."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_server.errors import ApiError, error_bytes, error_headers

__all__ = [
    "ErrorNet",
    "RequestIds",
    "error_response",
    "note_error",
    "request_id_of",
    "route_name",
    "send_error",
]

logger = logging.getLogger(__name__)

_GOOD_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ANTHROPIC_PATHS = "/v1/messages"  # their clients read errors in another shape
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds by machines


def request_id_of(scope: Scope) -> str | None:
    """The id that RequestIds gave this request."""
    value = scope.get("state", {}).get("request_id")
    return value if isinstance(value, str) else None


def error_response(scope: Scope, error: ApiError) -> Response:
    """The answer for an error, counted."""
    note_error(scope, error)
    is_anthropic = scope["path"].startswith(_ANTHROPIC_PATHS)
    body = error_bytes(error, request_id_of(scope), is_anthropic=is_anthropic)
    return Response(body, error.kind.status, error_headers(error), media_type="application/json")


def note_error(scope: Scope, error: ApiError) -> None:
    """Counts the error and names it in the request's log line."""
    scope.setdefault("state", {})["error_code"] = error.code
    scope["app"].state.metrics.failed(error.code)


async def send_error(scope: Scope, send: Send, error: ApiError) -> None:
    """For middlewares: sends the whole answer."""

    async def no_body() -> Message:
        return {"type": "http.disconnect"}

    await error_response(scope, error)(scope, no_body, send)


class RequestIds:
    """Middleware: one id per request, in the answer's header, its errors and its log line; and that log line.

    A client's ``X-Request-Id`` is taken if it is plain; anything else could forge headers or log lines.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _GOOD_REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["arrived_at"] = arrived_at = time.monotonic()
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
            _log_request(scope, status, time.monotonic() - arrived_at)


class ErrorNet:
    """Middleware: what nobody foresaw becomes a 500 with an id, and a trace in the log only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_started = False

        async def watched_send(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ApiError as error:
            if is_started:
                raise
            await send_error(scope, send, error)
        except Exception:
            if is_started:
                raise  # the server cuts the connection, which is all that is left to say
            request_id = request_id_of(scope)
            logger.exception("unforeseen failure, request_id=%s", request_id)
            message = f"something broke on our side; its trace is logged under {request_id}"
            await send_error(scope, send, ApiError("internal_error", message))


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    state = scope["state"]
    fields = {
        "method": scope["method"],
        "route": route_name(scope),
        "status": status,
        "duration_s": round(seconds, 3),
        "request_id": state["request_id"],
        "job_id": state.get("job_id", "-"),
        "error": state.get("error_code", "-"),
        "tenant": state.get("tenant", "-"),
    }
    logger.log(
        logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO,
        "%(method)s %(route)s %(status)d %(duration_s).3fs "
        "request_id=%(request_id)s job_id=%(job_id)s error=%(error)s tenant=%(tenant)s",
        fields,
        extra={"fields": fields},
    )


def route_name(scope: Scope) -> str:
    """The route's own path, never the client's string."""
    route = scope.get("route")
    return str(getattr(route, "path", "(no route)"))
