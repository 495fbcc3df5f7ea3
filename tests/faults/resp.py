"""Framing of the Redis protocol (RESP2): messages are read from a stream without decoding their contents."""

from __future__ import annotations

import asyncio

__all__ = ["is_blocking", "read_message"]

MAX_LINE_BYTES = 1 << 20  # of one line; a bulk string has no limit


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """Return the bytes of one request or reply. Raises IncompleteReadError at the end of the stream."""
    line = await reader.readuntil(b"\r\n")
    kind, length = line[:1], line[1:-2]
    if kind == b"$" and int(length) >= 0:
        return line + await reader.readexactly(int(length) + 2)
    if kind == b"*":
        return b"".join([line, *[await read_message(reader) for _ in range(int(length))]])
    return line


def is_blocking(request: bytes) -> bool:
    """Return whether Redis may wait before it replies to this request."""
    words = request[:256].split(b"\r\n")[2::2]
    return bool(words) and (words[0] == b"BLPOP" or (words[0] == b"XREAD" and b"BLOCK" in words))
