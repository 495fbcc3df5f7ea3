"""Server-sent events in the format that OpenAI's clients expect.

    id: {job_id}:{offset}
    event: {name}         (only in APIs with named events)
    data: {one chunk as JSON}
    (empty line)

``offset`` is the number of tokens up to and including this chunk. A complete stream ends with
``data: [DONE]``. A failed stream has no ``[DONE]`` line, and its last data line contains ``error``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

__all__ = ["DONE", "KEEPALIVE", "SSE_HEADERS", "TextEvent", "encode_event", "encode_events", "last_event"]

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"
SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # disables response buffering in nginx
}
_MARKER = secrets.token_hex(16)  # does not occur in any other string


def encode_event(data: msgspec.Struct, *, event_id: str | None = None, name: str | None = None) -> bytes:
    """Encode one event.

    A single data line is sufficient, because the encoded JSON contains no line breaks.
    """
    head = f"id: {event_id}\n" if event_id else ""
    head += f"event: {name}\n" if name else ""
    return b"%bdata: %b\n\n" % (head.encode(), msgspec.json.encode(data))


class TextEvent:
    """An event whose data is always the same, except for one string: most events of a stream.

    ``chunk`` returns the data with the given string. It is called only once.
    """

    def __init__(self, chunk: Callable[[str], msgspec.Struct]) -> None:
        data, marker = msgspec.json.encode(chunk(_MARKER)), msgspec.json.encode(_MARKER)
        self._head, _, self._tail = data.partition(marker)

    def encode(self, text: str, event_id: str | None) -> bytes:
        """Encode the event with this string, as ``encode_event`` does."""
        data = self._head, msgspec.json.encode(text), self._tail
        if event_id is None:
            return b"data: %b%b%b\n\n" % data
        return b"id: %b\ndata: %b%b%b\n\n" % (event_id.encode(), *data)


def encode_events(chunks: Sequence[msgspec.Struct], event_id: str | None) -> bytes:
    """Encode the chunks of one job event.

    Only the last chunk contains the event ID, so a client that has received the ID has received all chunks.
    """
    last = len(chunks) - 1
    return b"".join(
        encode_event(chunk, event_id=event_id if index == last else None)
        for index, chunk in enumerate(chunks)
    )


def last_event(data: bytes) -> bytes:
    """Return the last of the encoded events."""
    return data.removesuffix(b"\n\n").rpartition(b"\n\n")[2] + b"\n\n"
