"""The media type of a stream, and the bytes that keep an idle stream open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from llava_server.generation.sse import KEEPALIVE, SSE_HEADERS

__all__ = ["NDJSON", "SSE", "StreamFormat", "encode_line", "ndjson"]

NDJSON = "application/x-ndjson"


class StreamFormat(NamedTuple):
    """A stream's response headers, and the bytes that are sent while no event arrives."""

    headers: Mapping[str, str]
    keepalive: bytes


SSE = StreamFormat(SSE_HEADERS, KEEPALIVE)


def ndjson(keepalive: msgspec.Struct) -> StreamFormat:
    """Return the format of newline-delimited JSON.

    The format has no comments, so ``keepalive`` must be an object that clients accept without an effect.
    """
    return StreamFormat({**SSE_HEADERS, "content-type": NDJSON}, encode_line(keepalive))


def encode_line(data: msgspec.Struct) -> bytes:
    """Encode one line of newline-delimited JSON. The encoded JSON contains no line breaks."""
    return msgspec.json.encode(data) + b"\n"
