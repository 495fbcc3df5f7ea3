"""A stream that is read on is written as the undisturbed one: log-probabilities, calls, counts."""

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

ASKED: dict[str, dict[str, Any]] = {
    "log-probabilities": {"text": "say one two three four", "logprobs": True, "top_logprobs": 2},
    "calls": {"text": f"say {PARIS}\n{NOW}", "tools": [WEATHER, CLOCK]},
    "calls with log-probabilities": {"text": f"say {PARIS}", "tools": [WEATHER], "logprobs": True},
    "a call by name": {
        "text": f"say {NOW}",
        "tools": [WEATHER, CLOCK],
        "tool_choice": {"type": "function", "function": {"name": "clock"}},
    },
}


def events(response: httpx2.Response) -> list[tuple[int | None, Any]]:
    """(tokens so far, choices or usage) of each chunk; the number stands on the last chunk of an event."""
    found: list[tuple[int | None, Any]] = []
    for block in response.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields["data"] != "[DONE]":
            chunk = json.loads(fields["data"])
            place = int(fields["id"].rpartition(":")[2]) if "id" in fields else None
            found.append((place, chunk["choices"] or chunk["usage"]))
    return found


def start(stack: Stack, text: str, **fields: Any) -> tuple[str, list[tuple[int | None, Any]]]:
    """The answer's id and all that its uninterrupted stream sent."""
    response = stack.chat(text, stream=True, stream_options={"include_usage": True}, **fields)
    return json.loads(response.text.partition("data: ")[2].partition("\n")[0])["id"], events(response)


def read_on(stack: Stack, job_id: str, **query: Any) -> httpx2.Response:
    path = f"/v1/chat/completions/{job_id}"
    return stack.http.get(path, params={"stream": "true", "include_usage": "true", **query})


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED)
def test_a_stream_read_on_anywhere_is_the_undisturbed_one(stack: Stack, fields: dict[str, Any]) -> None:
    job_id, whole = start(stack, **fields)
    places = [number for number, (place, _) in enumerate(whole) if place is not None]
    assert len(places) >= 2
    for number in places[:-1]:
        assert events(read_on(stack, job_id, starting_after=whole[number][0])) == whole[number + 1 :]
    end = events(read_on(stack, job_id, starting_after=whole[places[-1]][0]))
    assert end[-2:] == whole[-2:]  # the end is told even to who has all tokens


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED)
def test_a_stream_read_from_its_beginning_is_the_undisturbed_one(
    stack: Stack, fields: dict[str, Any]
) -> None:
    job_id, whole = start(stack, **fields)
    assert events(read_on(stack, job_id)) == whole


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED)
def test_the_whole_answer_read_later_is_the_one_that_was_given(stack: Stack, fields: dict[str, Any]) -> None:
    text, others = fields["text"], {name: value for name, value in fields.items() if name != "text"}
    given = stack.chat(text, **others).json()
    later = stack.http.get(f"/v1/chat/completions/{given['id']}").json()
    assert later["choices"] == given["choices"]
    assert (later["usage"], later["model"]) == (given["usage"], MODEL)


def test_without_log_probabilities_none_are_told(stack: Stack) -> None:
    job_id, _ = start(stack, "say one two three")
    seen = [choices for _, choices in events(read_on(stack, job_id)) if isinstance(choices, list)]
    assert all(choices[0]["logprobs"] is None for choices in seen)


def test_with_log_probabilities_each_token_has_its_own_once(stack: Stack) -> None:
    job_id, whole = start(stack, "say one two three", logprobs=True)
    last = whole[-1][1]["completion_tokens"]
    rest = events(read_on(stack, job_id, starting_after=2))
    seen = [choices[0]["logprobs"]["content"] for _, choices in rest[:-1] if choices[0]["logprobs"]]
    assert sum(len(each) for each in seen) == last - 2 == 2
