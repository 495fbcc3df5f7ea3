"""Tool calls: functions reach the worker, and calls are returned in complete and streamed responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llava_wire.messages.job import Message

from tests.server.api.sse_lines import chunks_of
from tests.server.conftest import Stack

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
PARIS = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
NOW = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "18 degrees"}
NAMED = {"type": "function", "function": {"name": "clock"}}


def tool_grammar(stack: Stack) -> dict[str, Any]:
    """Return the tool grammar of the worker's last job."""
    grammar = stack.worker.assignments[-1].job.sampling.grammar
    assert grammar is not None and grammar.kind == "tools"
    return dict(json.loads(grammar.text))


CHOICES: list[tuple[dict[str, Any], str, bool, list[str]]] = [
    ({}, "auto", True, ["weather", "clock"]),
    ({"tool_choice": "auto"}, "auto", True, ["weather", "clock"]),
    ({"tool_choice": "required"}, "required", True, ["weather", "clock"]),
    ({"tool_choice": "required", "parallel_tool_calls": False}, "required", False, ["weather", "clock"]),
    ({"parallel_tool_calls": True}, "auto", True, ["weather", "clock"]),
    ({"tool_choice": NAMED}, "named", False, ["clock"]),
    (
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}},
        "required",
        True,
        ["clock"],
    ),
]


def test_the_callable_functions_reach_the_worker(stack: Stack) -> None:
    for fields, choice, is_parallel, names in CHOICES:
        assert stack.chat("say x", tools=[WEATHER, CLOCK], **fields).status_code == 200, fields
        grammar = tool_grammar(stack)
        assert (grammar["choice"], grammar["is_parallel"]) == (choice, is_parallel), fields
        assert [function["name"] for function in grammar["functions"]] == names, fields
        schemas = {"weather": CITY, "clock": NO_ARGUMENTS}
        assert all(
            function["parameters"] == schemas[function["name"]] for function in grammar["functions"]
        ), fields
        system = stack.worker.assignments[-1].job.messages[0]
        assert system.role == "system", fields
        assert [name in str(system.parts) for name in ("weather", "clock")] == [
            name in names for name in ("weather", "clock")
        ]


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_callable_functions_the_job_has_no_tools(stack: Stack, fields: dict[str, Any]) -> None:
    assert stack.chat(f"say {PARIS}", **fields).json()["choices"][0]["message"]["content"] == PARIS
    job = stack.worker.assignments[-1].job
    assert job.sampling.grammar is None
    assert [message.role for message in job.messages] == ["user"]


def test_calls_in_the_output_become_tool_calls(stack: Stack) -> None:
    choice = stack.chat(f"say {PARIS}\n{NOW}", tools=[WEATHER, CLOCK]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert second["function"] == {"name": "clock", "arguments": "{}"}
    assert first["type"] == "function"
    assert first["id"].startswith("call_") and first["id"] != second["id"]


def test_an_output_without_calls_is_text(stack: Stack) -> None:
    choice = stack.chat("say hello there", tools=[WEATHER]).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": "hello there", "refusal": None}


def test_a_named_call_has_finish_reason_stop_as_in_openais_api(stack: Stack) -> None:
    choice = stack.chat(f"say {NOW}", tools=[CLOCK], tool_choice=NAMED).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "clock"


@pytest.mark.parametrize("verb", ["say", "say-all"])
def test_streamed_calls_match_the_complete_ones(stack: Stack, verb: str) -> None:
    question = f"{verb} {PARIS}\n{NOW}"
    chunks = chunks_of(stack.chat(question, tools=[WEATHER, CLOCK], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls: dict[int, dict[str, str]] = {}
    for call in [call for delta in deltas for call in delta.get("tool_calls", [])]:
        if "id" in call:
            assert call["function"]["arguments"] == ""
            calls[call["index"]] = {"id": call["id"], "name": call["function"]["name"], "arguments": ""}
        else:
            calls[call["index"]]["arguments"] += call["function"]["arguments"]
    assert [calls[index]["arguments"] for index in range(2)] == ['{"city": "Paris"}', "{}"]
    assert [calls[index]["name"] for index in range(2)] == ["weather", "clock"]
    assert not any(delta.get("content") for delta in deltas)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_streamed_output_without_calls_is_text(stack: Stack) -> None:
    chunks = chunks_of(stack.chat("say <tool for you", tools=[WEATHER], stream=True))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert (text, chunks[-1]["choices"][0]["finish_reason"]) == ("<tool for you", "stop")


SCENE = {"type": "object", "properties": {"n": {"type": "integer"}}}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCENE}}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
# fields -> kind of the grammar, and whether the output can be a response in the format
COMBINATIONS: list[tuple[dict[str, Any], str, bool]] = [
    ({}, "tools", True),
    ({"tool_choice": "auto", "parallel_tool_calls": False}, "tools", True),
    ({"tool_choice": ALLOWED}, "tools", True),
    ({"tool_choice": "required"}, "tools", False),
    ({"tool_choice": NAMED}, "tools", False),
    ({"tool_choice": "none"}, "json_schema", True),
]


def test_tools_are_combined_with_a_response_format(stack: Stack) -> None:
    for fields, kind, has_format in COMBINATIONS:
        assert stack.chat("say x", tools=[WEATHER, CLOCK], **FORMAT, **fields).status_code == 200, fields
        grammar = stack.worker.assignments[-1].job.sampling.grammar
        assert grammar is not None and grammar.kind == kind, fields
        assert ('\\"n\\"' in grammar.text or '"n"' in grammar.text) == has_format, fields


@pytest.mark.parametrize("is_streaming", [False, True])
def test_an_output_with_tools_and_a_format_is_json_text_or_calls(stack: Stack, is_streaming: bool) -> None:
    for text, calls in (('{"n": 1}', []), (PARIS, ["weather"])):
        response = stack.chat(f"say {text}", tools=[WEATHER], **FORMAT, stream=is_streaming)
        if is_streaming:
            parts = [chunk["choices"][0]["delta"] for chunk in chunks_of(response)]
        else:
            parts = [response.json()["choices"][0]["message"]]
        content = "".join(part.get("content") or "" for part in parts)
        names = [
            call["function"]["name"]
            for part in parts
            for call in part.get("tool_calls", [])
            if call["function"].get("name")
        ]
        assert (content, names) == ("" if calls else text, calls)


def test_tool_definitions_can_be_as_long_as_the_body_allows(stack: Stack) -> None:
    parameters = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"title": {"type": "string", "description": "p" * 2000}},
    }
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"f{index}",
                "description": "d" * 12_000,
                "parameters": parameters if index else None,
                "strict": None,
            },
        }
        for index in range(70)
    ]
    assert stack.chat("say x", tools=tools).status_code == 200
    job = stack.worker.assignments[-1].job
    assert str(job.messages[0].parts).count("d" * 12_000) == 70
    assert str(job.messages[0].parts).count("p" * 2000) == 69
    functions = tool_grammar(stack)["functions"]
    assert functions[0]["parameters"] == NO_ARGUMENTS
    assert functions[1]["parameters"]["properties"] == {"title": {"type": "string"}}
    assert [function["is_strict"] for function in functions] == [False] * 70
    assert functions[69]["param"] == "tools[69].function.parameters"


def test_earlier_calls_and_results_reach_the_worker_as_messages(stack: Stack) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {**RESULT, "tool_call_id": "c2"},
        {**RESULT, "content": [{"type": "text", "text": "rain"}]},
        {"role": "user", "content": "say so"},
    ]
    assert stack.chat(messages=messages, tools=[WEATHER]).status_code == 200
    system, question, call, results = stack.worker.assignments[-1].job.messages
    [instructions] = system.parts  # some chat templates read only the first part
    assert str(instructions).startswith("Be brief.\n") and "weather" in str(instructions)
    assert question == Message("user", ("Weather?",))
    assert call == Message("assistant", (f"{PARIS}\n{PARIS}",))
    parts = ("<tool_response>18 degrees</tool_response>", "<tool_response>rain</tool_response>", "say so")
    assert results == Message("user", parts)


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "only 'function' is supported"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "run it in your client"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "a b"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
        "tools[0].function.parameters",
        "type object",
    ),
    ({"tools": [CLOCK, CLOCK]}, "tools", "two functions named 'clock'"),
    ({"tools": [CLOCK] * 513}, "tools", "at most 512"),
    (
        {
            "tools": [
                {"type": "function", "function": {"name": f"f{n}", "parameters": {"enum": ["x" * 60_000]}}}
                for n in range(5)
            ]
        },
        "tools",
        "the limit is 262144",
    ),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice", "'clock'"),
    ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice", "'required'"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
    ({"tools": [WEATHER], "ignore_eos": True}, "ignore_eos", "tools"),
]


def test_an_invalid_tool_field_is_a_400_that_names_the_field(stack: Stack) -> None:
    for fields, param, words in INVALID:
        response = stack.chat("say x", **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert words in error["message"], fields


def test_function_descriptions_count_towards_the_text_limit(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(max_text_kb=1)
    assert stack.chat("say x", tools=[WEATHER]).status_code == 200
    wordy = {"type": "function", "function": {"name": "f", "description": "x" * 1024}}
    response = stack.chat("say x", tools=[wordy])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
