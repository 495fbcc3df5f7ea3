"""/v1/messages with Anthropic's client: complete and streamed messages, tools, token counting and errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from llava_wire.messages.job import Message
from llava_wire.messages.sampling_params import Grammar

from tests.server.api.chat.test_tools import CITY, NOW, PARIS
from tests.server.api.sse_lines import events_of
from tests.server.conftest import Stack
from tests.server.image_files import encoded, scene
from tests.server.scripted_worker import MODEL

WEATHER: Any = {"name": "weather", "description": "Now.", "input_schema": CITY}
CLOCK: Any = {"name": "clock", "input_schema": {"type": "object"}}


@pytest.fixture
def client(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.server.url, api_key="none", max_retries=0) as client:
        yield client


def user_message(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def ask(stack: Stack, text: str = "say yes", **fields: Any) -> Any:
    return stack.http.post(
        "/v1/messages", json={"model": MODEL, "max_tokens": 9, "messages": user_message(text), **fields}
    )


def test_the_client_receives_a_complete_message(client: anthropic.Anthropic, stack: Stack) -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=9,
        system="Be brief.",
        messages=user_message("say one two"),
        stop_sequences=["x"],
    )
    [block] = message.content
    assert block.type == "text" and block.text == "one two"
    assert (message.role, message.model, message.stop_reason) == ("assistant", MODEL, "end_turn")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (8, 3, 3)
    job = stack.worker.assignments[-1].job
    assert job.messages[0] == Message("system", ("Be brief.",))
    assert (job.sampling.max_tokens, job.sampling.stop) == (9, ("x",))
    assert message.id == job.job_id.replace("chatcmpl-", "msg_")


def test_a_message_thread_is_rejected_so_that_the_client_sends_the_whole_conversation(stack: Stack) -> None:
    rejected = ask(stack, thread={"type": "create"})
    assert rejected.status_code == 400
    assert rejected.json()["error"]["param"] == "thread"
    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert rejected.json()["error"]["details"] == details
    assert ask(stack, thread=None).status_code == 200
    assert "details" not in ask(stack, max_tokens="x").json()["error"]


def test_the_tool_runner_of_the_client_falls_back_from_threads(
    client: anthropic.Anthropic, stack: Stack
) -> None:
    @anthropic.beta_tool
    def clock() -> str:
        """Get the time."""
        return "noon"

    messages: list[Any] = user_message("say yes")
    runner = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=50, messages=messages, tools=[clock], max_iterations=1
    )
    [block] = runner.until_done().content
    assert block.type == "text"
    assert block.text == "yes"


def test_a_truncated_message_has_stop_reason_max_tokens(client: anthropic.Anthropic) -> None:
    assert (
        client.messages.create(model=MODEL, max_tokens=2, messages=user_message("count 2")).stop_reason
        == "max_tokens"
    )


def test_a_stream_has_anthropics_events_in_order(client: anthropic.Anthropic, stack: Stack) -> None:
    events = list(
        client.messages.create(model=MODEL, max_tokens=9, messages=user_message("say one two"), stream=True)
    )
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0].type == "message_start" and events[0].message.usage.input_tokens == 11
    assert all(name == data["type"] for name, data in events_of(ask(stack, stream=True)))


def test_the_clients_stream_helper_joins_the_text(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=9, messages=user_message("say one two")) as stream:
        assert "".join(stream.text_stream) == "one two"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens, final.usage.input_tokens) == ("end_turn", 3, 8)


def test_images_and_merged_messages_of_one_role_reach_the_worker(client: anthropic.Anthropic) -> None:
    source: Any = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(encoded(scene())).decode(),
    }
    hinted: Any = {"type": "text", "text": "this", "cache_control": {"type": "ephemeral"}}
    text = client.messages.create(
        model=MODEL,
        max_tokens=9,
        messages=[
            {"role": "user", "content": [{"type": "image", "source": source}]},
            {
                "role": "user",
                "content": [hinted],
            },
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "and then?"},
        ],
    ).content[0]
    assert text.type == "text" and text.text == "user:[40x20]this|assistant:one|user:and then?"


def test_a_final_assistant_message_is_continued(client: anthropic.Anthropic, stack: Stack) -> None:
    messages: list[Any] = [*user_message("Hi"), {"role": "assistant", "content": "say more"}]
    message = client.messages.create(model=MODEL, max_tokens=9, messages=messages)
    assert message.content[0].type == "text" and message.content[0].text == "more"
    assert stack.worker.assignments[-1].job.form == "continued"


def test_tool_calls_are_returned_and_their_results_reach_the_worker(
    client: anthropic.Anthropic, stack: Stack
) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=99, messages=user_message(f"say {PARIS}\n{NOW}"), tools=[WEATHER, CLOCK]
    )
    first, second = message.content
    assert first.type == "tool_use" and second.type == "tool_use"
    assert (message.stop_reason, first.name, first.input) == ("tool_use", "weather", {"city": "Paris"})
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": first.id, "content": "18 degrees"},
        {"type": "tool_result", "tool_use_id": second.id, "content": "broken", "is_error": True},
        {"type": "text", "text": "say so"},
    ]
    conversation: list[Any] = [
        *user_message("Weather?"),
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    client.messages.create(model=MODEL, max_tokens=9, messages=conversation, tools=[WEATHER])
    sent = stack.worker.assignments[-1].job.messages
    assert sent[2].parts == (f"{PARIS}\n{NOW}",)
    assert sent[3].parts == (
        "<tool_response>18 degrees</tool_response>",
        "<tool_response>error: broken</tool_response>",
        "say so",
    )


def test_the_parts_of_a_streamed_tool_call_form_its_input(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=99, messages=user_message(f"say {PARIS}"), tools=[WEATHER]
    ) as stream:
        final = stream.get_final_message()
    [block] = final.content
    assert block.type == "tool_use" and block.input == {"city": "Paris"}


CHOICES: list[tuple[dict[str, Any], str, bool]] = [
    ({"type": "auto"}, "auto", True),
    ({"type": "any"}, "required", True),
    ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
    ({"type": "tool", "name": "clock"}, "named", False),
]


@pytest.mark.parametrize(("choice", "mode", "is_parallel"), CHOICES, ids=str)
def test_tool_choice_reaches_the_worker(
    stack: Stack, choice: dict[str, Any], mode: str, is_parallel: bool
) -> None:
    assert ask(stack, tools=[WEATHER, CLOCK], tool_choice=choice).status_code == 200
    grammar = stack.worker.assignments[-1].job.sampling.grammar
    assert grammar is not None
    parallel = str(is_parallel).lower()
    assert grammar.text.startswith(f'{{"choice":"{mode}","is_parallel":{parallel}')


def test_tokens_are_counted_by_a_worker(client: anthropic.Anthropic, stack: Stack) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=user_message("four"), system="sys")
    assert counted.input_tokens == len("foursys")
    assert stack.worker.assignments[-1].job.task == "tokenize"
    assert (
        client.messages.count_tokens(model=MODEL, messages=user_message("four"), tools=[WEATHER]).input_tokens
        > 7
    )


ERRORS: list[tuple[str, type[anthropic.APIStatusError], str]] = [
    ("refuse context_length_exceeded", anthropic.BadRequestError, "invalid_request_error"),
    ("refuse internal_error", anthropic.InternalServerError, "api_error"),
]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("text", "expected", "kind"), ERRORS)
def test_failures_raise_the_clients_exception_classes(
    client: anthropic.Anthropic, text: str, expected: Any, kind: str, is_stream: bool
) -> None:
    with pytest.raises(expected) as caught:
        client.messages.create(model=MODEL, max_tokens=9, messages=user_message(text), stream=is_stream)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == caught.value.response.headers["x-request-id"]


def test_a_failure_during_a_stream_raises_an_exception(client: anthropic.Anthropic) -> None:
    stream = client.messages.create(
        model=MODEL, max_tokens=9, messages=user_message("break internal_error"), stream=True
    )
    with pytest.raises(anthropic.APIStatusError, match="scripted failure"):
        list(stream)


EFFECTS: list[tuple[dict[str, Any], Any, Any]] = [
    ({"temperature": 0.5}, lambda job: job.sampling.temperature, 0.5),
    ({"top_p": 0.5}, lambda job: job.sampling.top_p, 0.5),
    ({"top_k": 5}, lambda job: job.sampling.top_k, 5),
    ({"stop_sequences": ["a"]}, lambda job: job.sampling.stop, ("a",)),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
        lambda job: job.sampling.grammar,
        Grammar("json_schema", "{}", param="output_config.format.schema"),
    ),
    (
        {"output_format": {"type": "json_schema", "schema": {}}},
        lambda job: job.sampling.grammar,
        Grammar("json_schema", "{}", param="output_config.format.schema"),
    ),
    (
        {"output_format": {"type": "json_schema", "schema": {}}, "tools": [WEATHER | {"strict": True}]},
        lambda job: [
            json.loads(job.sampling.grammar.text)["functions"][0][name] for name in ("param", "is_strict")
        ],
        ["tools[0].input_schema", True],
    ),
    (
        {"tools": [WEATHER | {"input_examples": [{"city": "Oslo"}], "description": "d" * 20_000}]},
        lambda job: [
            '{\\"city\\": \\"Oslo\\"}' in job.messages[0].parts[0],
            "d" * 20_000 in job.messages[0].parts[0],
        ],
        [True, True],
    ),
    ({"metadata": {"user_id": "u"}, "service_tier": "auto"}, lambda job: job.priority, 0),
]


def test_a_field_changes_the_job(stack: Stack) -> None:
    for fields, seen, value in EFFECTS:
        assert ask(stack, **fields).status_code == 200, fields
        assert seen(stack.worker.assignments[-1].job) == value, fields


def test_a_cleared_system_message_is_omitted_once_a_user_message_follows(stack: Stack) -> None:
    def prompt(clear_at: str | None, *later: dict[str, Any]) -> str:
        reminder = {"role": "system", "content": "A reminder.", "clear_at": clear_at}
        assert ask(stack, messages=[{"role": "user", "content": "Hi"}, reminder, *later]).status_code == 200
        return str(stack.worker.assignments[-1].job.messages)

    question = {"role": "user", "content": "say yes"}
    assert "A reminder." in prompt("next_user_message")
    assert "A reminder." not in prompt("next_user_message", question)
    assert "A reminder." in prompt("never", question)
    assert "A reminder." in prompt(None, question)


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": None}, "max_tokens", "integer"),
    ({"max_tokens": 0}, "max_tokens", "got 0"),
    ({"temperature": 1.5}, "temperature", "got 1.5"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "server_tool_use"}]}]},
        "messages[0].content[0].type",
        "server_tool_use",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]},
        "messages[0].content[0].source.type",
        "'text', 'content'",
    ),
    (
        {
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "say"}],
            "tools": [WEATHER],
        },
        "messages",
        "cannot be continued",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
        "messages[0].content[0].source.type",
        "base64",
    ),
    ({"stop_sequences": [""]}, "stop_sequences[0]", "at least 1"),
    ({"stop_sequences": ["a"] * 5}, "stop_sequences", "at most 4"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type", "only 'custom' is supported"),
    (
        {
            "output_format": {"type": "json_schema", "schema": {}},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
        "output_format",
        "only one",
    ),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "clock"}}, "tool_choice", "clock"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name", "string"),
    ({"container": "c"}, "container", "does not provide containers"),
    ({"service_tier": "flex"}, "service_tier", "standard_only"),
    ({"min_tokens": 10}, "min_tokens", "must not exceed max_tokens (9)"),
    ({"top_k": -2}, "top_k", "got -2"),
    ({"return_token_ids": True}, "return_token_ids", "/v1/chat/completions"),
    (
        {"output_format": {"type": "json_schema", "schema": {}}, "guided_regex": "a"},
        "guided_regex",
        "output_config.format and guided_regex",
    ),
]


def test_an_invalid_request_is_a_400_that_names_the_field(stack: Stack) -> None:
    for fields, param, words in INVALID:
        response = ask(stack, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert words in error["message"].lower(), fields


def test_an_empty_system_prompt_and_an_empty_tool_result_are_valid(stack: Stack) -> None:
    use = {"type": "tool_use", "id": "t", "name": "clock", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t"}
    turns = [
        *user_message("Hi"),
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    assert ask(stack, system="", messages=turns).status_code == 200
    parts = [message.parts for message in stack.worker.assignments[-1].job.messages]
    assert parts[0] == ("",) and parts[-1] == ("<tool_response></tool_response>",)


def test_an_image_in_an_assistant_message_is_rejected(stack: Stack) -> None:
    blocks = [
        {"type": "tool_use", "id": "t", "name": "clock", "input": {}},
        {"type": "image", "source": {"type": "url", "url": "data:image/png;base64,x"}},
    ]
    response = ask(stack, messages=[*user_message("Hi"), {"role": "assistant", "content": blocks}])
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_content")
    assert error["param"] == "messages[1].content[1].type"
