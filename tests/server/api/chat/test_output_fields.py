"""Token IDs, prompt log probabilities and other names of sampling parameters, as clients of vLLM use them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from llava_wire.messages.job import ImageRef

from tests.server.api.completions.test_completions import complete
from tests.server.api.sse_lines import chunks_of, events_of
from tests.server.conftest import Stack
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL

PROMPT_IDS = [0, *map(ord, "say a b")]  # of the scripted worker


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def extra(model: Any) -> dict[str, Any]:
    """Return the fields that OpenAI's types do not define."""
    fields: dict[str, Any] = model.model_extra or {}
    return fields


def chat(client: openai.OpenAI, text: str = "say a b", **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def test_a_chat_completion_has_the_ids_of_its_tokens(client: openai.OpenAI) -> None:
    completion = chat(client, n=2, extra_body={"return_token_ids": True})
    assert extra(completion)["prompt_token_ids"] == PROMPT_IDS
    # The scripted worker numbers the tokens of each event from 0. The last token ends the output.
    assert [extra(choice)["token_ids"] for choice in completion.choices] == [[0, 0, 0]] * 2
    plain = chat(client)
    assert "prompt_token_ids" not in extra(plain) and "token_ids" not in extra(plain.choices[0])


@pytest.mark.parametrize("options", [{}, {"logprobs": True}], ids=["plain", "logprobs"])
def test_a_chat_stream_has_every_token_id_once(client: openai.OpenAI, options: dict[str, Any]) -> None:
    chunks = list(chat(client, stream=True, extra_body={"return_token_ids": True}, **options))
    assert [extra(chunk)["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in extra(chunk)] == [
        PROMPT_IDS
    ]
    ids = [extra(choice).get("token_ids", []) for chunk in chunks for choice in chunk.choices]
    assert sum(ids, []) == [0, 0, 0]
    assert ids[-1] == []  # the chunk with the finish reason
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "a b"


def test_a_resumed_stream_continues_after_the_token_ids_that_were_sent(stack: Stack) -> None:
    """Another controller has only the stored job and its events."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "say a b c"}],
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": True,
    }
    response = stack.http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "k"})
    whole = events_of(response)
    job_id = whole[0][1]["id"]
    contents = [
        (name, data)
        for name, data in whole
        if data != "[DONE]" and data["choices"] and data["choices"][0]["delta"].get("role") is None
    ]
    for start in (1, 2, 4):
        resumed = events_of(
            stack.http.get(f"/v1/chat/completions/{job_id}?stream=true&starting_after={start}")
        )
        ids = [data["choices"][0]["token_ids"] for _, data in resumed if data != "[DONE]"]
        assert len(sum(ids, [])) == 4 - start
        expected = [data["choices"] for _, data in contents][-len(ids) :]
        assert [data["choices"] for _, data in resumed if data != "[DONE]"] == expected


def test_token_ids_of_held_back_text_are_sent_without_text(stack: Stack) -> None:
    """An event without text still has a chunk with its token IDs."""
    response = stack.chat("say a", stream=True, return_token_ids=True)
    deltas = [chunk["choices"][0] for chunk in chunks_of(response)]
    assert [(each["delta"].get("content"), each.get("token_ids")) for each in deltas] == [
        ("", None),
        ("a", [0]),
        ("", [0]),  # the end-of-sequence token
        (None, []),
    ]


def test_log_probabilities_name_all_tokens_by_id(client: openai.OpenAI) -> None:
    completion = chat(client, logprobs=True, top_logprobs=2, extra_body={"return_tokens_as_token_ids": True})
    content = completion.choices[0].logprobs.content
    assert [token.token for token in content] == ["token_id:0"] * 3  # including the last token
    assert [token.bytes for token in content] == [[97], [32, 98], []]
    assert [each.token for each in content[0].top_logprobs] == ["token_id:0", "token_id:1"]
    named = chat(client, logprobs=True).choices[0].logprobs.content
    assert [token.token for token in named] == ["a", " b"]


def test_prompt_log_probabilities_have_vllms_format(client: openai.OpenAI) -> None:
    logprobs = extra(chat(client, extra_body={"prompt_logprobs": 2}))["prompt_logprobs"]
    assert len(logprobs) == len(PROMPT_IDS)
    assert logprobs[0] is None
    assert logprobs[2] == {
        "97": {"logprob": -0.25, "rank": 2, "decoded_token": "a"},
        "98": {"logprob": -1.25, "rank": 2, "decoded_token": "a"},
    }
    only_own = extra(chat(client, extra_body={"prompt_logprobs": 0}))["prompt_logprobs"]
    assert [list(each) for each in only_own[1:]] == [[str(token_id)] for token_id in PROMPT_IDS[1:]]
    assert "prompt_logprobs" not in extra(chat(client))


def test_only_the_first_choice_of_a_chat_computes_prompt_log_probabilities(stack: Stack) -> None:
    body = stack.chat("say a", n=3, prompt_logprobs=1, return_token_ids=True).json()
    assert len(body["prompt_logprobs"]) == len(body["prompt_token_ids"]) == len("^say a")
    assert [choice["token_ids"] for choice in body["choices"]] == [[0, 0]] * 3
    jobs = [assignment.job for assignment in stack.worker.assignments]
    assert sorted(job.has_prompt_event for job in jobs) == [False, False, True]


def test_a_text_completion_has_token_ids_and_prompt_log_probabilities(client: openai.OpenAI) -> None:
    fields = {"return_token_ids": True, "prompt_logprobs": 1}
    completion = client.completions.create(model=MODEL, prompt=[[7], [72, 73]], extra_body=fields)
    first, second = (extra(choice) for choice in completion.choices)
    assert (first["prompt_token_ids"], first["prompt_logprobs"]) == ([7], [None])
    assert (second["prompt_token_ids"], second["token_ids"]) == ([72, 73], [0, 0, 0])
    assert second["prompt_logprobs"] == [
        None,
        {"73": {"logprob": -0.125, "rank": 1, "decoded_token": "I"}},
    ]
    assert completion.choices[0].text == "7"  # the prompt is not echoed


def test_echo_and_prompt_logprobs_have_their_own_numbers_of_alternatives(stack: Stack) -> None:
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 3, "return_tokens_as_token_ids": True}
    response = complete(stack, "say a", **fields).json()["choices"][0]
    assert response["text"] == "say aa"
    assert [len(each or {}) for each in response["prompt_logprobs"]] == [0, 3, 3, 3, 3, 3]
    assert {len(each or {}) for each in response["logprobs"]["top_logprobs"]} == {0, 1}


def test_a_text_completion_stream_has_every_token_id_once(stack: Stack) -> None:
    for echo in (False, True):
        response = complete(stack, "say a b", stream=True, return_token_ids=True, echo=echo)
        choices = [chunk["choices"][0] for chunk in chunks_of(response)]
        assert sum((choice.get("token_ids", []) for choice in choices), []) == [0, 0, 0]
        assert [choice["prompt_token_ids"] for choice in choices if "prompt_token_ids" in choice] == [
            PROMPT_IDS
        ]


def test_completion_logprobs_name_all_tokens_by_id(stack: Stack) -> None:
    fields = {"logprobs": 1, "return_tokens_as_token_ids": True}
    logprobs = complete(stack, "say a b", **fields).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:0"] * 3
    assert logprobs["top_logprobs"] == [{"token_id:0": -0.5}] * 3
    assert logprobs["text_offset"] == [0, 1, 3]


def test_a_cache_salt_separates_the_digests_of_images(stack: Stack) -> None:
    def digest(**fields: Any) -> str:
        assert stack.chat([part(encoded(scene())), {"type": "text", "text": "say a"}], **fields).is_success
        (image,) = stack.worker.assignments[-1].job.images
        assert isinstance(image, ImageRef)
        return image.digest

    assert len({digest(), digest(cache_salt="a"), digest(cache_salt="b"), digest(cache_scope="public")}) == 4
    assert digest(cache_salt="a") == digest(cache_salt="a")


def test_only_jobs_that_older_workers_would_run_incorrectly_require_a_newer_worker(stack: Stack) -> None:
    def version(**fields: Any) -> int:
        assert stack.chat("say a", **fields).is_success
        return stack.worker.assignments[-1].job.version

    plain: tuple[dict[str, Any], ...] = (
        {},
        {"logprobs": True},
        {"repeat_penalty": 1.1},
        {"n_predict": 5},
        {"skip_special_tokens": True},
    )
    assert {version(**fields) for fields in plain} == {1}
    new: list[dict[str, Any]] = [
        {"allowed_token_ids": [5]},
        {"bad_words": ["a"]},
        {"typical_p": 0.5},
        {"include_stop_str_in_output": True},
        {"skip_special_tokens": False},
        {"prompt_logprobs": 0},
        {"return_token_ids": True},
        {"truncate_prompt_tokens": 4},
        {"cache_salt": "a"},
    ]
    assert {version(**fields) for fields in new} == {3}


@pytest.mark.parametrize(("n_predict", "expected"), [(5, 5), (-1, None)])
def test_n_predict_limits_the_output(stack: Stack, n_predict: int, expected: int | None) -> None:
    stack.chat("say a", n_predict=n_predict)
    assert stack.worker.assignments[-1].job.sampling.max_tokens == expected
    complete(stack, "say a", n_predict=n_predict)
    assert stack.worker.assignments[-1].job.sampling.max_tokens == expected


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"bad_words": ["  "]}, "bad_words"),
    ({"bad_words": ["a"] * 129}, "bad_words"),
    ({"typical_p": 0}, "typical_p"),
    ({"typical_p": 1.5}, "typical_p"),
    ({"n_predict": 0}, "n_predict"),
    ({"n_predict": -2}, "n_predict"),
    ({"n_predict": 5, "max_tokens": 6}, "n_predict"),
    ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repeat_penalty"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"cache_salt": ""}, "cache_salt"),
]


@pytest.mark.parametrize(("fields", "param"), INVALID, ids=str)
def test_an_invalid_value_is_an_error_that_names_the_field(
    stack: Stack, fields: dict[str, Any], param: str
) -> None:
    for response in (stack.chat("say a", **fields), complete(stack, "say a", **fields)):
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param


def test_equal_values_under_both_names_are_accepted(stack: Stack) -> None:
    fields = {"n_predict": 5, "max_tokens": 5, "repeat_penalty": 1.1, "repetition_penalty": 1.1}
    assert stack.chat("say a", **fields).is_success
    assert complete(stack, "say a", **fields).is_success
