"""The unmodified openai package works with this server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import openai
import pytest

from tests.server.conftest import Stack
from tests.server.image_files import data_url, encoded, scene
from tests.server.scripted_worker import MODEL


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def say(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_completion(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=say("say one two"))
    assert completion.choices[0].message.content == "one two"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 3


def test_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=say("say one two"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_stream_helper_ends_with_a_final_completion(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=say("say one two")) as stream:
        assert "content.done" in {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == "one two"


def test_two_images(client: openai.OpenAI) -> None:
    urls = [data_url(encoded(scene(20, 10))), data_url(encoded(scene(10, 20)))]
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": urls[0], "detail": "high"}},
                    {"type": "image_url", "image_url": {"url": urls[1]}},
                    {"type": "text", "text": "differ?"},
                ],
            }
        ],
    )
    assert completion.choices[0].message.content == "user:[20x10][10x20]differ?"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "llava-serve"
    with pytest.raises(openai.NotFoundError, match="Available models: scripted"):
        client.models.retrieve("other")


def test_async_completion_and_stream(stack: Stack) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(
            base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0
        ) as client:
            completion = await client.chat.completions.create(model=MODEL, messages=say("say one"))
            stream = await client.chat.completions.create(model=MODEL, messages=say("count 3"), stream=True)
            return completion.choices[0].message.content, "".join(
                [chunk.choices[0].delta.content or "" async for chunk in stream]
            )

    assert asyncio.run(ask()) == ("one", "1 2 3")


ERRORS = {
    "refuse context_length_exceeded": (openai.BadRequestError, "context_length_exceeded"),
    "refuse internal_error": (openai.InternalServerError, "internal_error"),
    "refuse deadline_exceeded": (openai.InternalServerError, "deadline_exceeded"),
}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("text", ERRORS)
def test_failures_raise_the_clients_exception_classes(
    client: openai.OpenAI, text: str, is_stream: bool
) -> None:
    expected, code = ERRORS[text]
    with pytest.raises(expected) as caught:
        client.chat.completions.create(model=MODEL, messages=say(text), stream=is_stream)
    assert caught.value.code == code
    assert isinstance(caught.value.body, dict)
    assert caught.value.request_id == caught.value.body["request_id"]


def test_an_unknown_model_and_an_invalid_field_raise_the_clients_exception_classes(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gpt-4o", messages=say("hi"))
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=say("hi"), max_tokens=0)
    assert bad.value.param == "max_tokens"


def test_a_failure_during_a_stream_raises_an_exception_and_ends_the_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=say("break internal_error"), stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="scripted failure"):
        texts += [chunk.choices[0].delta.content for chunk in stream]


def test_an_invalid_key_is_an_authentication_error(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(api_keys=("correct-key-1",))
    for key, works in (("wrong-key-1", False), ("correct-key-1", True)):
        with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key=key, max_retries=0) as client:
            if works:
                assert client.models.list().data[0].id == MODEL
            else:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
