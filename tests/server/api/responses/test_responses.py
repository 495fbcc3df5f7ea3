"""/v1/responses with OpenAI's client: complete and streamed responses, function calls and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from llava_wire.messages.job import Message
from llava_wire.messages.sampling_params import Grammar

from tests.server.api.chat.test_tools import CITY, NOW, PARIS
from tests.server.api.sse_lines import events_of
from tests.server.conftest import Stack
from tests.server.image_files import data_url, encoded, scene
from tests.server.scripted_worker import MODEL

WEATHER: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
CLOCK: Any = {"type": "function", "name": "clock"}


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(stack: Stack, question: Any = "say yes", **fields: Any) -> Any:
    return stack.http.post("/v1/responses", json={"model": MODEL, "input": question, **fields})


def test_the_client_receives_a_complete_response(client: openai.OpenAI, stack: Stack) -> None:
    response = client.responses.create(
        model=MODEL, input="say one two", instructions="Be brief.", metadata={"run": "7"}, temperature=0
    )
    assert (response.output_text, response.status, response.error) == ("one two", "completed", None)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (
        11,
        3,
        14,
    )
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert (response.metadata, response.instructions, response.temperature) == ({"run": "7"}, "Be brief.", 0)
    job = stack.worker.assignments[-1].job
    assert job.messages[0] == Message("system", ("Be brief.",))
    assert response.id == job.job_id.replace("chatcmpl-", "resp_")


def test_a_truncated_response_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="count 2", max_output_tokens=2)
    assert (response.status, response.output_text) == ("incomplete", "1 2")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def test_a_stream_has_openais_events_in_order(client: openai.OpenAI, stack: Stack) -> None:
    events = list(client.responses.create(model=MODEL, input="say one two", stream=True))
    assert [event.type for event in events] == TEXT_EVENTS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "one two"
    [last] = [event for event in events if event.type == "response.completed"]
    assert last.response.output_text == "one two"
    assert all(name == data["type"] for name, data in events_of(ask(stack, stream=True)))


def test_the_clients_stream_helper_joins_the_text(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="say one two") as stream:
        assert stream.get_final_response().output_text == "one two"


def test_a_response_without_text_has_an_empty_message(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="say ")
    assert (response.output_text, len(response.output)) == ("", 1)


def test_images_and_earlier_items_reach_the_worker(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input="say one")
    image: Any = {"type": "input_image", "image_url": data_url(encoded(scene())), "detail": "low"}
    conversation: list[Any] = [
        {"role": "user", "content": "say one"},
        *first.output,
        {"role": "user", "content": [image, {"type": "input_text", "text": "and then?"}]},
    ]
    assert client.responses.create(model=MODEL, input=conversation).output_text == (
        "user:say one|assistant:one|user:[40x20]and then?"
    )


def test_calls_are_separate_items_and_their_results_reach_the_worker(
    client: openai.OpenAI, stack: Stack
) -> None:
    response = client.responses.create(model=MODEL, input=f"say {PARIS}\n{NOW}", tools=[WEATHER, CLOCK])
    first, second = response.output
    assert first.type == "function_call" and second.type == "function_call"
    assert (first.name, first.arguments) == ("weather", '{"city": "Paris"}')
    results: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"of {call.name}"}
        for call in (second, first)
    ]
    conversation: list[Any] = [{"role": "user", "content": "Weather?"}, first, second, *results]
    client.responses.create(model=MODEL, input=conversation, tools=[WEATHER])
    _, question, calls, outputs = stack.worker.assignments[-1].job.messages
    assert (question.parts, calls.parts) == (("Weather?",), (f"{PARIS}\n{NOW}",))
    assert outputs.parts == (
        "<tool_response>of clock</tool_response>",
        "<tool_response>of weather</tool_response>",
    )


def test_streamed_calls_have_their_events(client: openai.OpenAI) -> None:
    tools = [WEATHER, CLOCK]
    events = list(client.responses.create(model=MODEL, input=f"say {PARIS}", tools=tools, stream=True))
    kinds = [event.type for event in events]
    assert kinds[2] == "response.output_item.added"
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Paris"}'
    assert "response.output_text.delta" not in kinds


def test_a_failed_response_reports_its_error_and_ends(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input="break internal_error", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert "scripted failure" in events[-1].response.error.message
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model=MODEL, input="refuse internal_error", stream=True)


def test_log_probabilities_are_returned_with_the_text(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="say one two", include=["message.output_text.logprobs"], top_logprobs=2
    )
    message: Any = response.output[0]
    tokens = message.content[0].logprobs
    assert [token.token for token in tokens][:2] == ["one", " two"]
    assert len(tokens[0].top_logprobs) == 2


SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
EFFECTS: list[tuple[dict[str, Any], Any, Any]] = [
    ({"max_output_tokens": 7}, lambda job: job.sampling.max_tokens, 7),
    ({"temperature": 0.5}, lambda job: job.sampling.temperature, 0.5),
    ({"top_p": 0.5}, lambda job: job.sampling.top_p, 0.5),
    ({"service_tier": "flex"}, lambda job: job.priority, -1),
    (
        {"text": {"format": {"type": "json_object"}}},
        lambda job: job.sampling.grammar,
        Grammar("json_object", param="text.format"),
    ),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
        lambda job: job.sampling.grammar,
        Grammar("json_schema", '{"type":"object","properties":{}}', False, "text.format.schema"),
    ),
    (
        {
            "text": {"format": {"type": "json_object"}},
            "tools": [WEATHER | {"strict": None}, CLOCK | {"strict": True}],
        },
        lambda job: [
            (part["param"], part["is_strict"]) for part in json.loads(job.sampling.grammar.text)["functions"]
        ],
        [("tools[0].parameters", False), ("tools[1].parameters", True)],
    ),
    (
        {"text": {"format": {"type": "json_object"}}, "tools": [WEATHER]},
        lambda job: json.loads(job.sampling.grammar.text)["response"]["param"],
        "text.format",
    ),
    (
        {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "name": "clock"}},
        lambda job: [function["name"] for function in json.loads(job.sampling.grammar.text)["functions"]],
        ["clock"],
    ),
    (
        {"tools": [WEATHER], "parallel_tool_calls": False, "tool_choice": "required"},
        lambda job: json.loads(job.sampling.grammar.text)["is_parallel"],
        False,
    ),
]


def test_a_field_changes_the_job(stack: Stack) -> None:
    for fields, seen, value in EFFECTS:
        assert ask(stack, **fields).status_code == 200, fields
        assert seen(stack.worker.assignments[-1].job) == value, fields


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"input": 5}, "input", "array"),
    ({"min_tokens": 8, "max_output_tokens": 7}, "min_tokens", "must not exceed max_output_tokens (7)"),
    ({"stop": [""]}, "stop[0]", "at least 1"),
    ({"prompt_logprobs": 1}, "prompt_logprobs", "/v1/chat/completions"),
    (
        {"text": {"format": {"type": "json_object"}}, "ignore_eos": True},
        "ignore_eos",
        "cannot be combined with text.format",
    ),
    ({"input": []}, "input", "at least 1"),
    ({"input": [{"role": "user"}]}, "input[0].content", "required"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "web_search_call"),
    ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input", "at least 1"),
    ({"input": [{"type": "item_reference"}]}, "input[0].id", "required"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        "input[0].content[0].type",
        "input_file",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0].image_url",
        "either image_url or file_id",
    ),
    (
        {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "data:"}]}]},
        "input[0].content[0].type",
        "only allowed in user messages",
    ),
    ({"include": ["other.data"]}, "include", "Remove 'other.data'"),
    ({"top_logprobs": 2}, "top_logprobs", "include"),
    ({"stream_options": {}}, "stream_options", "stream is true"),
    ({"background": True, "store": False}, "background", "store is false"),
    ({"store": "yes"}, "store", "boolean"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "text.format.schema is required"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "mcp"}}, "tool_choice.type", "function"),
    ({"max_output_tokens": 0}, "max_output_tokens", "got 0"),
    ({"temperature": 3}, "temperature", "got 3"),
    ({"metadata": {"k": 5}}, "metadata.k", "string"),
    ({"model": "gpt-4o"}, "model", "does not exist"),
    ({"input": "refuse context_length_exceeded"}, "input", "scripted failure"),
]


def test_an_invalid_request_is_an_error_that_names_the_field(stack: Stack) -> None:
    for fields, param, words in INVALID:
        response = ask(stack, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (404 if param == "model" else 400, param), error
        assert words in error["message"], fields
