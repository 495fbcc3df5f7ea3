"""A resumed stream contains the same log probabilities, tool calls and usage as an uninterrupted one."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PARIS = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
NOW = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'

REQUESTS: dict[str, dict[str, Any]] = {
    "log-probabilities": {"text": "say one two three four", "logprobs": True, "top_logprobs": 2},
    "calls": {"text": f"say {PARIS}\n{NOW}", "tools": [WEATHER, CLOCK]},
    "calls with log-probabilities": {"text": f"say {PARIS}", "tools": [WEATHER], "logprobs": True},
    "named call": {
        "text": f"say {NOW}",
        "tools": [WEATHER, CLOCK],
        "tool_choice": {"type": "function", "function": {"name": "clock"}},
    },
}


def events(response: httpx2.Response) -> list[tuple[int | None, Any]]:
    """Return each chunk's token offset and its choices or usage.

    Only an event's last chunk has an offset.
    """
    found: list[tuple[int | None, Any]] = []
    for block in response.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields["data"] != "[DONE]":
            chunk = json.loads(fields["data"])
            offset = int(fields["id"].rpartition(":")[2]) if "id" in fields else None
            found.append((offset, chunk["choices"] or chunk["usage"]))
    return found


def start(stack: Stack, text: str, **fields: Any) -> tuple[str, list[tuple[int | None, Any]]]:
    """Return the completion's ID and the chunks of its uninterrupted stream."""
    response = stack.chat(text, stream=True, stream_options={"include_usage": True}, **fields)
    return json.loads(response.text.partition("data: ")[2].partition("\n")[0])["id"], events(response)


def resume(stack: Stack, job_id: str, **query: Any) -> httpx2.Response:
    path = f"/v1/chat/completions/{job_id}"
    return stack.http.get(path, params={"stream": "true", "include_usage": "true", **query})


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
def test_a_stream_resumed_after_any_event_equals_the_uninterrupted_one(
    stack: Stack, fields: dict[str, Any]
) -> None:
    job_id, whole = start(stack, **fields)
    resume_points = [number for number, (offset, _) in enumerate(whole) if offset is not None]
    assert len(resume_points) >= 2
    for number in resume_points[:-1]:
        assert events(resume(stack, job_id, starting_after=whole[number][0])) == whole[number + 1 :]
    # A client that has received all tokens still receives the end of the stream.
    assert events(resume(stack, job_id, starting_after=whole[resume_points[-1]][0])) == whole[-2:]


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
def test_a_stream_read_from_the_start_equals_the_uninterrupted_one(
    stack: Stack, fields: dict[str, Any]
) -> None:
    job_id, whole = start(stack, **fields)
    assert events(resume(stack, job_id)) == whole


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
def test_a_completion_that_is_read_later_equals_the_original(stack: Stack, fields: dict[str, Any]) -> None:
    text, others = fields["text"], {name: value for name, value in fields.items() if name != "text"}
    original = stack.chat(text, **others).json()
    later = stack.http.get(f"/v1/chat/completions/{original['id']}").json()
    assert later["choices"] == original["choices"]
    assert (later["usage"], later["model"]) == (original["usage"], MODEL)


def test_a_resumed_stream_has_no_log_probabilities_unless_requested(stack: Stack) -> None:
    job_id, _ = start(stack, "say one two three")
    seen = [choices for _, choices in events(resume(stack, job_id)) if isinstance(choices, list)]
    assert all(choices[0]["logprobs"] is None for choices in seen)


def test_a_resumed_stream_has_the_log_probability_of_each_token_once(stack: Stack) -> None:
    job_id, _ = start(stack, "say one two three", logprobs=True)
    rest = events(resume(stack, job_id, starting_after=2))
    seen = [choices[0]["logprobs"]["content"] for _, choices in rest[:-1] if choices[0]["logprobs"]]
    assert [token["token"] for each in seen for token in each] == [" three"]
