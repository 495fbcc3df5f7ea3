"""Broken streams, which the client resumes without gaps or overlaps."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from llava_client import StreamInterrupted

from tests.client.blocking_clients import AnyClient
from tests.client.scripted_server import (
    DELTAS,
    TEXT,
    USAGE,
    ScriptedServer,
    chunk,
    closes_connection,
    hangs_until,
    returns_error,
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
def test_a_broken_stream_is_resumed_where_it_stopped(
    client: AnyClient, server: ScriptedServer, num_words: int
) -> None:
    server.script(streams(*WORDS[:num_words], then=closes_connection))
    server.resumptions.append(streams(*WORDS[num_words:], *END))
    with client.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert (stream.text, stream.finish_reason) == (TEXT, "stop")
    assert stream.usage is not None
    (resumed,) = [request for request in server.requests if ID in request.path]
    assert resumed.headers["last-event-id"] == f"{ID}:{num_words}"
    assert resumed.method == "GET"
    assert len(server.chats) == 1


def test_a_stream_that_breaks_repeatedly_is_read_to_its_end(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(streams(WORDS[0], then=closes_connection))
    server.resumptions.extend(
        [
            streams(WORDS[1], then=closes_connection),
            returns_error(503),
            streams(*WORDS[2:3]),
            streams(WORDS[3], *END),
        ]
    )
    assert client.stream("What is this?").answer().text == TEXT


def test_resent_text_after_the_last_id_is_not_yielded_twice(
    client: AnyClient, server: ScriptedServer
) -> None:
    """The last text chunk has no ID. The server sends the ID with the finish reason."""
    server.script(streams(*WORDS[:3], event(chunk({"content": DELTAS[3]})), then=closes_connection))
    server.resumptions.append(streams(event(chunk({"content": DELTAS[3]})), *END))
    with client.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert stream.text == TEXT


def test_a_second_break_before_the_resent_text_yields_nothing_twice(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(streams(*WORDS[:3], event(chunk({"content": DELTAS[3]})), then=closes_connection))
    server.resumptions.append(streams(then=closes_connection))
    server.resumptions.append(streams(event(chunk({"content": DELTAS[3]})), *END))
    with client.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert stream.text == TEXT


def test_a_deleted_response_is_an_interruption(client: AnyClient, server: ScriptedServer) -> None:
    server.script(streams(*WORDS[:2], then=closes_connection))
    with pytest.raises(StreamInterrupted) as caught:
        client.stream("What is this?").answer()
    assert caught.value.text == DELTAS[0] + DELTAS[1]


def test_closing_a_resumable_stream_early_cancels_the_response(
    client: AnyClient, server: ScriptedServer
) -> None:
    released = threading.Event()
    server.script(streams(*WORDS[:2], then=hangs_until(released)))
    with client.stream("What is this?") as stream:
        next(iter(stream))
    released.set()
    cancelled = [request.path for request in server.requests if request.method == "DELETE"]
    assert cancelled == [f"/v1/chat/completions/{ID}"]


def test_a_complete_response_is_not_cancelled(client: AnyClient, server: ScriptedServer) -> None:
    server.script(streams(*WORDS, *END))
    client.stream("What is this?").answer()
    assert not [request for request in server.requests if request.method == "DELETE"]


def test_retries_share_an_idempotency_key_and_calls_do_not(client: AnyClient, server: ScriptedServer) -> None:
    server.script(returns_error(503))
    client.chat("What is this?")
    client.chat("What is this?")
    first, retry, second = (request.headers["idempotency-key"] for request in server.chats)
    assert first == retry != second


def test_a_custom_idempotency_key_is_sent(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("What is this?", idempotency_key="order-7")
    assert server.chats[0].headers["idempotency-key"] == "order-7"
    assert "idempotency_key" not in server.last_body
