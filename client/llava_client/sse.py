"""Server-sent events from bytes that the network cut anywhere: within a line, a CRLF or a character.

Follows the HTML standard's event stream (https://html.spec.whatwg.org/multipage/server-sent-events.html):
three kinds of line ends, comments, a byte order mark at the start, several ``data`` lines, an ``id`` that
stays until the next one. Reads nothing itself; whoever owns the connection feeds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SSEDecoder", "ServerSentEvent"]

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerSentEvent:
    """One event; ``id`` is the last one given in the stream, perhaps by an earlier event."""

    data: str
    event: str = "message"
    id: str = ""


class SSEDecoder:
    """Holds the unfinished line and the unfinished event between two chunks; an event that the end of the
    stream cuts off is never given out, as the standard wants."""

    def __init__(self) -> None:
        self._buffer = b""
        self._is_at_start = True
        self._skips_newline = False  # the chunk before ended in CR: a LF now belongs to it
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that ``chunk`` completes, in order."""
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
        field, _, value = line.partition(":")  # a comment has an empty field name and falls through
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
