"""The event decoder with arbitrary chunk boundaries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from llava_client.sse import ServerSentEvent, SSEDecoder

NASTY = (
    b"\xef\xbb\xbf: a comment\r\n"
    b"id: job-1:0\r\ndata: \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\r\n\r\n"
    b"data:first\rdata: second\r\r"
    b"event: error\nid\ndata\n\n"
    b"id: has\0nul\nretry: 10\nunknown: x\ndata:  two spaces\n\n"
    b"event: without data\n\n"
    b"data: incomplete at the end"
)
EVENTS = [
    ServerSentEvent("é€😀", id="job-1:0"),
    ServerSentEvent("first\nsecond", id="job-1:0"),
    ServerSentEvent("", "error", ""),
    ServerSentEvent(" two spaces"),
]


def decode(*chunks: bytes) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    return [event for piece in chunks for event in decoder.feed(piece)]


def test_a_stream_that_covers_every_rule_of_the_standard_is_decoded() -> None:
    assert decode(NASTY) == EVENTS


def test_the_position_of_a_chunk_boundary_does_not_matter() -> None:
    for cut in range(len(NASTY) + 1):
        assert decode(NASTY[:cut], NASTY[cut:]) == EVENTS, cut


def test_single_byte_chunks_give_the_same_events() -> None:
    assert decode(*(NASTY[i : i + 1] for i in range(len(NASTY)))) == EVENTS


@given(st.lists(st.integers(0, len(NASTY)), max_size=12))
def test_any_chunk_boundaries_give_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(NASTY)]
    assert decode(*(NASTY[a:b] for a, b in zip(edges, edges[1:], strict=False))) == EVENTS


def test_an_event_is_returned_as_soon_as_its_empty_line_arrives() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: x\r") == []
    assert decoder.feed(b"\n\r") == [ServerSentEvent("x")]
    assert decoder.feed(b"\ndata: y\n\n") == [ServerSentEvent("y")]


def test_an_event_without_an_empty_line_is_not_returned() -> None:
    assert decode(b"data: x\n") == []


def test_invalid_utf8_does_not_stop_the_stream() -> None:
    assert decode(b"data: \xff\n\n") == [ServerSentEvent("\ufffd")]


def test_a_partial_byte_order_mark_does_not_drop_later_events() -> None:
    assert decode(b"\xef", b"\xbb", b"data: x\n\ndata: y\n\n") == [ServerSentEvent("y")]
