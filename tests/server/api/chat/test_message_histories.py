"""Conversations that agents, SDKs and frameworks send are accepted in every chat API.

Each test sends real requests and checks the conversation that the worker receives.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from llava_wire.messages.job import ImageRef

from tests.server.api.chat.test_conversation import PLACES
from tests.server.conftest import Stack
from tests.server.image_files import data_url, encoded, part, scene
from tests.server.scripted_worker import MODEL

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
WIDE, TALL = encoded(scene(40, 20)), encoded(scene(20, 40))
BROKEN = "data:image/png;base64,AAAA"


def result(text: str) -> str:
    return f"<tool_response>{text}</tool_response>"


def received(stack: Stack) -> list[tuple[str, ...]]:
    """Return the worker's last conversation: the first letter of each role and the parts of its turn."""
    return [
        (message.role[0], *(f"{p.width}x{p.height}" if isinstance(p, ImageRef) else p for p in message.parts))
        for message in stack.worker.assignments[-1].job.messages
    ]


def responses(stack: Stack, *items: Any, **fields: Any) -> Any:
    return stack.http.post("/v1/responses", json={"model": MODEL, "input": list(items), **fields})


def messages(stack: Stack, *turns: Any, **fields: Any) -> Any:
    body = {"model": MODEL, "max_tokens": 9, "messages": list(turns), **fields}
    return stack.http.post("/v1/messages", json=body)


def source(raw: bytes) -> dict[str, str]:
    return {"type": "base64", "media_type": "image/png", "data": base64.b64encode(raw).decode()}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


TOOL_USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
FUNCTION_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


def tool_result(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "c", "content": list(content), **fields}


def output(*parts: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": "c", "output": list(parts)}


def input_image(raw: bytes | str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": raw if isinstance(raw, str) else data_url(raw)}


WITH_IMAGES = [
    ("u", "Look."),
    ("a", CALLED),
    ("u", result("a\nb"), "40x20", "20x40", result(""), "20x40", "say yes"),
]


def test_images_in_tool_results_of_chat_messages_follow_the_text_of_the_result(stack: Stack) -> None:
    texts = [{"type": "text", "text": text} for text in "ab"]
    response = stack.chat(
        messages=[
            user("Look."),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": [texts[0], part(WIDE), texts[1], part(TALL)]},
            {"role": "tool", "tool_call_id": "d", "content": [part(TALL)]},
            user("say yes"),
        ]
    )
    assert (response.status_code, received(stack)) == (200, WITH_IMAGES)


def test_images_in_tool_results_of_anthropics_messages_follow_the_text_of_the_result(stack: Stack) -> None:
    texts = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in "ab"]
    wide = {"type": "image", "source": source(WIDE)}
    tall = {"type": "image", "source": {"type": "url", "url": data_url(TALL)}}
    content = [
        tool_result(texts[0], wide, texts[1], tall),
        tool_result(tall),
        {"type": "text", "text": "say yes"},
    ]
    response = messages(stack, user("Look."), assistant(TOOL_USE), user(content))
    assert (response.status_code, received(stack)) == (200, WITH_IMAGES)


def test_images_in_function_call_outputs_follow_the_text_of_the_output(stack: Stack) -> None:
    texts = [{"type": "input_text", "text": text} for text in "ab"]
    response = responses(
        stack,
        user("Look."),
        FUNCTION_CALL,
        output(texts[0], input_image(WIDE), texts[1], input_image(TALL)),
        output(input_image(TALL)),
        user("say yes"),
    )
    assert (response.status_code, received(stack)) == (200, WITH_IMAGES)


def test_the_error_for_an_invalid_image_names_its_field_in_each_api(stack: Stack) -> None:
    image = {"type": "image", "source": {**source(b""), "data": "AAAA"}}
    link = {"type": "image", "source": {"type": "url", "url": BROKEN}}
    rejected = [
        (
            stack.chat(
                messages=[{"role": "tool", "tool_call_id": "c", "content": [part(WIDE), part(BROKEN)]}]
            ),
            "messages[0].content[1].image_url.url",
        ),
        (
            messages(stack, user("a"), assistant(TOOL_USE), user([tool_result(image)]), system="s"),
            "messages[2].content[0].content[0].source.data",
        ),
        (messages(stack, user("a"), user([link]), system="s"), "messages[1].content[0].source.url"),
        (
            responses(stack, user("a"), FUNCTION_CALL, output(input_image(BROKEN)), instructions="s"),
            "input[2].output[0].image_url",
        ),
        (
            responses(stack, user("a"), user([input_image(WIDE), input_image(BROKEN)]), instructions="s"),
            "input[1].content[1].image_url",
        ),
    ]
    for response, param in rejected:
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert error["message"].startswith(param)


def test_the_limits_of_a_request_name_its_own_field(stack: Stack) -> None:
    images = [input_image(data_url(WIDE))] * 17
    for response, param, words in (
        (responses(stack, user("x" * (1024 * 1024 + 1))), "input", "the limit is 1048576"),
        (responses(stack, FUNCTION_CALL, output(*images)), "input", "17 images"),
        (
            stack.chat(messages=[{"role": "tool", "tool_call_id": "c", "content": [part(WIDE)] * 17}]),
            "messages",
            "17",
        ),
        (stack.chat([{"type": "text", "text": "x"}] * 257), "messages[0].content", "at most 256"),
        (stack.chat(messages=[user("x")] * 1025), "messages", "at most 1024"),
        (responses(stack, *[user("x")] * 1025), "input", "at most 1024"),
        (messages(stack, *[user("x")] * 1025), "messages", "at most 1024"),
        (
            messages(stack, user([tool_result(*[{"type": "text", "text": "x"}] * 257)])),
            "messages[0].content[0].content",
            "at most 256",
        ),
    ):
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert words in error["message"]


def test_merged_messages_are_not_subject_to_the_limit_for_one_message(stack: Stack) -> None:
    """An Anthropic client sends at most 256 blocks per message, but any number of messages in a row."""
    blocks = [{"type": "text", "text": "x"}] * 200
    assert messages(stack, user(blocks), user(blocks), user("say yes")).status_code == 200
    assert len(received(stack)[0]) == 400


@pytest.mark.parametrize("name", PLACES)
def test_every_order_of_messages_is_accepted(stack: Stack, name: str) -> None:
    dicts, expected = PLACES[name]
    sent = json.loads(json.dumps(dicts).replace('"data:"', json.dumps(data_url(WIDE))))
    response = stack.chat(messages=sent)
    assert response.status_code == 200, response.text
    shown = [tuple("40x20" if isinstance(each, ImageRef) else each for each in turn) for turn in expected]
    assert received(stack) == shown


THINKING = {"type": "thinking", "thinking": "Hm.", "signature": "s"}


def test_histories_of_reasoning_models_are_accepted_without_their_reasoning(stack: Stack) -> None:
    text = {"type": "text", "text": "a", "citations": None}
    redacted = {"type": "redacted_thinking", "data": "x"}
    expected = [("u", "q"), ("a", f"a\n{CALLED}"), ("u", result("b"), "say yes")]
    turns = [
        user("q"),
        assistant(THINKING, text, redacted, TOOL_USE),
        user([tool_result({"type": "text", "text": "b"})]),
        user("say yes"),
    ]
    assert messages(stack, *turns).status_code == 200
    assert received(stack) == expected

    earlier = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": "commentary",
        "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
    }
    reasoning: dict[str, Any] = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": None,
        "encrypted_content": "x",
    }
    items = [
        user("q"),
        reasoning,
        {"type": "item_reference", "id": "rs_0"},
        {"id": "rs_2"},
        earlier,
        reasoning,
    ]
    response = responses(
        stack,
        *items,
        {**FUNCTION_CALL, "id": "fc_1"},
        output({"type": "input_text", "text": "b"}),
        user("say yes"),
    )
    assert response.status_code == 200, response.text
    assert received(stack) == expected

    chat = [
        user("q"),
        {
            "role": "assistant",
            "content": "a",
            "reasoning_content": "Hm.",
            "reasoning": "Hm.",
            "tool_calls": [CALL],
        },
        {"role": "tool", "tool_call_id": "c", "content": "b", "name": "f"},
        user([{"type": "text", "text": "say yes", "cache_control": {"type": "ephemeral"}}]),
    ]
    assert stack.chat(messages=chat).status_code == 200
    assert received(stack) == expected


def test_anthropics_roles_and_blocks_keep_their_order(stack: Stack) -> None:
    document = {
        "type": "document",
        "title": "t",
        "source": {"type": "text", "media_type": "text/plain", "data": "d"},
    }
    found = {"type": "search_result", "source": "s", "title": "f", "content": [{"type": "text", "text": "x"}]}
    response = messages(
        stack,
        {"role": "system", "content": [{"type": "text", "text": "b"}]},
        user([document, found]),
        assistant(THINKING),
        assistant(TOOL_USE, {"type": "text", "text": "c"}, TOOL_USE),
        user(
            [
                {"type": "text", "text": "d"},
                tool_result(document, is_error=True),
                {"type": "text", "text": "e"},
            ]
        ),
        {"role": "system", "content": "f"},
        user("say yes"),
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
    )
    assert response.status_code == 200, response.text
    assert received(stack) == [
        ("s", "a\nb"),
        ("u", "t\nd", "f\ns\nx"),
        ("a", f"{CALLED}\nc\n{CALLED}"),
        ("u", "d", result("error: t\nd"), "e\nf\nsay yes"),
    ]


def test_instructions_precede_the_system_messages_of_the_input(stack: Stack) -> None:
    developer = {"role": "developer", "content": [{"type": "input_text", "text": "b"}]}
    response = responses(stack, developer, user("c"), developer, user("say yes"), instructions="a")
    assert response.status_code == 200
    assert received(stack) == [("s", "a\nb"), ("u", "c\nb\nsay yes")]


def test_a_trailing_assistant_message_is_followed_by_an_empty_user_turn_unless_it_is_continued(
    stack: Stack,
) -> None:
    final = {"role": "assistant", "content": "say more"}
    assert stack.chat(messages=[user("Hi"), final]).status_code == 200
    assert received(stack) == [("u", "Hi"), ("a", "say more"), ("u", "")]
    assert responses(stack, user("Hi"), final).status_code == 200
    assert received(stack) == [("u", "Hi"), ("a", "say more"), ("u", "")]
    assert messages(stack, user("Hi"), assistant(TOOL_USE)).status_code == 200
    assert received(stack) == [("u", "Hi"), ("a", CALLED), ("u", "")]
    for response in (
        stack.chat(messages=[user("Hi"), {**final, "prefix": True}]),
        stack.chat(messages=[user("Hi"), final], continue_final_message=True),
        messages(stack, user("Hi"), final),
    ):
        assert response.status_code == 200
        assert stack.worker.assignments[-1].job.form == "continued"
        assert received(stack) == [("u", "Hi"), ("a", "say more")]


IMAGE_BLOCK = {"type": "image", "base64": base64.b64encode(WIDE).decode(), "mime_type": "image/png"}
TOOL_CALLS: list[Any] = [{"name": "f", "args": {}, "id": "c", "type": "tool_call"}]
# The orders of messages in langchain-tests 1.1.9 (ChatModelIntegrationTests).
LANGCHAIN: dict[str, list[BaseMessage]] = {
    "double messages": [
        SystemMessage("hello"),
        SystemMessage("hello"),
        HumanMessage("hello"),
        HumanMessage("hello"),
        AIMessage("hello"),
        AIMessage("hello"),
        HumanMessage("say yes"),
    ],
    "string content": [
        HumanMessage("1 + 2?"),
        AIMessage("", tool_calls=TOOL_CALLS),
        ToolMessage("3", tool_call_id="c"),
    ],
    "list content": [
        HumanMessage("1 + 2?"),
        AIMessage([{"type": "text", "text": "Hm"}, TOOL_USE], tool_calls=TOOL_CALLS),
        ToolMessage("3", tool_call_id="c", name="f"),
    ],
    "error status": [
        HumanMessage("1 + 2?"),
        AIMessage("", tool_calls=TOOL_CALLS),
        ToolMessage("Error: b is missing.", tool_call_id="c", status="error"),
    ],
    "image tool message": [
        HumanMessage("get a diagram"),
        AIMessage([], tool_calls=TOOL_CALLS),
        ToolMessage([part(WIDE)], tool_call_id="c", name="f"),
    ],
    "standard image tool message": [
        HumanMessage("get a diagram"),
        AIMessage([], tool_calls=TOOL_CALLS),
        ToolMessage([IMAGE_BLOCK], tool_call_id="c", name="f"),
    ],
    "thinking blocks": [
        HumanMessage([{"type": "text", "text": "Hello"}]),
        AIMessage([THINKING, {"type": "text", "text": "Hello, how are you?"}]),
        HumanMessage([{"type": "text", "text": "say yes"}]),
    ],
    "name": [HumanMessage("say yes", name="example_user")],
}


@pytest.mark.parametrize("name", LANGCHAIN)
@pytest.mark.parametrize("use_responses_api", [False, True])
def test_langchains_clients_can_send_the_orders_of_its_standard_tests(
    stack: Stack, name: str, use_responses_api: bool
) -> None:
    url: Any = f"{stack.server.url}/v1"
    model = ChatOpenAI(
        model=MODEL, base_url=url, api_key="none", use_responses_api=use_responses_api, max_retries=0
    )
    assert isinstance(model.invoke(LANGCHAIN[name]), AIMessage)
    job = stack.worker.assignments[-1].job
    assert "".join(message.role[0] for message in job.messages).removeprefix("s") in ("u", "uau")
    assert len(job.images) == ("image" in name)
