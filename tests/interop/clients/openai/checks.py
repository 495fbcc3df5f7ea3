"""The official OpenAI client: streaming helpers, ``.parse()``, a tool loop and images in tool results."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import openai
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel
from scene import COLOR, DATA_URL, MODEL, NO_IMAGE, QUESTION

client = OpenAI(max_retries=0)
PART: Any = {"type": "image_url", "image_url": {"url": DATA_URL}}
INPUT_PART: Any = {"type": "input_image", "image_url": DATA_URL, "detail": "auto"}
USER: Any = {"role": "user", "content": [PART, {"type": "text", "text": QUESTION}]}
USER_INPUT: Any = {"role": "user", "content": [INPUT_PART, {"type": "input_text", "text": QUESTION}]}


class Color(str, Enum):
    red = "red"
    green = "green"
    blue = "blue"


class Heart(BaseModel):
    color: Color


class Look(BaseModel):
    """Look at the shape."""

    shape: Literal["circle", "star"]


def streaming() -> None:
    with client.chat.completions.stream(model=MODEL, messages=[USER], temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert COLOR in text and stream.get_final_completion().choices[0].message.content == text
    with client.responses.stream(model=MODEL, input=[USER_INPUT], temperature=0) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert COLOR in text and events.get_final_response().output_text == text


def image_input() -> None:
    completion = client.chat.completions.create(model=MODEL, messages=[USER], temperature=0)
    assert COLOR in (completion.choices[0].message.content or "")
    response = client.responses.create(model=MODEL, input=[USER_INPUT], temperature=0)
    assert COLOR in response.output_text


def tool_loop() -> None:
    tools = [pydantic_function_tool(Look)]
    messages = [USER]
    first = client.chat.completions.parse(
        model=MODEL, messages=messages, tools=tools, tool_choice="required", max_tokens=100
    )
    message = first.choices[0].message
    assert message.tool_calls
    for call in message.tool_calls:
        assert isinstance(call.function.parsed_arguments, Look)
    messages.append(message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in message.tool_calls]
    last = client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, tool_choice="none", max_tokens=40
    )
    assert last.choices[0].message.content


def responses_tool_loop() -> None:
    tools: Any = [openai.pydantic_function_tool(Look)["function"] | {"type": "function"}]
    first = client.responses.create(
        model=MODEL, input=[USER_INPUT], tools=tools, tool_choice="required", max_output_tokens=100
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "ok"} for call in calls
    ]
    last = client.responses.create(
        model=MODEL, input=[USER_INPUT, *first.output, *results], max_output_tokens=40
    )
    assert last.output_text
    chained = client.responses.create(
        model=MODEL, previous_response_id=first.id, input=results, max_output_tokens=40
    )
    assert chained.output_text


def typed_output() -> None:
    completion = client.chat.completions.parse(model=MODEL, messages=[USER], response_format=Heart)
    assert isinstance(completion.choices[0].message.parsed, Heart)
    response = client.responses.parse(model=MODEL, input=[USER_INPUT], text_format=Heart)
    assert isinstance(response.output_parsed, Heart)


def typed_output_with_tools() -> None:
    completion = client.chat.completions.parse(
        model=MODEL,
        messages=[USER],
        response_format=Heart,
        tools=[pydantic_function_tool(Look)],
        max_tokens=200,
    )
    message = completion.choices[0].message
    assert isinstance(message.parsed, Heart) or message.tool_calls
    response = client.responses.parse(
        model=MODEL,
        input=[USER_INPUT],
        text_format=Heart,
        tools=[pydantic_function_tool(Look)["function"] | {"type": "function"}],
        tool_choice="none",
    )
    assert isinstance(response.output_parsed, Heart)


def image_from_tool() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "Look", "arguments": '{"shape": "circle"}'}}
    history: Any = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [PART]},
    ]
    completion = client.chat.completions.create(model=MODEL, messages=history, temperature=0)
    assert NO_IMAGE not in (completion.choices[0].message.content or NO_IMAGE)
    output: Any = [
        {"role": "user", "content": QUESTION},
        {"type": "function_call", "call_id": "c1", "name": "Look", "arguments": '{"shape": "circle"}'},
        {"type": "function_call_output", "call_id": "c1", "output": [INPUT_PART]},
    ]
    response = client.responses.create(model=MODEL, input=output, temperature=0)
    assert NO_IMAGE not in (response.output_text or NO_IMAGE)


def messages_in_any_order() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "Look", "arguments": "{}"}}
    call2 = {"id": "c2", "type": "function", "function": {"name": "Look", "arguments": "{}"}}
    assistant, again = ({"role": "assistant", "tool_calls": [each]} for each in (call, call2))
    result = {"role": "tool", "tool_call_id": "c1", "content": "ok"}
    text, system = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
    hello = {"role": "assistant", "content": "Hello."}
    orders: Any = [
        [text, text],
        [text, system],
        [system, system, text],
        [system],
        [hello, text],
        [text, hello],
        [text, assistant, result, hello, again, {**result, "tool_call_id": "c2"}],
        [text, {"role": "developer", "content": "Be brief."}, text],
    ]
    for order in orders:
        client.chat.completions.create(model=MODEL, messages=order, max_tokens=3)


def embeddings() -> None:
    inputs: Any = ["a red circle", "two stars"]
    vectors = client.embeddings.create(model=MODEL, input=inputs).data
    assert len(vectors) == 2 and len(vectors[0].embedding) == len(vectors[1].embedding) > 10
