"""Request and response headers for the OpenAPI document, with their meaning, unit, limits and an example.

``tests/server/api/openapi/test_headers.py`` compares them with real requests and responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_server.errors import ERRORS

__all__ = ["DOWNLOAD", "HEADERS", "QUEUE", "STREAM", "header_parameter", "headers_of"]

Schema = dict[str, Any]

QUEUE = ("x-queue-position", "x-queue-estimate-s")  # sent with generated responses
STREAM = ("cache-control", "x-accel-buffering")  # sent with server-sent events
DOWNLOAD = ("content-disposition",)
_LIMITS = tuple(
    f"x-ratelimit-{what}-{unit}"
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
_RETRY_AFTER_STATUSES = (408, 429, 503)
_SHOULD_RETRY_STATUSES = {kind.status for kind in ERRORS.values() if kind.should_retry is not None}
_INT32 = 2**31 - 1
_MAX_WAIT_S = 86_400


def _number(description: str, example: float, *, maximum: int = _INT32, kind: str = "integer") -> Schema:
    schema = {"type": kind, "minimum": 0, "maximum": maximum, "examples": [example]}
    return {"description": description, "schema": schema}


def _text(description: str, example: str, **bounds: Any) -> Schema:
    return {"description": description, "schema": {"type": "string", **bounds, "examples": [example]}}


_RESET = "Time until the limit is fully reset, for example 350ms, 6s or 1m30s."
_DURATION = r"^(\d+ms|\d+s|\d+m\d+s)$"
_REQUEST_ID = r"^[A-Za-z0-9_-]{1,64}$"

# Response headers, keyed by name.
HEADERS: Mapping[str, Schema] = {
    "x-request-id": _text(
        "Request ID, as shown in server logs and error messages.",
        "req-9855bf8261138516bd52469d",
        pattern=_REQUEST_ID,
    ),
    "retry-after": _number(
        "Number of seconds to wait before retrying. Only sent if a retry can succeed.", 2, maximum=_MAX_WAIT_S
    ),
    "retry-after-ms": _number(
        "Number of milliseconds to wait before retrying.", 1500, maximum=_MAX_WAIT_S * 1000
    ),
    "x-should-retry": _text(
        "Whether a retry of the same request can succeed. Omitted if the status code already makes this "
        "clear.",
        "false",
        enum=["true", "false"],
    ),
    "www-authenticate": _text("Authentication scheme for API keys.", "Bearer", enum=["Bearer"]),
    "accept-encoding": _text(
        "Sent if the request body is compressed. The server accepts only uncompressed bodies.",
        "identity",
        const="identity",
    ),
    "x-queue-position": _number(
        "Number of requests that were ahead of this one in the queue when it arrived. Omitted if the "
        "response was already being generated for an earlier request.",
        3,
    ),
    "x-queue-estimate-s": _number(
        "Queueing time in seconds, as estimated when the request arrived. Omitted if there is no estimate.",
        1.25,
        kind="number",
    ),
    "x-ratelimit-limit-requests": _number(
        "Maximum number of requests per minute for this API key. Omitted if unlimited.", 60
    ),
    "x-ratelimit-remaining-requests": _number(
        "Number of requests that can still be sent before the limit is reached.", 59
    ),
    "x-ratelimit-reset-requests": _text(_RESET, "1s", pattern=_DURATION),
    "x-ratelimit-limit-tokens": _number(
        "Maximum number of prompt and output tokens per minute for this API key. Omitted if unlimited.",
        100_000,
    ),
    "x-ratelimit-remaining-tokens": _number(
        "Number of tokens that can still be used before the limit is reached.", 99_400
    ),
    "x-ratelimit-reset-tokens": _text(_RESET, "360ms", pattern=_DURATION),
    "cache-control": _text(
        "Sent with streams. Prevents proxies from caching or transforming the response.",
        "no-cache, no-transform",
        const="no-cache, no-transform",
    ),
    "x-accel-buffering": _text(
        "Sent with streams. Prevents nginx from buffering the response.", "no", const="no"
    ),
    "content-disposition": _text(
        "Makes browsers download the file instead of displaying it.", "attachment", const="attachment"
    ),
}

# Request headers, keyed by name, except for the API key and Content-Type.
_REQUEST_HEADERS: Mapping[str, Schema] = {
    "X-Request-Id": _text(
        "Request ID for logs and error messages: up to 64 letters, digits, underscores and hyphens. The "
        "server replaces an invalid ID.",
        "my-request-1",
        pattern=_REQUEST_ID,
    ),
    "traceparent": _text(
        "W3C trace context of the caller, at most 55 characters. Only used if tracing is enabled.",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        maxLength=55,
    ),
    "anthropic-version": _text(
        "Sent by Anthropic clients. If this header is set, responses and errors have Anthropic's format. The "
        "value has no effect.",
        "2023-06-01",
        maxLength=64,
    ),
    "Idempotency-Key": _text(
        "1 to 255 visible ASCII characters, such as a UUID. A retry with the same key returns the same "
        "response instead of generating a new one. Generation continues even if the client disconnects. The "
        "response can be read until five minutes after generation ends.",
        "0b9c2f4e-6f1d-4a57-9f0e-3f1c09a2b44d",
        pattern="^[!-~]{1,255}$",
    ),
    "Last-Event-ID": _text(
        "ID of the last event that was received in full, in the form {id}:{number of tokens so far}. "
        "Overridden by starting_after.",
        "chatcmpl-3f1c09a2b44de8715a7c61f02b9d10ee:12",
        pattern="^.{1,128}:[0-9]{1,9}$",
    ),
}


def header_parameter(name: str) -> Schema:
    """Return a request header as a parameter of an operation."""
    return {"name": name, "in": "header", "required": False, **_REQUEST_HEADERS[name]}


def headers_of(status: int, *, needs_key: bool) -> list[str]:
    """Return the names of all headers that a response with this status may contain.

    ``needs_key`` is whether the operation requires an API key.
    """
    names = ["x-request-id"]
    names += _LIMITS if needs_key and status not in (401, 403) else ()  # limits apply per API key
    names += ("retry-after", "retry-after-ms") if status in _RETRY_AFTER_STATUSES else ()
    names += ("x-should-retry",) if status in _SHOULD_RETRY_STATUSES else ()
    names += ("www-authenticate",) if status == 401 else ()
    names += ("accept-encoding",) if status == 415 else ()
    return names
