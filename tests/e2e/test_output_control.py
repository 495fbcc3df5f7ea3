"""vLLM's and llama.cpp's fields control the output of the bundled model, with text and with images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image
from tiny.drawing import draw
from tiny.scenes import sample_scene

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = "tiny-llava"


@pytest.fixture
def client(tiny_server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def messages() -> list[Any]:
    buffer = io.BytesIO()
    drawn: Image.Image = draw(sample_scene("control", 0))
    drawn.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "Describe the image."},
    ]
    return [{"role": "user", "content": parts}]


def ask(client: openai.OpenAI, messages: Any, **fields: Any) -> Any:
    """Return a greedy completion. ``fields`` are extensions."""
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=24, extra_body=fields
    )


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def extra(model: Any, name: str) -> Any:
    return model.model_extra[name]


def test_a_bad_word_is_replaced_by_the_next_best_word(client: openai.OpenAI, messages: list[Any]) -> None:
    words = text_of(ask(client, messages)).split()
    for word in (words[1].strip(".,"), " ".join(words[1:3]).strip(".,")):
        assert word in " ".join(words)
        text = text_of(ask(client, messages, bad_words=[word]))
        assert word not in text.split() and text != " ".join(words)
        assert text == text_of(ask(client, messages, bad_words=[word]))


def test_only_allowed_tokens_are_sampled(client: openai.OpenAI, messages: list[Any]) -> None:
    ids = extra(ask(client, messages, return_token_ids=True).choices[0], "token_ids")
    allowed = ids[1:4]
    found = extra(
        ask(client, messages, allowed_token_ids=allowed, return_token_ids=True).choices[0], "token_ids"
    )
    assert set(found) <= set(allowed)
    assert len(found) == 24  # the end-of-sequence token is not allowed


def test_the_stop_string_is_included_in_streams_and_responses(
    client: openai.OpenAI, messages: list[Any]
) -> None:
    whole = text_of(ask(client, messages))
    stop = whole.split()[2]
    before = whole[: whole.index(stop)]
    assert text_of(ask(client, messages, stop=[stop])) == before
    fields: dict[str, Any] = {"stop": [stop], "include_stop_str_in_output": True}
    assert text_of(ask(client, messages, **fields)) == before + stop
    stream: Any = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=24, stream=True, extra_body=fields
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == before + stop


def test_special_tokens_are_in_the_text_on_request(client: openai.OpenAI, messages: list[Any]) -> None:
    plain = ask(client, messages)
    assert plain.choices[0].finish_reason == "stop"
    fields: dict[str, Any] = {"skip_special_tokens": False}
    assert text_of(ask(client, messages, **fields)) == text_of(plain)
    fields |= {"include_stop_str_in_output": True}
    assert text_of(ask(client, messages, **fields)) == f"{text_of(plain)}</s>"


def test_image_tokens_of_the_prompt_have_ids_but_no_log_probabilities(
    client: openai.OpenAI, messages: list[Any]
) -> None:
    completion = ask(client, messages, prompt_logprobs=2, return_token_ids=True)
    ids, logprobs = extra(completion, "prompt_token_ids"), extra(completion, "prompt_logprobs")
    assert len(ids) == len(logprobs) == completion.usage.prompt_tokens
    image_id = max(set(ids), key=ids.count)
    assert [position for position, each in enumerate(logprobs) if each is None] == [
        position for position, token_id in enumerate(ids) if position == 0 or token_id == image_id
    ]
    for token_id, entries in zip(ids, logprobs, strict=True):
        if entries is not None:
            assert 2 <= len(entries) <= 3
            assert math.exp(entries[str(token_id)]["logprob"]) <= 1
            assert (entries[str(token_id)]["rank"] <= 2) == (len(entries) == 2)
    assert text_of(completion) == text_of(ask(client, messages))


def test_token_ids_reproduce_the_output_as_a_text_completion(client: openai.OpenAI) -> None:
    chat = ask(client, [{"role": "user", "content": "Hello!"}], return_token_ids=True)
    completion: Any = client.completions.create(
        model=MODEL,
        prompt=extra(chat, "prompt_token_ids"),
        temperature=0,
        max_tokens=24,
        extra_body={"return_token_ids": True},
    )
    assert extra(completion.choices[0], "token_ids") == extra(chat.choices[0], "token_ids")


def test_a_truncated_prompt_equals_the_same_prompt_sent_as_token_ids(client: openai.OpenAI) -> None:
    text = "one two three four five six seven eight nine ten"
    fields: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    options = {"truncate_prompt_tokens": 6, "return_token_ids": True}
    truncated: Any = client.completions.create(prompt=text, extra_body=options, **fields)
    ids = extra(truncated.choices[0], "prompt_token_ids")
    assert len(ids) == truncated.usage.prompt_tokens == 6
    assert client.completions.create(prompt=ids, **fields).choices[0].text == truncated.choices[0].text


def test_an_image_is_not_truncated_in_part(client: openai.OpenAI, messages: list[Any]) -> None:
    long = [*messages, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, long)
    assert caught.value.code == "context_length_exceeded"
    completion = ask(client, long, truncate_prompt_tokens=-1, return_token_ids=True)
    assert completion.usage.total_tokens <= 1 + completion.usage.prompt_tokens + 24
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages, truncate_prompt_tokens=40)
    assert caught.value.param == "truncate_prompt_tokens"


def test_nothing_is_reused_from_the_cache_under_another_salt(
    client: openai.OpenAI, messages: list[Any]
) -> None:
    def num_cached(**fields: Any) -> int:
        completion = ask(client, messages, **fields)
        return int(completion.usage.prompt_tokens_details.cached_tokens)

    num_cached(cache_salt="a")
    repeated = num_cached(cache_salt="a")
    assert repeated > 0
    assert num_cached(cache_salt="b") == 0
    assert num_cached(cache_salt="b") == repeated


def test_embeddings_are_truncated_and_unnormalized_on_request(client: openai.OpenAI) -> None:
    def vector(text: str | list[int], **fields: Any) -> list[float]:
        return client.embeddings.create(model=MODEL, input=text, extra_body=fields).data[0].embedding

    unit, raw = vector("a red square"), vector("a red square", normalize=False)
    length = math.hypot(*raw)
    assert math.hypot(*unit) == pytest.approx(1, abs=1e-4)
    assert abs(length - 1) > 0.01
    assert [value / length for value in raw] == pytest.approx(unit, abs=1e-4)
    options = {"truncate_prompt_tokens": 2, "return_token_ids": True}
    completion: Any = client.completions.create(model=MODEL, prompt="a red square", extra_body=options)
    ids = extra(completion.choices[0], "prompt_token_ids")
    assert vector("a red square", truncate_prompt_tokens=2) == pytest.approx(vector(ids), abs=1e-4)
    assert vector(ids) != pytest.approx(unit, abs=1e-4)


@pytest.mark.parametrize("fields", [{"typical_p": 1e-9}, {"top_k": 1}])
def test_typical_sampling_with_a_tiny_mass_is_deterministic(
    client: openai.OpenAI, messages: list[Any], fields: dict[str, Any]
) -> None:
    texts = {
        text_of(
            client.chat.completions.create(
                model=MODEL, messages=messages, seed=seed, max_tokens=12, extra_body=fields
            )
        )
        for seed in range(4)
    }
    assert len(texts) == 1
