"""A talk remembers what was said, and only that."""

from __future__ import annotations

import pytest
from llava_client import BadRequestError, ImageError

from tests.client.client_driver import Driver
from tests.client.scripted_peer import DELTAS, PNG, TEXT, Peer, chunk, event, refuses, streams


def roles(peer: Peer) -> list[str]:
    return [message["role"] for message in peer.last_body["messages"]]


def test_the_next_question_carries_the_turns_before_it(driver: Driver, peer: Peer) -> None:
    talk = driver.conversation(image=PNG, max_tokens=5)
    assert talk.ask("What is this?").text == TEXT
    talk.ask("Which colour?")
    assert roles(peer) == ["user", "assistant", "user"]
    first, answer, second = peer.last_body["messages"]
    assert first["content"][0]["type"] == "image_url"
    assert (answer["content"], second["content"]) == (TEXT, "Which colour?")
    assert peer.last_body["max_tokens"] == 5


def test_a_streamed_turn_is_remembered_too(driver: Driver, peer: Peer) -> None:
    talk = driver.conversation()
    assert "".join(talk.stream("What is this?")) == TEXT
    talk.ask("And now?")
    assert peer.last_body["messages"][1] == {"role": "assistant", "content": TEXT}


def test_of_a_stopped_answer_the_seen_part_is_remembered(driver: Driver, peer: Peer) -> None:
    talk = driver.conversation()
    with talk.stream("What is this?") as stream:
        next(iter(stream))
    talk.ask("Go on.")
    assert DELTAS[0] in peer.last_body["messages"][1]["content"]


def test_a_failed_turn_leaves_no_trace_and_keeps_the_picture(driver: Driver, peer: Peer) -> None:
    talk = driver.conversation(image=PNG)
    peer.script(refuses(400), refuses(400))
    with pytest.raises(BadRequestError):
        talk.ask("What is this?")
    with pytest.raises(BadRequestError):
        talk.stream("What is this?")
    talk.ask("What is this?")
    assert roles(peer) == ["user"]
    assert peer.last_body["messages"][0]["content"][0]["type"] == "image_url"


def test_an_empty_answer_is_not_remembered(driver: Driver, peer: Peer) -> None:
    talk = driver.conversation(image=PNG)
    peer.script(streams(event(chunk({}, "stop")), event("[DONE]")))
    assert talk.stream("What is this?").answer().text == ""
    talk.ask("What is this?")
    assert roles(peer) == ["user"]


def test_a_picture_can_come_with_any_question_and_comes_once(driver: Driver, peer: Peer) -> None:
    talk = driver.conversation()
    talk.ask("Hello?")
    talk.show(PNG)
    talk.ask("What is this?")
    talk.ask("And that?", PNG)
    talk.ask("And?")
    kinds = [type(message["content"]).__name__ for message in peer.last_body["messages"][::2]]
    assert kinds == ["str", "list", "list", "str"]


def test_reset_forgets_turns_and_picture(driver: Driver, peer: Peer) -> None:
    talk = driver.conversation(image=PNG)
    talk.ask("What is this?")
    talk.show(PNG)
    talk.reset()
    talk.ask("Hello?")
    assert peer.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_a_picture_that_is_none_is_refused(driver: Driver) -> None:
    with pytest.raises(ImageError):
        driver.conversation().ask("What?", b"no picture")
