"""Chunks that are written where their events arrive form the same response as those sent through ASGI."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing

import h11
import pytest
from llava_server.generation.sse import TextEvent

from tests.machine_speed import scaled
from tests.security.raw_http import slow_reader
from tests.server.conftest import OwnStack, Stack, connect
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

_CONTENT = re.compile(rb'"content":("(?:[^"\\]|\\.)*")')
_ID = re.compile(rb"^id: [^:]+:(\d+)$", re.MULTILINE)


def request(content: str, *, version: str = "1.1") -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": True}
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nhost: localhost\r\ncontent-length: {len(payload)}\r\n"
    )
    return head.encode() + b"content-type: application/json\r\n\r\n" + payload


def text_of_stream(body: bytes) -> str:
    """Return the text of a complete stream."""
    assert body.endswith(b"data: [DONE]\n\n")
    return "".join(json.loads(content) for content in _CONTENT.findall(body))


def read_body(connection: socket.socket) -> bytes:
    """Read a response with h11, which rejects invalid chunks, and return its body."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "localhost")]))
    parser.send(h11.EndOfMessage())
    body = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            parser.receive_data(connection.recv(65536))
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    return body


@pytest.fixture
def connection(stack: Stack) -> Iterator[socket.socket]:
    with closing(connect(stack)) as connection:
        connection.settimeout(scaled(60))
        yield connection


def test_each_token_is_an_event_in_order(connection: socket.socket) -> None:
    connection.sendall(request("count 40"))
    body = read_body(connection)
    assert [int(number) for number in _ID.findall(body)] == [*range(1, 41), 40]
    assert text_of_stream(body) == " ".join(map(str, range(1, 41)))


def test_a_connection_can_be_used_again_after_a_stream(connection: socket.socket) -> None:
    for number in (7, 9):
        connection.sendall(request(f"count {number}"))
        assert text_of_stream(read_body(connection)) == " ".join(map(str, range(1, number + 1)))


def test_a_stream_to_an_http_1_0_client_has_no_chunk_sizes(connection: socket.socket) -> None:
    connection.sendall(request("count 20", version="1.0"))
    data = b""
    while part := connection.recv(65536):
        data += part
    body = data.partition(b"\r\n\r\n")[2]
    assert body.startswith(b"data: {")
    assert text_of_stream(body) == " ".join(map(str, range(1, 21)))


def test_the_events_that_arrive_while_a_client_does_not_read_are_sent_later(own_stack: OwnStack) -> None:
    stack = own_stack()
    stack.server.set_send_buffer(8192)
    words = " ".join(f"{number}-" + "x" * 4000 for number in range(200))
    with closing(slow_reader(stack.server.url, request(f"say {words}"))) as connection:
        controller = stack.server.services.controller
        wait_until(lambda: controller.num_open == 1, "the stream")
        [output] = controller._open.values()
        wait_until(lambda: output.is_finished, "the last event")
        assert controller.num_open == 1  # not all of it has been sent
        connection.settimeout(scaled(60))
        assert text_of_stream(read_body(connection)) == words


def test_a_defect_while_an_event_is_written_ends_only_this_stream(
    own_stack: OwnStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = TextEvent.encode

    def encode_or_fail(self: TextEvent, text: str, event_id: str | None) -> bytes:
        if text == " poison":
            raise ZeroDivisionError
        return encode(self, text, event_id)

    monkeypatch.setattr(TextEvent, "encode", encode_or_fail)
    stack = own_stack()
    with closing(connect(stack)) as damaged, closing(connect(stack)) as intact:
        intact.sendall(request("hold"))
        damaged.sendall(request("say a b c d poison e f"))
        with pytest.raises(h11.RemoteProtocolError):  # the connection closes before the stream is complete
            read_body(damaged)
        stack.worker.release.set()
        assert text_of_stream(read_body(intact)) == "begun done"
    assert stack.server.metric("llava_task_crashes_total", task="follow") == 0
    assert stack.works()
