"""Streamed responses: deltas, the end of a stream, and failures."""

from __future__ import annotations

import threading

import pytest
from llava_client import APIError, BadRequestError, StreamInterrupted
from llava_client.stream_state import StreamState

from tests.client.blocking_clients import AnyClient
from tests.client.conftest import MakeClient
from tests.client.scripted_server import (
    DELTAS,
    TEXT,
    ScriptedServer,
    chunk,
    closes_connection,
    completes,
    event,
    hangs_until,
    returns,
    returns_error,
    stream_events,
    streams,
)
from tests.machine_speed import scaled

FIRST_WORDS = stream_events()[:3]  # the role, a comment, the first delta


def test_a_stream_yields_deltas_and_has_all_attributes_at_the_end(
    client: AnyClient, server: ScriptedServer
) -> None:
    with client.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert (stream.text, stream.finish_reason) == (TEXT, "stop")
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 4
    assert (stream.id, stream.model, stream.request_id) == ("chatcmpl-1", "tiny-llava", "req-7")
    assert server.last_body["stream_options"] == {"include_usage": True}


def test_a_stream_can_be_read_as_one_response(client: AnyClient) -> None:
    answer = client.stream("What is this?").answer()
    assert (answer.text, answer.finish_reason, answer.model) == (TEXT, "stop", "tiny-llava")


def test_an_ended_stream_yields_nothing_more(client: AnyClient) -> None:
    stream = client.stream("What is this?")
    assert "".join(stream) == TEXT
    assert list(stream) == []


def test_stream_returns_at_the_first_event(client: AnyClient, server: ScriptedServer) -> None:
    released = threading.Event()
    server.script(streams(*FIRST_WORDS, then=hangs_until(released)))
    with client.stream("What is this?") as stream:
        assert next(iter(stream)) == DELTAS[0]
        released.set()


def test_leaving_a_stream_early_closes_the_connection(client: AnyClient, server: ScriptedServer) -> None:
    gone = threading.Event()

    def wait_for_disconnect(handler: object) -> None:
        if handler.rfile.read(1) == b"":  # type: ignore[attr-defined]
            gone.set()

    server.script(streams(*FIRST_WORDS, then=wait_for_disconnect))
    with client.stream("What is this?") as stream:
        assert next(iter(stream)) == DELTAS[0]
    assert gone.wait(scaled(10))


def test_a_rejected_request_raises_in_stream(client: AnyClient, server: ScriptedServer) -> None:
    server.script(returns_error(400, "prompt has 9000 tokens", code="context_length_exceeded"))
    with pytest.raises(BadRequestError, match="9000") as caught:
        client.stream("What is this?")
    assert caught.value.code == "context_length_exceeded"


def test_an_error_within_a_stream_is_raised_after_the_preceding_text(
    client: AnyClient, server: ScriptedServer
) -> None:
    failure = {"error": {"message": "the worker crashed", "code": "worker_crashed", "type": "server_error"}}
    server.script(streams(*FIRST_WORDS, event(failure)))
    seen: list[str] = []
    with pytest.raises(APIError, match="crashed") as caught, client.stream("What is this?") as stream:
        seen.extend(stream)
    assert seen == [DELTAS[0]]
    assert (caught.value.code, caught.value.request_id) == ("worker_crashed", "req-7")


def test_an_error_in_the_same_packet_is_raised_after_the_text(
    client: AnyClient, server: ScriptedServer
) -> None:
    failure = event({"error": {"message": "the worker crashed"}})
    server.script(streams(b"".join(FIRST_WORDS) + failure + event(chunk({"content": "too late"}))))
    stream = client.stream("What is this?")
    assert next(iter(stream)) == DELTAS[0]
    with pytest.raises(APIError, match="crashed"):
        next(iter(stream))
    assert stream.text == DELTAS[0]


def test_an_error_in_the_first_event_is_raised_immediately(client: AnyClient, server: ScriptedServer) -> None:
    server.script(streams(event({"error": {"message": "no memory"}})))
    with pytest.raises(APIError, match="no memory"):
        client.stream("What is this?")


def test_a_stream_without_done_is_an_interruption_with_the_received_text(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(streams(*FIRST_WORDS))
    with pytest.raises(StreamInterrupted, match="after 6 characters") as caught:
        client.stream("What is this?").answer()
    assert caught.value.text == DELTAS[0]


def test_a_broken_connection_is_an_interruption_without_a_new_request(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(streams(*FIRST_WORDS, then=closes_connection))
    with pytest.raises(StreamInterrupted) as caught:
        client.stream("What is this?").answer()
    assert caught.value.text == DELTAS[0]
    assert caught.value.__cause__ is not None
    assert len(server.chats) == 1


def test_a_timeout_within_a_stream_is_an_interruption(client: AnyClient, server: ScriptedServer) -> None:
    released = threading.Event()
    server.script(streams(*FIRST_WORDS, then=hangs_until(released)))
    with pytest.raises(StreamInterrupted):
        client.stream("What is this?", timeout=scaled(1.0)).answer()
    released.set()


@pytest.mark.parametrize(
    "first_try",
    [closes_connection, streams(), streams(b": hi\n\n", then=closes_connection), returns_error(503)],
)
def test_a_failure_before_the_first_event_is_retried(
    client: AnyClient, server: ScriptedServer, first_try: object
) -> None:
    server.script(first_try, completes)  # type: ignore[arg-type]
    assert client.stream("What is this?").answer().text == TEXT
    assert len(server.chats) == 2


def test_a_response_that_is_not_an_event_stream_is_an_error(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(returns(200, b"<html></html>", "text/html"))
    with pytest.raises(APIError, match="text/html instead of an event stream"):
        client.stream("What is this?")


def test_an_event_that_is_not_a_chunk_is_an_error(client: AnyClient, server: ScriptedServer) -> None:
    server.script(streams(*FIRST_WORDS, event("{nonsense")))
    with pytest.raises(APIError, match="not a chat completion chunk") as caught:
        client.stream("What is this?").answer()
    assert caught.value.body == "{nonsense"


@pytest.mark.parametrize("reading", ["whole", "first delta", "nothing", "broken"])
def test_on_close_is_called_once_with_the_text(
    make_client: MakeClient, server: ScriptedServer, reading: str
) -> None:
    texts: list[str] = []
    if reading == "broken":
        server.script(streams(*FIRST_WORDS, then=closes_connection))
    stream = make_client().stream("What is this?", on_close=texts.append)
    if reading == "whole":
        stream.answer()
    elif reading == "first delta":
        next(iter(stream))
    elif reading == "broken":
        with pytest.raises(StreamInterrupted):
            stream.answer()
    stream.close()
    stream.close()
    assert len(texts) == 1
    assert TEXT.startswith(texts[0])


def test_events_after_the_end_are_ignored() -> None:
    state = StreamState()
    state.feed(b"".join(stream_events()) + event(chunk({"content": "more"})))
    state.end()
    assert (state.text, state.failure, state.last_event_id) == (TEXT, None, "job-1:4")
