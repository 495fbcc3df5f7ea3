"""Echoed prompts: text, log probabilities, scoring without output, and streaming."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.completions.test_completions import complete, texts
from tests.server.api.sse_lines import chunks_of
from tests.server.conftest import Stack

FIELDS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
# Log probabilities of the prompt tokens. The scripted worker assigns -k/8 to token k. Token 0 is BOS.
SAY_A_LOGPROBS = [None, -0.125, -0.25, -0.375, -0.5, -0.625]


def choice_of(response: Any, index: int = 0) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][index]
    assert {len(choice["logprobs"][field]) for field in FIELDS} == {len(choice["logprobs"]["tokens"])}
    return choice


def test_echo_begins_with_the_prompt(stack: Stack) -> None:
    assert texts(complete(stack, ["say a", "say b"], echo=True)) == ["say aa", "say bb"]
    assert texts(complete(stack, ["say a", "say b"], echo=False)) == ["a", "b"]
    chunks = chunks_of(complete(stack, "say a", echo=True, stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["say a", "a", ""]


def test_a_prompt_of_token_ids_is_echoed_as_text(stack: Stack) -> None:
    assert texts(complete(stack, [[0, 72, 105], [233]], echo=True)) == ["Hi0 72 105", "é233"]


def test_logprobs_cover_prompt_and_output_and_are_null_for_the_first_token(stack: Stack) -> None:
    choice = choice_of(complete(stack, "say a", echo=True, logprobs=1))
    logprobs = choice["logprobs"]
    assert choice["text"] == "say aa"
    assert logprobs["tokens"] == ["", *"say a", "a"]  # the BOS token has no text
    assert logprobs["token_logprobs"] == [*SAY_A_LOGPROBS, -0.5]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 4, 5]
    assert logprobs["top_logprobs"][:2] == [None, {"s": -0.125}]
    assert choice_of(complete(stack, "say a", logprobs=1))["logprobs"]["tokens"] == ["a"]


def test_a_prompt_can_be_scored_without_generating_output(stack: Stack) -> None:
    """This is what evaluation harnesses send: token IDs, max_tokens 0 and temperature 0."""
    response = complete(stack, [[72, 105], [72]], echo=True, logprobs=1, max_tokens=0, temperature=0)
    choice = choice_of(response)
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.125]
    assert choice_of(response, 1)["logprobs"]["token_logprobs"] == [None]
    usage = response.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (22, 0, 22)


def test_an_echo_without_output_and_logprobs_is_the_prompt(stack: Stack) -> None:
    choice = complete(stack, "say a", echo=True, max_tokens=0).json()["choices"][0]
    assert (choice["text"], choice["logprobs"]) == ("say a", None)
    assert (
        stack.worker.assignments[-1].job.cost < 16
    )  # does not include the default estimate of output tokens


def test_each_choice_contains_the_prompt(stack: Stack) -> None:
    response = complete(stack, ["say a", "say b"], n=2, echo=True, logprobs=0)
    assert texts(response) == ["say aa", "say aa", "say bb", "say bb"]
    for index in range(4):
        assert choice_of(response, index)["logprobs"]["token_logprobs"][:6] == SAY_A_LOGPROBS
    assert response.json()["usage"]["prompt_tokens"] == 22


@pytest.mark.parametrize("max_tokens", [0, 16])
def test_a_stream_starts_with_the_prompt_and_matches_the_complete_response(
    stack: Stack, max_tokens: int
) -> None:
    fields = {"prompt": "say é b", "echo": True, "logprobs": 2, "max_tokens": max_tokens}
    whole = choice_of(complete(stack, **fields))
    joined: dict[str, Any] = {"text": "", **{field: [] for field in FIELDS}}
    chunks = chunks_of(complete(stack, stream=True, **fields))
    assert chunks[0]["choices"][0]["text"] == "say é b"
    for chunk in chunks:
        choice = chunk["choices"][0]
        joined["text"] += choice["text"]
        for field in FIELDS:
            joined[field] += (choice["logprobs"] or {field: []})[field]
    assert joined == {"text": whole["text"], **whole["logprobs"]}
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_only_jobs_with_echo_require_a_newer_worker(stack: Stack) -> None:
    complete(stack, "say a", echo=True)
    complete(stack, "say a", logprobs=1)
    echoed, plain = (assignment.job for assignment in stack.worker.assignments[-2:])
    assert (echoed.is_echoed, echoed.version) == (True, 2)
    assert (plain.is_echoed, plain.version) == (False, 1)
