"""Server-sent events as OpenAI's clients read them.

    id: {job_id}:{offset}
    data: {one chunk as JSON}
    (empty line)

``offset`` is the number of tokens up to and with this chunk. ``data: [DONE]`` ends a whole answer. An error
in mid-stream is a data line with ``error`` and then nothing: a client must not take the rest for a success.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["DONE", "KEEPALIVE", "SSE_HEADERS", "encode_error", "encode_event"]

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"
SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # nginx would collect tokens into pages
}


def encode_event(data: dict[str, Any], *, event_id: str | None = None, name: str | None = None) -> bytes:
    """One event, with its name where the dialect has names. JSON has no raw line breaks, so one data line is
    always enough."""
    prefix = f"id: {event_id}\n".encode() if event_id else b""
    prefix += f"event: {name}\n".encode() if name else b""
    return prefix + b"data: " + msgspec.json.encode(data) + b"\n\n"


def encode_error(body: bytes) -> bytes:
    """An error's JSON body as the stream's last event."""
    return b"data: " + body + b"\n\n"
