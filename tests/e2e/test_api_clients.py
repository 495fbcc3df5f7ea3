"""Unmodified OpenAI and Anthropic clients work with the bundled model on every route."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import jsonschema
import openai
import pytest
from PIL import Image
from tiny.drawing import draw
from tiny.scenes import sample_scene

from tests.machine_speed import scaled
from tests.server.api.chat.test_conversation import PLACES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = "tiny-llava"
QUESTION = "What color is the circle?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "star"]},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 2},
    },
    "required": ["shape", "words"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def image() -> bytes:
    buffer = io.BytesIO()
    drawn: Image.Image = draw(sample_scene("clients", 0))
    drawn.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def openai_client(tiny_server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(tiny_server: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=tiny_server, api_key="none", max_retries=0) as client:
        yield client


def messages_with(image: bytes) -> list[Any]:
    """Return a user message with the image and a question about it."""
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


def tool(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def test_all_apis_return_the_same_response(
    openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic, image: bytes
) -> None:
    messages = messages_with(image)
    answer = openai_client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    text = answer.choices[0].message.content
    assert text

    url = messages[0]["content"][0]["image_url"]["url"]
    parts: Any = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": QUESTION}]
    response = openai_client.responses.create(
        model=MODEL, input=[{"role": "user", "content": parts}], temperature=0
    )
    assert response.output_text == text

    source: Any = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    blocks: Any = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    with anthropic_client.messages.stream(
        model=MODEL,
        max_tokens=64,
        messages=[{"role": "user", "content": blocks}],
        extra_body={"temperature": 0},
    ) as stream:
        assert "".join(stream.text_stream) == text
    counted = anthropic_client.messages.count_tokens(
        model=MODEL, messages=[{"role": "user", "content": blocks}]
    )
    assert answer.usage is not None
    assert (
        counted.input_tokens
        == answer.usage.prompt_tokens
        == stream.get_final_message().usage.input_tokens
        + (stream.get_final_message().usage.cache_read_input_tokens or 0)
    )


def test_embeddings_of_texts_and_images_are_normalized_and_reproducible(
    openai_client: openai.OpenAI, image: bytes
) -> None:
    part: Any = messages_with(image)[0]["content"][0]
    inputs: Any = ["a red circle", "a red circle", part, "two blue stars", part]
    answer = openai_client.embeddings.create(model=MODEL, input=inputs)
    vectors = [item.embedding for item in answer.data]
    products = [[sum(x * y for x, y in zip(one, other, strict=True)) for other in vectors] for one in vectors]
    assert [products[n][n] for n in range(5)] == pytest.approx([1] * 5, abs=1e-5)
    assert (products[0][1], products[2][4]) == pytest.approx((1, 1), abs=1e-4)
    assert products[0][3] < 0.999
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


@pytest.mark.parametrize("seed", range(3))
def test_forced_tool_calls_are_valid_json_and_match_their_schema(
    openai_client: openai.OpenAI, image: bytes, seed: int
) -> None:
    answer = openai_client.chat.completions.create(
        model=MODEL,
        messages=messages_with(image),
        tools=[tool("look"), tool("point_at")],
        tool_choice="required",
        seed=seed,
        temperature=1.5,
        max_tokens=600,
    )
    choice = answer.choices[0]
    assert choice.finish_reason in ("tool_calls", "length")
    assert choice.message.tool_calls
    for call in choice.message.tool_calls[: None if choice.finish_reason == "tool_calls" else -1]:
        assert call.type == "function" and call.function.name in ("look", "point_at")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_streamed_tool_calls_equal_those_of_the_complete_response(
    openai_client: openai.OpenAI, image: bytes
) -> None:
    fields: Any = {
        "model": MODEL,
        "messages": messages_with(image),
        "tools": [tool("look")],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "temperature": 0,
    }
    [whole] = openai_client.chat.completions.create(**fields).choices[0].message.tool_calls or []
    with openai_client.chat.completions.stream(**fields) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert whole.type == "function" and streamed.type == "function"
    assert streamed.function.arguments == whole.function.arguments
    jsonschema.validate(json.loads(whole.function.arguments), SCHEMA)


def test_with_tool_choice_auto_the_response_is_either_text_or_tool_calls(
    openai_client: openai.OpenAI, image: bytes
) -> None:
    messages = messages_with(image)
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=messages, tools=[tool("look")], temperature=0, max_tokens=200
    )
    message = answer.choices[0].message
    assert bool(message.content) != bool(message.tool_calls)


def test_a_partial_assistant_message_is_continued(openai_client: openai.OpenAI, image: bytes) -> None:
    messages = messages_with(image)
    whole = openai_client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    text = whole.choices[0].message.content
    assert text is not None and len(text) > 2
    unfinished = [*messages, {"role": "assistant", "content": text[:1]}]
    rest = openai_client.chat.completions.create(
        model=MODEL, messages=unfinished, temperature=0, extra_body={"continue_final_message": True}
    )
    assert rest.choices[0].finish_reason == "stop"
    assert rest.choices[0].message.content is not None


def test_detokenize_restores_the_text_and_text_and_token_prompts_are_equivalent(
    openai_client: openai.OpenAI, tiny_server: str
) -> None:
    text = "USER: What can you do? ASSISTANT:"
    tokenized = httpx2.post(
        f"{tiny_server}/tokenize", json={"model": MODEL, "prompt": text}, timeout=scaled(30)
    ).json()
    tokens = tokenized["tokens"]
    assert tokenized["count"] == len(tokens) > 5
    detokenized = httpx2.post(
        f"{tiny_server}/detokenize", json={"model": MODEL, "tokens": tokens}, timeout=scaled(30)
    ).json()
    assert detokenized == {"prompt": text}
    answers = [
        openai_client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=24, logprobs=1)
        for prompt in (text, tokens)
    ]
    assert answers[0].choices[0].text == answers[1].choices[0].text != ""
    logprobs = answers[0].choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and answers[0].usage is not None
    assert "".join(logprobs.tokens) == answers[0].choices[0].text
    assert answers[0].usage.prompt_tokens == len(tokens)


def test_echo_returns_the_prompt_followed_by_the_completion(openai_client: openai.OpenAI) -> None:
    text = "USER: What can you do? ASSISTANT:"
    plain = (
        openai_client.completions.create(model=MODEL, prompt=text, temperature=0, max_tokens=24)
        .choices[0]
        .text
    )
    echoed = openai_client.completions.create(
        model=MODEL, prompt=text, temperature=0, max_tokens=24, echo=True
    )
    assert echoed.choices[0].text == text + plain
    assert plain.startswith(" ")  # the leading space of the continuation is preserved


def test_the_logprobs_of_an_answer_about_an_image_reproduce_it(
    openai_client: openai.OpenAI, image: bytes
) -> None:
    def answer(stop: str | None = None) -> str:
        choice = openai_client.chat.completions.create(
            model=MODEL,
            messages=messages_with(image),
            temperature=0,
            logprobs=True,
            top_logprobs=5,
            stop=stop,
        ).choices[0]
        assert choice.logprobs and choice.logprobs.content
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(token.top_logprobs[0].token == token.token for token in tokens[:-1])
        return "".join(token.token for token in tokens)

    whole = answer()
    assert not whole.startswith(" ")  # the space that the tokenizer adds is in no token
    assert whole.startswith(answer(stop=whole[3:5]))


def test_a_scored_completion_has_the_logprobs_of_its_generation(
    openai_client: openai.OpenAI, tiny_server: str
) -> None:
    """Requests imitate lm-evaluation-harness: token IDs, echo, and one output token that is discarded."""
    body = {"model": MODEL, "prompt": "USER: What can you do? ASSISTANT:"}
    context = httpx2.post(f"{tiny_server}/tokenize", json=body, timeout=scaled(30)).json()["tokens"]
    request: dict[str, Any] = {"model": MODEL, "temperature": 0, "logprobs": 1}
    given = openai_client.completions.create(prompt=context, max_tokens=4, **request).choices[0].logprobs
    echoed = httpx2.post(
        f"{tiny_server}/v1/completions",
        json={**request, "prompt": context, "max_tokens": 4, "echo": True},
        timeout=scaled(30),
    ).json()["choices"][0]["text"]
    whole = httpx2.post(
        f"{tiny_server}/tokenize", json={"model": MODEL, "prompt": echoed}, timeout=scaled(30)
    ).json()["tokens"]
    assert whole[: len(context)] == context and len(whole) == len(context) + 4

    completion = openai_client.completions.create(prompt=[whole, context], max_tokens=1, echo=True, **request)
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.top_logprobs is not None
    assert given is not None and given.token_logprobs is not None
    scored = logprobs.token_logprobs[len(context) : -1]
    assert scored == pytest.approx(given.token_logprobs, abs=1e-3)
    most_likely = [max(top.values()) for top in logprobs.top_logprobs[len(context) : -1]]
    assert scored == most_likely  # true because the completion was generated greedily
    assert completion.choices[1].logprobs is not None
    assert logprobs.tokens is not None
    assert completion.choices[1].logprobs.tokens == logprobs.tokens[: len(context) + 1]


def test_a_tokenized_chat_has_the_length_that_its_response_reports(
    openai_client: openai.OpenAI, tiny_server: str, image: bytes
) -> None:
    messages = messages_with(image)
    counted = httpx2.post(
        f"{tiny_server}/tokenize", json={"model": MODEL, "messages": messages}, timeout=scaled(30)
    ).json()
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=4
    )
    assert answer.usage is not None
    assert counted["count"] == answer.usage.prompt_tokens > 100


def test_a_token_outside_the_vocabulary_is_rejected_with_400(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        openai_client.completions.create(model=MODEL, prompt=[2**31 - 1])


def test_a_strict_tool_with_an_unsupported_schema_is_rejected_with_its_field(
    openai_client: openai.OpenAI,
) -> None:
    odd: Any = {
        "name": "f",
        "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"uniqueItems": True}}},
    }
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            tools=[{"type": "function", "function": odd}],
        )
    assert caught.value.param == "tools[0].function.parameters"


def test_the_model_sees_images_in_tool_results_of_every_api(
    openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic, image: bytes
) -> None:
    data = base64.b64encode(image).decode()
    url = f"data:image/png;base64,{data}"
    call: Any = {"id": "c", "type": "function", "function": {"name": "screenshot", "arguments": "{}"}}
    chat: list[Any] = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "image_url", "image_url": {"url": url}}]},
        {"role": "user", "content": QUESTION},
    ]
    items: list[Any] = [
        {"type": "function_call", "call_id": "c", "name": "screenshot", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_image", "image_url": url}],
        },
        {"role": "user", "content": QUESTION},
    ]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    result = {
        "type": "tool_result",
        "tool_use_id": "c",
        "content": [{"type": "image", "source": source}],
    }
    turns: list[Any] = [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "c", "name": "screenshot", "input": {}}],
        },
        {"role": "user", "content": [result, {"type": "text", "text": QUESTION}]},
    ]
    completion = openai_client.chat.completions.create(
        model=MODEL, messages=chat, temperature=0, max_tokens=20
    )
    response = openai_client.responses.create(model=MODEL, input=items, temperature=0, max_output_tokens=20)
    message = anthropic_client.messages.create(
        model=MODEL, messages=turns, max_tokens=20, extra_body={"temperature": 0}
    )
    [block] = message.content
    assert block.type == "text"
    assert completion.choices[0].message.content == response.output_text == block.text
    [circle] = sample_scene("clients", 0).objects
    assert circle.colour in block.text.lower()


def test_every_order_of_messages_gets_a_response(openai_client: openai.OpenAI, image: bytes) -> None:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    for name, (dicts, _) in PLACES.items():
        messages = json.loads(json.dumps(dicts).replace('"data:"', json.dumps(url)))
        completion = openai_client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
        assert completion.usage is not None and completion.usage.completion_tokens > 0, name
