"""The event decoder against bytes cut anywhere."""

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
    b"event: nothing to say\n\n"
    b"data: cut off by the end"
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


def test_every_rule_of_the_standard_in_one_stream() -> None:
    assert decode(NASTY) == EVENTS


def test_a_cut_anywhere_changes_nothing() -> None:
    for cut in range(len(NASTY) + 1):
        assert decode(NASTY[:cut], NASTY[cut:]) == EVENTS, cut


def test_byte_by_byte_is_the_same() -> None:
    assert decode(*(NASTY[i : i + 1] for i in range(len(NASTY)))) == EVENTS


@given(st.lists(st.integers(0, len(NASTY)), max_size=12))
def test_any_set_of_cuts_changes_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(NASTY)]
    assert decode(*(NASTY[a:b] for a, b in zip(edges, edges[1:], strict=False))) == EVENTS


def test_an_event_is_given_out_with_its_empty_line_and_not_later() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: x\r") == []
    assert decoder.feed(b"\n\r") == [ServerSentEvent("x")]
    assert decoder.feed(b"\ndata: y\n\n") == [ServerSentEvent("y")]


def test_an_event_without_its_empty_line_is_not_given_out() -> None:
    assert decode(b"data: x\n") == []


def test_bytes_that_are_no_utf8_do_not_stop_the_stream() -> None:
    assert decode(b"data: \xff\n\n") == [ServerSentEvent("\ufffd")]


def test_a_stream_that_begins_like_a_byte_order_mark_loses_nothing() -> None:
    assert decode(b"\xef", b"\xbb", b"data: x\n\ndata: y\n\n") == [ServerSentEvent("y")]
