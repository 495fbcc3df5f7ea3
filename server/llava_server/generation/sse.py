"""Server-sent events as OpenAI's clients read them.

    id: {job_id}:{offset}
    event: {name}         (only in APIs that name their events)
    data: {one chunk as JSON}
    (empty line)

``offset`` is the number of tokens up to and with this chunk. ``data: [DONE]`` ends a complete stream. An
error in the middle of a stream is a data line with ``error``, after which the stream ends without ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

__all__ = ["DONE", "KEEPALIVE", "SSE_HEADERS", "encode_event", "encode_events"]

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"
SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # nginx would collect tokens into pages
}


def encode_event(data: msgspec.Struct, *, event_id: str | None = None, name: str | None = None) -> bytes:
    """Encode one event. JSON has no raw line breaks, so one data line is always enough."""
    head = f"id: {event_id}\n" if event_id else ""
    head += f"event: {name}\n" if name else ""
    return b"%bdata: %b\n\n" % (head.encode(), msgspec.json.encode(data))


def encode_events(chunks: Sequence[msgspec.Struct], event_id: str | None) -> bytes:
    """Encode the chunks of one job event. The last carries the id: a client that has it has all of them."""
    last = len(chunks) - 1
    return b"".join(
        encode_event(chunk, event_id=event_id if index == last else None)
        for index, chunk in enumerate(chunks)
    )
