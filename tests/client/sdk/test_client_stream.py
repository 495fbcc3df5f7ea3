"""Streamed answers: deltas, the end, and every way in which a stream can go wrong."""

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


def test_deltas_come_one_by_one_and_the_rest_is_known_afterwards(
    client: AnyClient, server: ScriptedServer
) -> None:
    with client.stream("What is this?") as stream:
        assert list(stream) == list(DELTAS)
    assert (stream.text, stream.finish_reason) == (TEXT, "stop")
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 4
    assert (stream.id, stream.model, stream.request_id) == ("chatcmpl-1", "tiny-llava", "req-7")
    assert server.last_body["stream_options"] == {"include_usage": True}


def test_a_stream_can_be_read_as_one_answer(client: AnyClient) -> None:
    answer = client.stream("What is this?").answer()
    assert (answer.text, answer.finish_reason, answer.model) == (TEXT, "stop", "tiny-llava")


def test_a_stream_that_is_over_yields_nothing_more(client: AnyClient) -> None:
    stream = client.stream("What is this?")
    assert "".join(stream) == TEXT
    assert list(stream) == []


def test_the_stream_returns_at_the_first_event_not_at_the_last(
    client: AnyClient, server: ScriptedServer
) -> None:
    released = threading.Event()
    server.script(streams(*FIRST_WORDS, then=hangs_until(released)))
    with client.stream("What is this?") as stream:
        assert next(iter(stream)) == DELTAS[0]
        released.set()


def test_leaving_early_hangs_up(client: AnyClient, server: ScriptedServer) -> None:
    gone = threading.Event()

    def notices(handler: object) -> None:
        if handler.rfile.read(1) == b"":  # type: ignore[attr-defined]
            gone.set()

    server.script(streams(*FIRST_WORDS, then=notices))
    with client.stream("What is this?") as stream:
        assert next(iter(stream)) == DELTAS[0]
    assert gone.wait(scaled(10))


def test_a_refusal_is_raised_where_the_stream_is_asked_for(client: AnyClient, server: ScriptedServer) -> None:
    server.script(returns_error(400, "prompt has 9000 tokens", code="context_length_exceeded"))
    with pytest.raises(BadRequestError, match="9000") as caught:
        client.stream("What is this?")
    assert caught.value.code == "context_length_exceeded"


def test_an_error_in_mid_stream_comes_after_the_text_before_it(
    client: AnyClient, server: ScriptedServer
) -> None:
    failure = {"error": {"message": "the worker crashed", "code": "worker_crashed", "type": "server_error"}}
    server.script(streams(*FIRST_WORDS, event(failure)))
    seen: list[str] = []
    with pytest.raises(APIError, match="crashed") as caught, client.stream("What is this?") as stream:
        seen.extend(stream)
    assert seen == [DELTAS[0]]
    assert (caught.value.code, caught.value.request_id) == ("worker_crashed", "req-7")


def test_an_error_in_the_same_packet_as_text_still_comes_after_it(
    client: AnyClient, server: ScriptedServer
) -> None:
    failure = event({"error": {"message": "the worker crashed"}})
    server.script(streams(b"".join(FIRST_WORDS) + failure + event(chunk({"content": "too late"}))))
    stream = client.stream("What is this?")
    assert next(iter(stream)) == DELTAS[0]
    with pytest.raises(APIError, match="crashed"):
        next(iter(stream))
    assert stream.text == DELTAS[0]


def test_an_error_as_first_event_is_raised_at_once(client: AnyClient, server: ScriptedServer) -> None:
    server.script(streams(event({"error": {"message": "no memory"}})))
    with pytest.raises(APIError, match="no memory"):
        client.stream("What is this?")


def test_a_stream_without_its_end_is_an_interruption_with_the_text_so_far(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(streams(*FIRST_WORDS))
    with pytest.raises(StreamInterrupted, match="after 6 characters") as caught:
        client.stream("What is this?").answer()
    assert caught.value.text == DELTAS[0]


def test_a_connection_cut_in_mid_stream_is_an_interruption_and_not_asked_again(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(streams(*FIRST_WORDS, then=closes_connection))
    with pytest.raises(StreamInterrupted) as caught:
        client.stream("What is this?").answer()
    assert caught.value.text == DELTAS[0]
    assert caught.value.__cause__ is not None
    assert len(server.chats) == 1


def test_silence_in_mid_stream_is_an_interruption(client: AnyClient, server: ScriptedServer) -> None:
    released = threading.Event()
    server.script(streams(*FIRST_WORDS, then=hangs_until(released)))
    with pytest.raises(StreamInterrupted):
        client.stream("What is this?", timeout=scaled(1.0)).answer()
    released.set()


@pytest.mark.parametrize(
    "first_try",
    [closes_connection, streams(), streams(b": hi\n\n", then=closes_connection), returns_error(503)],
)
def test_a_failure_before_the_first_event_is_tried_again(
    client: AnyClient, server: ScriptedServer, first_try: object
) -> None:
    server.script(first_try, completes)  # type: ignore[arg-type]
    assert client.stream("What is this?").answer().text == TEXT
    assert len(server.chats) == 2


def test_an_answer_that_is_no_event_stream_is_named_as_such(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.script(returns(200, b"<html></html>", "text/html"))
    with pytest.raises(APIError, match="text/html, not an event stream"):
        client.stream("What is this?")


def test_an_event_that_is_no_chunk_is_an_error(client: AnyClient, server: ScriptedServer) -> None:
    server.script(streams(*FIRST_WORDS, event("{nonsense")))
    with pytest.raises(APIError, match="no chat chunk") as caught:
        client.stream("What is this?").answer()
    assert caught.value.body == "{nonsense"


@pytest.mark.parametrize("reading", ["whole", "first delta", "nothing", "broken"])
def test_on_close_is_told_the_text_once(
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


def test_a_transcript_ignores_what_follows_the_end() -> None:
    transcript = StreamState()
    transcript.feed(b"".join(stream_events()) + event(chunk({"content": "more"})))
    transcript.end()
    assert (transcript.text, transcript.failure, transcript.last_event_id) == (TEXT, None, "job-1:4")
