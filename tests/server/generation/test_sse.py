"""A TextEvent encodes the same bytes as ``encode_event``."""

from __future__ import annotations

import msgspec
import pytest
from llava_server.generation.sse import TextEvent, encode_event


class Chunk(msgspec.Struct):
    name: str
    text: str
    number: int = 3


@pytest.mark.parametrize("event_id", ["chatcmpl-1:17", None])
@pytest.mark.parametrize("text", ["word", "", 'a "quote" \\ and\nlines\r\n', "\0\x1f", "日本語 🙂", "%b %s"])
def test_a_text_event_equals_an_encoded_chunk(text: str, event_id: str | None) -> None:
    def chunk(text: str) -> Chunk:
        return Chunk('"text":"%b"', text)

    assert TextEvent(chunk).encode(text, event_id) == encode_event(chunk(text), event_id=event_id)
