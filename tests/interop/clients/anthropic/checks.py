"""The official Anthropic client: streaming helpers, the tool runner, parsed output and images from tools."""

from __future__ import annotations

from typing import Any, Literal

from anthropic import Anthropic, beta_tool
from pydantic import BaseModel
from scene import BASE64, COLOR, IMAGE_TOKENS, MODEL, NO_IMAGE, QUESTION, Sentence

GREEDY = {"temperature": 0}  # the client has no parameter for it
client = Anthropic(max_retries=0)
IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}
USER: Any = {"role": "user", "content": [IMAGE, {"type": "text", "text": QUESTION}]}


class Heart(BaseModel, extra="forbid"):
    sentence: Sentence


@beta_tool
def _look(shape: Literal["circle", "star"]) -> str:
    """Return the color of a shape.

    Args:
        shape: The name of the shape.
    """
    return "ok"


@beta_tool
def _screenshot() -> Any:
    """Take a screenshot."""
    return [IMAGE]


def _prompt_tokens(message: Any) -> int:
    """Return the number of tokens of the prompt. ``input_tokens`` does not include those from the cache."""
    usage = message.usage
    return int(usage.input_tokens + (usage.cache_read_input_tokens or 0))


def streaming() -> None:
    with client.messages.stream(model=MODEL, max_tokens=40, messages=[USER], extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        assert COLOR in text
        assert [block.text for block in stream.get_final_message().content if block.type == "text"] == [text]


def image_input() -> None:
    message = client.messages.create(model=MODEL, max_tokens=40, messages=[USER], extra_body=GREEDY)
    [block] = message.content
    assert block.type == "text" and COLOR in block.text


def tool_loop() -> None:
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=100,
        messages=[USER],
        tools=[_look],
        tool_choice={"type": "any"},
        max_iterations=3,
    )
    turns = [message.stop_reason for message in runner]
    assert turns == ["tool_use"] * 3, turns
    with_text = [
        USER,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "_look", "input": {"shape": "x"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}]},
    ]
    last = client.messages.create(
        model=MODEL, max_tokens=40, messages=with_text, tools=[_look.to_dict()], tool_choice={"type": "none"}
    )
    assert last.content[0].type == "text"


def streamed_tool_loop() -> None:
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=100,
        messages=[USER],
        tools=[_look],
        tool_choice={"type": "any"},
        max_iterations=2,
        stream=True,
    )
    for stream in runner:
        for event in stream:
            assert event.type
        assert stream.get_final_message().stop_reason == "tool_use"


def typed_output() -> None:
    message = client.messages.parse(model=MODEL, max_tokens=60, messages=[USER], output_format=Heart)
    assert isinstance(message.parsed_output, Heart)


def typed_output_with_tools() -> None:
    message = client.messages.parse(
        model=MODEL,
        max_tokens=100,
        messages=[USER],
        output_format=Heart,
        tools=[_look.to_dict()],
        tool_choice={"type": "none"},
    )
    assert isinstance(message.parsed_output, Heart)


def image_from_tool() -> None:
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=100,
        messages=[{"role": "user", "content": QUESTION}],
        tools=[_screenshot],
        tool_choice={"type": "any"},
        max_iterations=2,
        extra_body=GREEDY,
    )
    first, second = runner
    assert _prompt_tokens(second) > _prompt_tokens(first) + IMAGE_TOKENS, (first.usage, second.usage)
    history: Any = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "see", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [IMAGE]}]},
    ]
    message = client.messages.create(model=MODEL, max_tokens=40, messages=history, extra_body=GREEDY)
    assert message.content[0].type == "text" and message.content[0].text != NO_IMAGE


def reasoning_history() -> None:
    thinking = {"type": "thinking", "thinking": "A circle.", "signature": "abc"}
    redacted = {"type": "redacted_thinking", "data": "abc"}
    history: Any = [
        USER,
        {"role": "assistant", "content": [thinking, redacted, {"type": "text", "text": "It is green."}]},
        {"role": "user", "content": "Are you sure?"},
    ]
    assert client.messages.create(model=MODEL, max_tokens=20, messages=history).content


def coding_agent_request() -> None:
    """Coding agents send cache control, system blocks, metadata, effort and thinking."""
    cached: Any = {"cache_control": {"type": "ephemeral"}}
    tool: Any = {
        "name": "Read",
        "description": "Reads a file. " * 20,
        "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    }
    message = client.beta.messages.create(
        model=MODEL,
        max_tokens=30,
        betas=["claude-code-20250219", "interleaved-thinking-2025-05-14"],
        system=[{"type": "text", "text": "You are a coding agent.", **cached}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "<system-reminder>x</system-reminder>"}]},
            {"role": "user", "content": [{"type": "text", "text": "Hi", **cached}]},
        ],
        tools=[tool],
        metadata={"user_id": "u"},
        output_config={"effort": "medium"},
        thinking={"type": "adaptive"},
    )
    assert message.content


def models() -> None:
    listed = client.models.list(limit=20)
    assert [model.id for model in listed] == [MODEL] and listed.data[0].type == "model"
    assert client.models.retrieve(MODEL).id == MODEL
