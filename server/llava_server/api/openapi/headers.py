"""The headers that this server reads and sends, for the OpenAPI document: meaning, unit, bound and example.

``tests/server/api/openapi/test_headers.py`` compares the lists with real requests and responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_server.errors import ERRORS

__all__ = ["DOWNLOAD", "HEADERS", "QUEUE", "STREAM", "header_parameter", "headers_of"]

Schema = dict[str, Any]

QUEUE = ("x-queue-position", "x-queue-estimate-s")  # of responses that are generated
STREAM = ("cache-control", "x-accel-buffering")  # of server-sent events
DOWNLOAD = ("content-disposition", "x-content-type-options")
_LIMITS = tuple(
    f"x-ratelimit-{what}-{unit}"
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
_WAITS = (408, 429, 503)  # whose errors may say when to retry
_HINTED = {kind.status for kind in ERRORS.values() if kind.should_retry is not None}
_INT32 = 2**31 - 1
_MAX_WAIT_S = 86_400


def _number(description: str, example: float, *, most: int = _INT32, kind: str = "integer") -> Schema:
    schema = {"type": kind, "minimum": 0, "maximum": most, "examples": [example]}
    return {"description": description, "schema": schema}


def _text(description: str, example: str, **bounds: Any) -> Schema:
    return {"description": description, "schema": {"type": "string", **bounds, "examples": [example]}}


_RESET = "Until all of them are there again, as 350ms, 6s or 1m30s."
_DURATION = r"^(\d+ms|\d+s|\d+m\d+s)$"
_REQUEST_ID = r"^[A-Za-z0-9_-]{1,64}$"

# The headers of responses, by name.
HEADERS: Mapping[str, Schema] = {
    "x-request-id": _text(
        "The request's id in this server's log and in errors.",
        "req-9855bf8261138516bd52469d",
        pattern=_REQUEST_ID,
    ),
    "retry-after": _number("When to come again, seconds; where waiting helps.", 2, most=_MAX_WAIT_S),
    "retry-after-ms": _number("The same, milliseconds.", 1500, most=_MAX_WAIT_S * 1000),
    "x-should-retry": _text(
        "Whether the same request may succeed if it is sent again; left out where the status says it.",
        "false",
        enum=["true", "false"],
    ),
    "www-authenticate": _text("How to send a key.", "Bearer", enum=["Bearer"]),
    "x-queue-position": _number(
        "Requests that were waiting before this one when it came; left out where it joined an answer under "
        "way.",
        3,
    ),
    "x-queue-estimate-s": _number(
        "How long it would have to wait, as estimated when it came, seconds; left out where nobody knows.",
        1.25,
        kind="number",
    ),
    "x-ratelimit-limit-requests": _number("Requests a minute of this key; left out without a limit.", 60),
    "x-ratelimit-remaining-requests": _number("Requests that are left of them now.", 59),
    "x-ratelimit-reset-requests": _text(_RESET, "1s", pattern=_DURATION),
    "x-ratelimit-limit-tokens": _number(
        "Tokens a minute of this key, of prompts and answers; left out without a limit.", 100_000
    ),
    "x-ratelimit-remaining-tokens": _number("Tokens that are left of them now.", 99_400),
    "x-ratelimit-reset-tokens": _text(_RESET, "360ms", pattern=_DURATION),
    "cache-control": _text(
        "Of a stream: no proxy may keep or change it.",
        "no-cache, no-transform",
        const="no-cache, no-transform",
    ),
    "x-accel-buffering": _text("Of a stream: nginx must not collect it.", "no", const="no"),
    "content-disposition": _text(
        "A browser stores the file and shows nothing of it.", "attachment", const="attachment"
    ),
    "x-content-type-options": _text("A browser must not guess what the file is.", "nosniff", const="nosniff"),
}

# The headers of requests other than the key and Content-Type, by name.
_REQUEST_HEADERS: Mapping[str, Schema] = {
    "X-Request-Id": _text(
        "An id of your own for the log and for errors, at most 64 of A-Z a-z 0-9 _ -; another is replaced.",
        "my-request-1",
        pattern=_REQUEST_ID,
    ),
    "traceparent": _text(
        "The caller's span in W3C's form, at most 55 characters; read where the server traces.",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        maxLength=55,
    ),
    "Idempotency-Key": _text(
        "1 to 255 visible ASCII characters, such as a UUID. The same request with the same key gets the same "
        "answer, made once, which outlives its connection and can be read for five minutes.",
        "0b9c2f4e-6f1d-4a57-9f0e-3f1c09a2b44d",
        pattern="^[!-~]{1,255}$",
    ),
    "Last-Event-ID": _text(
        "The id of the last event that came whole, {id}:{tokens so far}; starting_after goes before it.",
        "chatcmpl-3f1c09a2b44de8715a7c61f02b9d10ee:12",
        pattern="^.{1,128}:[0-9]{1,9}$",
    ),
}


def header_parameter(name: str) -> Schema:
    """Return a header of requests as a parameter of an operation."""
    return {"name": name, "in": "header", "required": False, **_REQUEST_HEADERS[name]}


def headers_of(method: str, status: int) -> list[str]:
    """Return the names of the headers that any response of this method and status may have."""
    names = ["x-request-id"]
    names += _LIMITS if method == "post" and status != 401 else ()  # without a key no limits
    names += ("retry-after", "retry-after-ms") if status in _WAITS else ()
    names += ("x-should-retry",) if status in _HINTED else ()
    names += ("www-authenticate",) if status == 401 else ()
    return names
