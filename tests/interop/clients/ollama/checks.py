"""The official Ollama client."""

from __future__ import annotations

from ollama import AsyncClient, Client
from pydantic import BaseModel
from scene import BASE64, COLOR, IMAGE, MODEL, NO_IMAGE, QUESTION, Sentence

client = Client()
OPTIONS = {"temperature": 0, "num_predict": 60}


class Heart(BaseModel, extra="forbid"):
    sentence: Sentence


def _look(closely: bool) -> str:
    """Return the color of the shape.

    Args:
        closely: Whether to look closely.
    """
    return "red"


def image_input() -> None:
    message = {"role": "user", "content": QUESTION, "images": [str(IMAGE)]}
    response = client.chat(MODEL, [message], options=OPTIONS)
    assert COLOR in (response.message.content or "") and response.done_reason == "stop"
    generated = client.generate(MODEL, QUESTION, images=[BASE64], options=OPTIONS)
    assert COLOR in generated.response and generated.eval_count


def streaming() -> None:
    message = {"role": "user", "content": QUESTION, "images": [IMAGE.read_bytes()]}
    parts = list(client.chat(MODEL, [message], stream=True, options=OPTIONS))
    assert len(parts) > 2 and COLOR in "".join(part.message.content or "" for part in parts)
    assert parts[-1].done and parts[-1].prompt_eval_count


async def async_streaming() -> None:
    text = ""
    async for part in await AsyncClient().generate(
        MODEL, QUESTION, images=[BASE64], stream=True, options=OPTIONS
    ):
        text += part.response
    assert COLOR in text


def tool_loop() -> None:
    call = {"function": {"name": "_look", "arguments": {"closely": True}}}
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "_look", "content": "red"},
    ]
    first = client.chat(MODEL, messages[:1], tools=[_look], options=OPTIONS)
    assert first.message.content or first.message.tool_calls
    last = client.chat(MODEL, messages, tools=[_look], options=OPTIONS)
    assert last.message.content or last.message.tool_calls


def typed_output() -> None:
    message = {"role": "user", "content": QUESTION, "images": [BASE64]}
    response = client.chat(MODEL, [message], format=Heart.model_json_schema(), options=OPTIONS)
    Heart.model_validate_json(response.message.content or "")
    assert client.chat(MODEL, [message], format="json", options=OPTIONS).message.content


def typed_output_with_tools() -> None:
    message = {"role": "user", "content": QUESTION, "images": [BASE64]}
    response = client.chat(MODEL, [message], format=Heart.model_json_schema(), tools=[_look], options=OPTIONS)
    assert response.message.tool_calls or Heart.model_validate_json(response.message.content or "")


def image_from_tool() -> None:
    call = {"function": {"name": "_look", "arguments": {"closely": True}}}
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "_look", "content": "", "images": [BASE64]},
    ]
    response = client.chat(MODEL, messages, options=OPTIONS)
    assert NO_IMAGE not in (response.message.content or NO_IMAGE)


def embeddings() -> None:
    vectors = client.embed(MODEL, ["a red circle", "two stars"]).embeddings
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 10


def models() -> None:
    assert [model.model for model in client.list().models] == [f"{MODEL}:latest"]
    assert "vision" in (client.show(MODEL).capabilities or [])
    assert client.ps().models
