"""Response formats: the instruction is added on a separate line after the question."""

from __future__ import annotations

from typing import get_args

import pytest
from llava_cli import create_app
from llava_client import FORMATS, FormatName
from typer.testing import CliRunner

from tests.client.blocking_clients import AnyClient
from tests.client.scripted_server import PNG, TEXT, ScriptedServer

SHORT = "Answer the question using a single word or phrase."
CAPTION = "Provide a one-sentence caption for the provided image."
runner = CliRunner()


def last_text(server: ScriptedServer) -> str:
    content = server.last_body["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


def test_a_format_is_added_on_its_own_line_after_the_question(
    client: AnyClient, server: ScriptedServer
) -> None:
    client.chat("Which colour?", image=PNG, format="short")
    assert last_text(server) == f"Which colour?\n{SHORT}"
    assert "format" not in server.last_body


@pytest.mark.parametrize("name", get_args(FormatName))
def test_every_format_adds_its_instruction(
    name: FormatName, client: AnyClient, server: ScriptedServer
) -> None:
    client.chat("Q", format=name)
    assert last_text(server) == f"Q\n{FORMATS[name]}"


def test_without_a_format_nothing_is_added(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Which colour?", format=None)
    assert last_text(server) == "Which colour?"


def test_streams_support_formats(client: AnyClient, server: ScriptedServer) -> None:
    with client.stream("A or B?", format="option") as stream:
        assert "".join(stream) == TEXT
    assert last_text(server).endswith("\nAnswer with the option's letter from the given choices directly.")


def test_a_caption_needs_no_question(client: AnyClient, server: ScriptedServer) -> None:
    client.chat(image=PNG, format="caption")
    assert last_text(server) == CAPTION


def test_a_format_that_requires_a_question_is_rejected_without_one(
    client: AnyClient, server: ScriptedServer
) -> None:
    with pytest.raises(TypeError, match="format='short' requires a question"):
        client.chat(messages=[{"role": "user", "content": "Hello?"}], format="short")
    assert server.chats == []


def test_an_unknown_format_is_rejected_with_the_supported_ones(
    client: AnyClient, server: ScriptedServer
) -> None:
    with pytest.raises(ValueError, match="'long'. Use one of short, option"):
        client.chat("Q", format="long")  # type: ignore[arg-type]
    assert server.chats == []


def test_a_conversation_adds_the_format_to_every_question(client: AnyClient, server: ScriptedServer) -> None:
    conversation = client.conversation(image=PNG, format="short")
    conversation.ask("One?")
    conversation.ask("Two?")
    assert last_text(server) == f"Two?\n{SHORT}"
    assert server.last_body["messages"][0]["content"][-1]["text"] == f"One?\n{SHORT}"


def test_the_command_line_supports_formats(server: ScriptedServer) -> None:
    arguments = ["ask", "Which colour?", "--format", "short", "--base-url", server.url]
    assert runner.invoke(create_app(), arguments).stdout == TEXT + "\n"
    assert last_text(server) == f"Which colour?\n{SHORT}"


def test_the_command_line_lists_the_formats_if_one_is_invalid(server: ScriptedServer) -> None:
    result = runner.invoke(create_app(), ["ask", "Q", "--format", "long", "--base-url", server.url])
    assert result.exit_code == 2
    assert "'short'" in result.stderr
    assert server.chats == []
