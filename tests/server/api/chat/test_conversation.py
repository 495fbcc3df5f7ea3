"""Messages in any order become a conversation that starts and ends with a user turn."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from llava_server.api.chat.conversation import to_conversation
from llava_wire.messages.job import ImageRef, Message

from tests.server.api.chat.random_messages import RandomMessages, image, parsed, random_messages

ORDERS = re.compile(r"s?(ua)*u")
CONTINUED = re.compile(r"s?(ua)+")
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def system(content: Any, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": content}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = None, *calls: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **fields}


def tool(content: Any, call: str = "c") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def result(value: str) -> str:
    return f"<tool_response>{value}</tool_response>"


# (messages, expected conversation: the first letter of each role and the parts of its turn)
PLACES: dict[str, tuple[list[dict[str, Any]], list[tuple[Any, ...]]]] = {
    "consecutive messages": (
        [user("a"), user("b"), assistant("c"), assistant("d"), user("e")],
        [("u", "a\nb"), ("a", "c\nd"), ("u", "e")],
    ),
    "consecutive messages with parts": (
        [user([text("a"), text("b")]), user([IMAGE, text("c")]), user("d")],
        [("u", "a", "b", image(0), "c\nd")],
    ),
    "leading system messages": (
        [system("a"), system("b", "developer"), system([text("c"), text("d")]), user("e")],
        [("s", "a\nb\nc\nd"), ("u", "e")],
    ),
    "a late system message": (
        [user("a"), assistant("b"), system("c"), user("d")],
        [("u", "a"), ("a", "b"), ("u", "c\nd")],
    ),
    "a system message between assistant messages": (
        [user("a"), assistant("b"), system("c"), assistant("d"), user("e")],
        [("u", "a"), ("a", "b"), ("u", "c"), ("a", "d"), ("u", "e")],
    ),
    "a system message at the end": (
        [user("a"), assistant("b"), system("c")],
        [("u", "a"), ("a", "b"), ("u", "c")],
    ),
    "only a system message": ([system("a", "developer")], [("s", "a"), ("u", "")]),
    "a leading assistant message": ([assistant("a"), user("b")], [("u", ""), ("a", "a"), ("u", "b")]),
    "a system and a leading assistant message": (
        [system("a"), assistant("b"), user("c")],
        [("s", "a"), ("u", ""), ("a", "b"), ("u", "c")],
    ),
    "a trailing assistant message": ([user("a"), assistant("b")], [("u", "a"), ("a", "b"), ("u", "")]),
    "a call without a result": (
        [user("a"), assistant("b", CALL), user("c")],
        [("u", "a"), ("a", f"b\n{CALLED}"), ("u", "c")],
    ),
    "a result without a call": ([tool("a"), user("b")], [("u", result("a"), "b")]),
    "a result, text, a call and a result": (
        [tool("a"), assistant("b"), assistant(None, CALL), tool("c")],
        [("u", result("a")), ("a", f"b\n{CALLED}"), ("u", result("c"))],
    ),
    "parallel results with a message between them": (
        [user("a"), assistant(None, CALL, CALL), tool("b", "2"), user("c"), tool("d", "1")],
        [("u", "a"), ("a", f"{CALLED}\n{CALLED}"), ("u", result("b"), "c", result("d"))],
    ),
    "images in parallel results": (
        [assistant(None, CALL), tool([text("a"), IMAGE, text("b"), IMAGE]), tool([IMAGE]), user("c")],
        [
            ("u", ""),
            ("a", CALLED),
            ("u", result("a\nb"), image(0), image(1), result(""), image(2), "c"),
        ],
    ),
    "the older format of calls": (
        [
            user("a"),
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "f", "content": "b"},
        ],
        [("u", "a"), ("a", CALLED), ("u", result("b"))],
    ),
    "empty messages": (
        [system(None), user([]), assistant(None), user(None), user("a"), assistant([]), tool(None)],
        [("s", ""), ("u", ""), ("a", ""), ("u", "a"), ("a", ""), ("u", result(""))],
    ),
    "refusals and reasoning": (
        [
            user("a"),
            assistant(None, refusal="b", audio=None, function_call=None, annotations=[], reasoning="x"),
            user("c"),
            assistant([{"type": "thinking", "thinking": "x"}, {"type": "refusal", "refusal": "d"}]),
            user("e"),
            assistant("f", refusal="x", reasoning_content="x", name="x"),
            user("g"),
        ],
        [("u", "a"), ("a", "b"), ("u", "c"), ("a", "d"), ("u", "e"), ("a", "f"), ("u", "g")],
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_message_has_its_documented_position(name: str) -> None:
    dicts, expected = PLACES[name]
    messages = parsed(*dicts)
    conversation = to_conversation(messages, map(image, range(9)))
    assert [(message.role[0], *message.parts) for message in conversation] == expected


def test_a_continued_message_stays_at_the_end() -> None:
    messages = parsed(assistant("a"), assistant("b"))
    conversation = to_conversation(messages, [], is_continued=True)
    assert conversation == (Message("user", ("",)), Message("assistant", ("a\nb",)))


def test_the_description_of_tools_is_in_the_only_part_of_the_system_message() -> None:
    """Some chat templates read only the first part of a system message."""
    for messages, expected in (
        ([user("a")], "tools"),
        ([system("a"), system("b"), user("c")], "a\nb\ntools"),
        ([assistant("a"), system("b")], "tools"),
    ):
        first, *turns = to_conversation(parsed(*messages), [], tools="tools")
        assert first == Message("system", (expected,))
        assert [turn.role for turn in turns][::2] == ["user"] * len(turns[::2])


@settings(deadline=None)
@given(random=random_messages())
def test_any_messages_become_turns_that_alternate_and_lose_no_text_and_no_image(
    random: RandomMessages,
) -> None:
    conversation = random.conversation()
    roles = "".join(message.role[0] for message in conversation)
    assert (CONTINUED if random.is_continued else ORDERS).fullmatch(roles), roles
    assert all(message.parts for message in conversation)
    assert all(len(message.parts) == 1 for message in conversation if message.role != "user")
    assert names_in(conversation) == random.names


def names_in(conversation: tuple[Message, ...]) -> list[str]:
    parts = [part for message in conversation for part in message.parts]
    shown = " ".join(part.digest if isinstance(part, ImageRef) else part for part in parts)
    return re.findall(r"(?:text|call|image)\d+", shown)
