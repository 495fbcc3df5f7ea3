"""A conversation records only successful turns."""

from __future__ import annotations

import pytest
from llava_client import BadRequestError, ImageError

from tests.client.blocking_clients import AnyClient
from tests.client.scripted_server import (
    DELTAS,
    PNG,
    TEXT,
    ScriptedServer,
    chunk,
    event,
    returns_error,
    streams,
)


def roles(server: ScriptedServer) -> list[str]:
    return [message["role"] for message in server.last_body["messages"]]


def test_the_next_question_includes_the_earlier_turns(client: AnyClient, server: ScriptedServer) -> None:
    conversation = client.conversation(image=PNG, max_tokens=5)
    assert conversation.ask("What is this?").text == TEXT
    conversation.ask("Which colour?")
    assert roles(server) == ["user", "assistant", "user"]
    first, answer, second = server.last_body["messages"]
    assert first["content"][0]["type"] == "image_url"
    assert (answer["content"], second["content"]) == (TEXT, "Which colour?")
    assert server.last_body["max_tokens"] == 5


def test_a_streamed_turn_is_recorded(client: AnyClient, server: ScriptedServer) -> None:
    conversation = client.conversation()
    assert "".join(conversation.stream("What is this?")) == TEXT
    conversation.ask("And now?")
    assert server.last_body["messages"][1] == {"role": "assistant", "content": TEXT}


def test_the_received_part_of_a_stopped_response_is_recorded(
    client: AnyClient, server: ScriptedServer
) -> None:
    conversation = client.conversation()
    with conversation.stream("What is this?") as stream:
        next(iter(stream))
    conversation.ask("Continue.")
    assert DELTAS[0] in server.last_body["messages"][1]["content"]


def test_a_failed_turn_is_not_recorded_and_keeps_the_image(client: AnyClient, server: ScriptedServer) -> None:
    conversation = client.conversation(image=PNG)
    server.script(returns_error(400), returns_error(400))
    with pytest.raises(BadRequestError):
        conversation.ask("What is this?")
    with pytest.raises(BadRequestError):
        conversation.stream("What is this?")
    conversation.ask("What is this?")
    assert roles(server) == ["user"]
    assert server.last_body["messages"][0]["content"][0]["type"] == "image_url"


def test_an_empty_response_is_not_recorded(client: AnyClient, server: ScriptedServer) -> None:
    conversation = client.conversation(image=PNG)
    server.script(streams(event(chunk({}, "stop")), event("[DONE]")))
    assert conversation.stream("What is this?").answer().text == ""
    conversation.ask("What is this?")
    assert roles(server) == ["user"]


def test_an_image_is_sent_once_with_any_question(client: AnyClient, server: ScriptedServer) -> None:
    conversation = client.conversation()
    conversation.ask("Hello?")
    conversation.show(PNG)
    conversation.ask("What is this?")
    conversation.ask("And that?", PNG)
    conversation.ask("And?")
    kinds = [type(message["content"]).__name__ for message in server.last_body["messages"][::2]]
    assert kinds == ["str", "list", "list", "str"]


def test_reset_removes_turns_and_the_image(client: AnyClient, server: ScriptedServer) -> None:
    conversation = client.conversation(image=PNG)
    conversation.ask("What is this?")
    conversation.show(PNG)
    conversation.reset()
    conversation.ask("Hello?")
    assert server.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_an_invalid_image_is_rejected(client: AnyClient) -> None:
    with pytest.raises(ImageError):
        client.conversation().ask("What?", b"not an image")
