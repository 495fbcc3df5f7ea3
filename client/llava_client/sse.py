"""Decodes server-sent events. Chunks may end anywhere, even within a line, a CRLF or a character.

Implements the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html): three kinds of
line endings, comments, a byte order mark at the start, multiple ``data`` lines, and an ``id`` that remains in
effect until the next one. Does no I/O. The owner of the connection passes bytes to ``feed``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SSEDecoder", "ServerSentEvent"]

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerSentEvent:
    """One event. ``id`` is the latest ID in the stream, possibly from an earlier event."""

    data: str
    event: str = "message"
    id: str = ""


class SSEDecoder:
    """An incremental decoder that buffers incomplete lines and events between chunks.

    As required by the standard, an event that is incomplete at the end of the stream is discarded.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._is_at_start = True
        self._skips_newline = False  # the previous chunk ended with CR, so skip a leading LF
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that ``chunk`` completes, in order."""
        if not chunk:
            return []
        if self._skips_newline and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._skips_newline = False
        self._buffer += chunk
        if self._is_at_start and _BOM.startswith(self._buffer[: len(_BOM)]) and len(self._buffer) < len(_BOM):
            return []
        lines = self._complete_lines()
        return [event for line in lines if (event := self._line(line)) is not None]

    def _complete_lines(self) -> list[str]:
        if self._is_at_start:
            self._buffer = self._buffer.removeprefix(_BOM)
            self._is_at_start = False
        self._skips_newline = self._buffer.endswith(b"\r")
        *lines, self._buffer = _LINE_END.split(self._buffer)
        return [line.decode(errors="replace") for line in lines]

    def _line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")  # a comment is a field with an empty name and is ignored
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        if not data:
            return None
        return ServerSentEvent("\n".join(data), event or "message", self._id)
