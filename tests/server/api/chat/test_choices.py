"""Requests for multiple choices, and token log probabilities."""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llava_server.api.chat.job_builder import choice_seed

from tests.server.conftest import Stack, running_stack
from tests.waiting import wait_until


def stream(stack: Stack, content: str, **fields: Any) -> list[Any]:
    lines = stack.chat(content, stream=True, **fields).text.splitlines()
    assert "data: [DONE]" in lines[-2:]
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_each_choice_has_a_seed_derived_from_the_seed_of_the_request(stack: Stack) -> None:
    completion = stack.chat("seed", n=4, seed=11).json()
    repeated = stack.chat("seed", n=4, seed=11).json()

    texts = [choice["message"]["content"] for choice in completion["choices"]]
    assert [choice["index"] for choice in completion["choices"]] == [0, 1, 2, 3]
    assert texts == [str(choice_seed(11, index)) for index in range(4)]
    assert texts[0] == "11"
    assert len(set(texts)) == 4
    assert [choice["message"]["content"] for choice in repeated["choices"]] == texts


def test_derived_seeds_fit_into_the_wire_format() -> None:
    assert all(0 <= choice_seed(seed, 1) < 2**63 for seed in range(-100, 100))


def test_usage_counts_the_prompt_once_and_the_tokens_of_every_choice(stack: Stack) -> None:
    one = stack.chat("say a b c").json()["usage"]
    three = stack.chat("say a b c", n=3).json()["usage"]

    assert three["prompt_tokens"] == one["prompt_tokens"]
    assert three["completion_tokens"] == 3 * one["completion_tokens"]
    assert three["total_tokens"] == three["prompt_tokens"] + three["completion_tokens"]


def test_streamed_choices_match_the_complete_ones(stack: Stack) -> None:
    chunks = stream(stack, "seed", n=3, seed=5, stream_options={"include_usage": True})

    texts: dict[int, str] = defaultdict(str)
    roles, reasons = [], {}
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        assert choice["index"] not in reasons, "a chunk was sent after the end of its choice"
        texts[choice["index"]] += choice["delta"].get("content", "")
        roles += [choice["index"]] if "role" in choice["delta"] else []
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == {index: str(choice_seed(5, index)) for index in range(3)}
    assert roles == [0, 1, 2]
    assert reasons == dict.fromkeys(range(3), "stop")
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_with_several_choices_has_no_event_ids(stack: Stack) -> None:
    assert "\nid:" not in stack.chat("say a", n=2, stream=True).text
    assert "id:" in stack.chat("say a", stream=True).text


def test_disconnecting_cancels_every_choice(stack: Stack) -> None:
    with stack.http.stream(
        "POST",
        "/v1/chat/completions",
        json={
            "model": "scripted",
            "messages": [{"role": "user", "content": "go-on"}],
            "n": 3,
            "stream": True,
        },
    ) as response:
        next(response.iter_lines())
        wait_until(lambda: len(running_jobs(stack)) == 3)
    jobs = running_jobs(stack)

    wait_until(lambda: jobs <= stack.worker.refused)
    assert stack.works()


def running_jobs(stack: Stack) -> set[str]:
    assignments = [one for one in stack.worker.assignments if "go-on" in str(one.job.messages)]
    return {one.job.job_id for one in assignments}


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failed_choice_fails_the_request(stack: Stack, is_stream: bool) -> None:
    response = stack.chat("break internal_error", n=2, stream=is_stream)

    assert (response.status_code == 200) == is_stream
    assert "internal_error" in response.text
    assert stack.works()


def test_a_request_is_rejected_if_only_some_of_its_choices_fit_into_the_queue(queue_url: str) -> None:
    with running_stack(queue_url, max_tenant_jobs=3) as stack:
        response = stack.chat("hold", n=4)

        assert response.status_code == 429
        wait_until(stack.works)
        assert stack.server.services.controller.num_open == 0


def test_other_choices_wait_until_the_first_one_has_computed_the_prompt(queue_url: str) -> None:
    with running_stack(queue_url) as stack, ThreadPoolExecutor(1) as threads:
        response = threads.submit(stack.chat, "silent", n=3)
        wait_until(lambda: stack.worker.assignments)
        assert stack.works()  # any jobs submitted with the first one would have arrived by now
        assert len(stack.worker.assignments) == 2

        stack.worker.release.set()

        assert len(response.result().json()["choices"]) == 3


def test_logprobs_have_openais_format(stack: Stack) -> None:
    completion = stack.chat("say grün yes", logprobs=True, top_logprobs=2).json()

    logprobs = completion["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert [token["token"] for token in logprobs["content"]] == ["grün", " yes"]
    assert completion["usage"]["completion_tokens"] == 3  # includes the end-of-sequence token
    first = logprobs["content"][0]
    assert (first["logprob"], first["bytes"]) == (-0.5, [103, 114, 195, 188, 110])
    assert first["top_logprobs"] == [
        {"token": "grün", "logprob": -0.5, "bytes": first["bytes"]},
        {"token": "grün", "logprob": -1.5, "bytes": first["bytes"]},
    ]


def test_logprobs_are_streamed_with_their_text(stack: Stack) -> None:
    chunks = stream(stack, "say one two", logprobs=True, n=2)

    tokens_of: dict[int, list[str]] = defaultdict(list)
    for chunk in chunks:
        (choice,) = chunk["choices"]
        if choice["logprobs"]:
            tokens = [token["token"] for token in choice["logprobs"]["content"]]
            assert tokens == [choice["delta"]["content"]]
            assert all(token["top_logprobs"] == [] for token in choice["logprobs"]["content"])
            tokens_of[choice["index"]] += tokens
    assert tokens_of == {index: ["one", " two"] for index in range(2)}


def test_logprobs_are_null_unless_requested(stack: Stack) -> None:
    assert stack.chat("say one").json()["choices"][0]["logprobs"] is None
    chunks = stream(stack, "say one")
    assert all(choice["logprobs"] is None for chunk in chunks for choice in chunk["choices"])


TOOL = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


def test_text_that_resembles_a_tool_call_has_its_logprobs(stack: Stack) -> None:
    fields = {"tools": [TOOL], "logprobs": True}
    [choice] = stack.chat("say <tool_ call", **fields).json()["choices"]
    content = choice["message"]["content"]
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["<tool_", " call"]
    chunks = stream(stack, "say <tool_ call", **fields)
    tokens = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [token["token"] for each in tokens if each for token in each["content"]] == ["<tool_", " call"]
    assert content == "<tool_ call"


def test_a_tool_call_has_no_logprobs(stack: Stack) -> None:
    fields = {"tools": [TOOL], "logprobs": True}
    [choice] = stack.chat(f"say {CALL}", **fields).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "clock"
    assert choice["message"]["content"] is None
    assert choice["logprobs"]["content"] == []
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in stream(stack, f"say {CALL}", **fields))
