"""Text completions: prompts without a chat template, multiple prompts, log probabilities and streaming."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.server.api.sse_lines import chunks_of
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL


def complete(stack: Stack, prompt: Any = "say one two", **fields: Any) -> httpx2.Response:
    return stack.http.post("/v1/completions", json={"model": MODEL, "prompt": prompt, **fields})


def texts(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def test_a_text_completion_has_openais_format_and_uses_no_template(stack: Stack) -> None:
    completion = complete(stack).json()
    job = stack.worker.assignments[-1].job
    assert (job.form, job.messages[0].parts, job.sampling.max_tokens) == ("raw", ("say one two",), 16)
    assert completion.pop("created") > 1_700_000_000
    assert completion.pop("system_fingerprint").startswith("fp_")
    usage = completion.pop("usage")
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (11, 3, 14)
    choice = {"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}
    assert completion == {"id": job.job_id, "object": "text_completion", "model": MODEL, "choices": [choice]}
    assert job.job_id.startswith("cmpl-")


PROMPTS: list[tuple[Any, list[str]]] = [
    (["say a"], ["a"]),
    (["say a", "say b", "count 2"], ["a", "b", "1 2"]),
    ([7, 8], ["7 8"]),
    ([[7], [8, 9]], ["7", "8 9"]),
]


@pytest.mark.parametrize(("prompt", "expected"), PROMPTS, ids=str)
def test_choices_are_in_prompt_order(stack: Stack, prompt: Any, expected: list[str]) -> None:
    assert texts(complete(stack, prompt)) == expected
    assert complete(stack, prompt).json()["usage"]["prompt_tokens"] == 11 * len(expected)


def test_each_prompt_has_n_choices_and_counts_once(stack: Stack) -> None:
    response = complete(stack, ["say a", "say b"], n=2)
    assert texts(response) == ["a", "a", "b", "b"]
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2, 3]
    assert response.json()["usage"]["prompt_tokens"] == 22
    seeds = [assignment.job.sampling.seed for assignment in stack.worker.assignments[-4:]]
    assert len(set(seeds)) == 2  # prompts do not affect each other's output


def test_log_probabilities_have_the_older_format(stack: Stack) -> None:
    logprobs = complete(stack, logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["one", " two"]
    assert logprobs["token_logprobs"] == [-0.5] * 2
    assert logprobs["text_offset"] == [0, 3]
    assert set(logprobs["top_logprobs"][0]) == {"one"}
    assert complete(stack).json()["choices"][0]["logprobs"] is None


def test_streamed_texts_match_the_complete_ones(stack: Stack) -> None:
    chunks = chunks_of(
        complete(stack, ["say a b", "say c"], stream=True, stream_options={"include_usage": True})
    )
    joined = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        joined[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert chunk["usage"] is None
    assert joined == {0: "a b", 1: "c"}
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["prompt_tokens"]) == ([], 22)


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "array"),
    ({"prompt": []}, "prompt", "at least 1"),
    ({"prompt": [[]]}, "prompt[0]", "at least 1"),
    ({"prompt": ["a", 5]}, "prompt[1]", "string"),
    ({"prompt": [5, "a"]}, "prompt[1]", "integer"),
    ({"prompt": [-1]}, "prompt[0]", "got -1"),
    ({"prompt": [2**31]}, "prompt[0]", "2147483647"),
    ({"prompt": [True]}, "prompt[0]", "string"),
    ({"prompt": ["a"] * 65}, "prompt", "at most 64"),
    ({"prompt": ["a"] * 33, "n": 2}, "n", "the limit is 64"),
    ({"logprobs": 6}, "logprobs", "got 6"),
    ({"logprobs": True}, "logprobs", "integer"),
    ({"max_tokens": 0}, "max_tokens", "echo is true"),
    ({"max_tokens": -1, "echo": True}, "max_tokens", "got -1"),
    ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens", "must not exceed max_tokens (0)"),
    ({"min_tokens": 17}, "min_tokens", "must not exceed max_tokens (16)"),
    ({"prompt": "x" * (1024 * 1024 + 1)}, "prompt", "1048576"),
    ({"prompt": "refuse context_length_exceeded"}, "prompt", "scripted failure"),
]


def test_an_invalid_request_is_a_400_that_names_the_field(stack: Stack) -> None:
    for fields, param, words in INVALID:
        response = complete(stack, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert words in error["message"], fields


def test_bodies_that_are_not_json_are_rejected(stack: Stack) -> None:
    for path in ("/v1/completions", "/tokenize", "/detokenize"):
        assert stack.http.post(path, content=b"{").status_code == 415
        response = stack.http.post(path, content=b"{", headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
        body = json.dumps({"model": "gpt-4o", "prompt": "x", "tokens": [1]}).encode()
        unknown = stack.http.post(path, content=body, headers={"content-type": "application/json"})
        assert unknown.status_code == 404
