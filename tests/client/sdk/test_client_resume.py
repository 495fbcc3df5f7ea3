"""Streams whose connection breaks: the client itself reads on where they stopped, without gap or overlap."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from llava_client import StreamInterrupted

from tests.client.client_driver import Driver
from tests.client.scripted_peer import (
    DELTAS,
    TEXT,
    USAGE,
    Peer,
    chunk,
    hangs_up,
    is_silent_until,
    refuses,
    streams,
)

ID = "chatcmpl-1"


def event(data: Any, offset: int | None = None) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"id: {ID}:{offset}\n" if offset is not None else "").encode() + f"data: {text}\n\n".encode()


WORDS = [event(chunk({"content": delta}), offset) for offset, delta in enumerate(DELTAS, 1)]
END = [
    event(chunk({}, "stop"), 4),
    event({"id": ID, "model": "tiny-llava", "choices": [], "usage": USAGE}),
    event("[DONE]"),
]


@pytest.mark.parametrize("num_words", [1, 2, 3, 4])
def test_a_broken_stream_is_read_on_where_it_stopped(driver: Driver, peer: Peer, num_words: int) -> None:
    peer.script(streams(*WORDS[:num_words], then=hangs_up))
    peer.resumptions.append(streams(*WORDS[num_words:], *END))
    with driver.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert (stream.text, stream.finish_reason) == (TEXT, "stop")
    assert stream.usage is not None
    (resumed,) = [request for request in peer.requests if ID in request.path]
    assert resumed.headers["last-event-id"] == f"{ID}:{num_words}"
    assert resumed.method == "GET"
    assert len(peer.chats) == 1


def test_a_stream_that_breaks_again_and_again_is_read_to_its_end(driver: Driver, peer: Peer) -> None:
    peer.script(streams(WORDS[0], then=hangs_up))
    peer.resumptions.extend(
        [streams(WORDS[1], then=hangs_up), refuses(503), streams(*WORDS[2:3]), streams(WORDS[3], *END)]
    )
    assert driver.stream("What is this?").answer().text == TEXT


def test_text_after_the_last_id_comes_again_and_is_not_told_twice(driver: Driver, peer: Peer) -> None:
    """The chunk with a last event's text has no id of its own: the one with the finish reason has."""
    peer.script(streams(*WORDS[:3], event(chunk({"content": DELTAS[3]})), then=hangs_up))
    peer.resumptions.append(streams(event(chunk({"content": DELTAS[3]})), *END))
    with driver.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert stream.text == TEXT


def test_a_second_break_before_the_text_has_come_again_tells_nothing_twice(
    driver: Driver, peer: Peer
) -> None:
    peer.script(streams(*WORDS[:3], event(chunk({"content": DELTAS[3]})), then=hangs_up))
    peer.resumptions.append(streams(then=hangs_up))
    peer.resumptions.append(streams(event(chunk({"content": DELTAS[3]})), *END))
    with driver.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert stream.text == TEXT


def test_an_answer_that_is_gone_is_an_interruption(driver: Driver, peer: Peer) -> None:
    peer.script(streams(*WORDS[:2], then=hangs_up))
    with pytest.raises(StreamInterrupted) as caught:
        driver.stream("What is this?").answer()
    assert caught.value.text == DELTAS[0] + DELTAS[1]


def test_leaving_early_cancels_an_answer_that_would_be_kept(driver: Driver, peer: Peer) -> None:
    released = threading.Event()
    peer.script(streams(*WORDS[:2], then=is_silent_until(released)))
    with driver.stream("What is this?") as stream:
        next(iter(stream))
    released.set()
    cancelled = [request.path for request in peer.requests if request.method == "DELETE"]
    assert cancelled == [f"/v1/chat/completions/{ID}"]


def test_an_ended_answer_is_not_cancelled(driver: Driver, peer: Peer) -> None:
    peer.script(streams(*WORDS, *END))
    driver.stream("What is this?").answer()
    assert not [request for request in peer.requests if request.method == "DELETE"]


def test_the_tries_of_one_call_have_one_key_and_calls_have_their_own(driver: Driver, peer: Peer) -> None:
    peer.script(refuses(503))
    driver.chat("What is this?")
    driver.chat("What is this?")
    first, retry, second = (request.headers["idempotency-key"] for request in peer.chats)
    assert first == retry != second


def test_a_key_of_ones_own_is_sent(driver: Driver, peer: Peer) -> None:
    driver.chat("What is this?", idempotency_key="order-7")
    assert peer.chats[0].headers["idempotency-key"] == "order-7"
    assert "idempotency_key" not in peer.last_body
