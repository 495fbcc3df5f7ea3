"""Parser for the server-sent events in a complete response."""

from __future__ import annotations

import json
from typing import Any

import httpx2

__all__ = ["chunks_of", "events_of"]


def events_of(response: httpx2.Response) -> list[tuple[str | None, Any]]:
    """Return (name, data) for each event, ignoring comments. Data is parsed as JSON, except for [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    found = []
    for block in response.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


def chunks_of(response: httpx2.Response) -> list[Any]:
    """Return the chunks of a stream that ended with [DONE]."""
    *chunks, done = [data for _, data in events_of(response)]
    assert done == "[DONE]"
    return chunks
