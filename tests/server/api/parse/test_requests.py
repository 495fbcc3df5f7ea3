"""An invalid value in a request is rejected with status 400 and a clear message that names the field."""

from __future__ import annotations

import json
from typing import Any

from llava_server.api.chat.request import ChatRequest

from tests.server.conftest import Stack, text_of
from tests.server.scripted_worker import MODEL

USER = {"role": "user", "content": "say yes"}

# (request fields, code and param of the error, part of the error message)
WRONG_FIELDS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "max_tokens 0": ({"max_tokens": 0}, "invalid_value", "max_tokens", "greater than or equal to 1 (got 0)"),
    "max_tokens negative": ({"max_tokens": -1}, "invalid_value", "max_tokens", "got -1"),
    "max_tokens huge": ({"max_tokens": 2**31}, "invalid_value", "max_tokens", "2147483647"),
    "max_tokens 2**70": ({"max_tokens": 2**70}, "invalid_value", "max_tokens", "2147483647"),
    "max_tokens text": ({"max_tokens": "5"}, "invalid_type", "max_tokens", "valid integer (got '5')"),
    "max_tokens true": ({"max_tokens": True}, "invalid_type", "max_tokens", "got true"),
    "max_tokens fraction": ({"max_tokens": 1.5}, "invalid_type", "max_tokens", "valid integer"),
    "max_completion_tokens 0": (
        {"max_completion_tokens": 0},
        "invalid_value",
        "max_completion_tokens",
        "got 0",
    ),
    "both limits": (
        {"max_tokens": 1, "max_completion_tokens": 2},
        "invalid_value",
        "max_completion_tokens",
        "Send only one of them",
    ),
    "temperature -0.1": ({"temperature": -0.1}, "invalid_value", "temperature", "got -0.1"),
    "temperature 2.1": ({"temperature": 2.1}, "invalid_value", "temperature", "less than or equal to 2"),
    "temperature 1e400": ({"temperature": float("inf")}, "invalid_value", "temperature", "finite"),
    "temperature NaN": ({"temperature": float("nan")}, "invalid_value", "temperature", "finite"),
    "top_p 0": ({"top_p": 0}, "invalid_value", "top_p", "greater than 0"),
    "top_p 1.1": ({"top_p": 1.1}, "invalid_value", "top_p", "less than or equal to 1"),
    "seed 2**63": ({"seed": 2**63}, "invalid_value", "seed", "less than"),
    "seed text": ({"seed": "1"}, "invalid_type", "seed", "integer"),
    "stop empty": ({"stop": ""}, "invalid_value", "stop", "at least 1 character"),
    "stop with an empty string": ({"stop": ["a", ""]}, "invalid_value", "stop[1]", "at least 1 character"),
    "five stops": ({"stop": ["a"] * 5}, "invalid_value", "stop", "at most 4"),
    "stop number": ({"stop": 5}, "invalid_type", "stop", "array"),
    "stream text": ({"stream": "yes"}, "invalid_type", "stream", "boolean"),
    "stream_options without stream": (
        {"stream_options": {}},
        "invalid_value",
        "stream_options",
        "stream is true",
    ),
    "user number": ({"user": 5}, "invalid_type", "user", "string"),
    "metadata of numbers": ({"metadata": {"a": 1}}, "invalid_type", "metadata.a", "string"),
    "no messages": ({"messages": []}, "invalid_value", "messages", "at least 1 item"),
    "messages text": ({"messages": "hi"}, "invalid_type", "messages", "array"),
    "message text": ({"messages": ["hi"]}, "invalid_type", "messages[0]", "object"),
    "message without role": (
        {"messages": [{"content": "x"}]},
        "missing_required_parameter",
        "messages[0].role",
        "",
    ),
    "message without content": (
        {"messages": [USER, {"role": "user"}]},
        "missing_required_parameter",
        "messages[1].content",
        "required",
    ),
    "role robot": (
        {"messages": [{"role": "robot", "content": "x"}]},
        "invalid_value",
        "messages[0].role",
        "'robot'",
    ),
    "tool call without an id": (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}, USER]},
        "missing_required_parameter",
        "messages[0].tool_calls[0].id",
        "required",
    ),
    "content number": (
        {"messages": [{"role": "user", "content": 5}]},
        "invalid_type",
        "messages[0].content",
        "array",
    ),
    "part without type": (
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "missing_required_parameter",
        "messages[0].content[0].type",
        "required",
    ),
    "audio part": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "unsupported_content",
        "messages[0].content[0].type",
        "'text', 'image_url'",
    ),
    "text part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "missing_required_parameter",
        "messages[0].content[0].text",
        "required",
    ),
    "image in a system message": (
        {
            "messages": [
                {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
                USER,
            ]
        },
        "unsupported_content",
        "messages[0].content",
        "user messages",
    ),
    "unknown detail": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "z"}}]}
            ]
        },
        "invalid_value",
        "messages[0].content[0].image_url.detail",
        "'auto'",
    ),
    "model number": ({"model": 5}, "invalid_type", "model", "string"),
    "model empty": ({"model": ""}, "invalid_value", "model", "at least 1 character"),
    "text over the limit": (
        {"messages": [{"role": "user", "content": "x" * (1024 * 1024 + 1)}]},
        "context_length_exceeded",
        "messages",
        "the limit is 1048576",
    ),
}


def test_an_invalid_field_is_a_400_and_the_next_request_works(stack: Stack) -> None:
    for name, (fields, code, param, words) in WRONG_FIELDS.items():
        response = post_json(stack, {"model": MODEL, "messages": [USER], **fields})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, code, param), (name, error)
        assert error["type"] == "invalid_request_error", name
        assert words in error["message"], (name, error)
        assert error["request_id"] == response.headers["x-request-id"], name
        assert stack.works(), name


def test_a_missing_required_field_is_named(stack: Stack) -> None:
    for missing in ("model", "messages"):
        body = {"model": MODEL, "messages": [USER]}
        del body[missing]
        error = post_json(stack, body).json()["error"]
        assert (error["code"], error["param"]) == ("missing_required_parameter", missing)


NOT_JSON = {
    "nothing": b"",
    "half": b'{"model": "x", "mess',
    "single quotes": b"{'model': 'x'}",
    "unclosed arrays": b"[" * 100,
    "endless number": b'{"seed": ' + b"9" * 5_000 + b"}",
}


def test_invalid_json_is_a_400_and_the_next_request_works(stack: Stack) -> None:
    for name, body in NOT_JSON.items():
        response = post_raw(stack, body)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_json"), (name, error)
        assert "not valid JSON" in error["message"], name
        assert stack.works(), name


def test_json_that_is_not_an_object_is_a_400(stack: Stack) -> None:
    for body in (b"[]", b"5", b'"text"', b"null"):
        response = post_raw(stack, body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_type"), body


def test_other_content_types_are_rejected_so_that_foreign_pages_cannot_post(stack: Stack) -> None:
    body = json.dumps({"model": MODEL, "messages": [USER]}).encode()
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = post_raw(stack, body, media_type)
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert post_raw(stack, body, "application/json; charset=utf-8").status_code == 200


def test_a_boolean_is_not_accepted_as_a_number(stack: Stack) -> None:
    assert stack.chat(n=True).status_code == 400


def test_unknown_fields_are_ignored(stack: Stack) -> None:
    response = stack.chat(
        "say yes", librechat_extra={"a": [1]}, user="u", metadata={"k": "v"}, service_tier="auto"
    )
    assert text_of(response) == "yes"


def test_every_field_is_described_in_the_openapi_document(stack: Stack) -> None:
    document = stack.http.get("/openapi.json").json()
    schema = document["components"]["schemas"]["ChatRequest"]
    assert set(schema["properties"]) == {
        field.alias or name for name, field in ChatRequest.model_fields.items()
    }
    assert all(field.get("description") for field in schema["properties"].values())
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")


def test_sampling_parameters_reach_the_worker(stack: Stack) -> None:
    stack.chat("say x", temperature=0, top_p=0.5, max_tokens=7, stop=["a", "b"], seed=-5, ignore_eos=True)
    sampling = stack.worker.assignments[-1].job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.0, 0.5, 7)
    assert (sampling.stop, sampling.seed, sampling.ignore_eos) == (("a", "b"), -5, True)


def test_missing_sampling_parameters_have_openais_defaults_and_a_random_seed(stack: Stack) -> None:
    stack.chat("say x")
    stack.chat("say x", stop="one", max_completion_tokens=3)
    first, second = (assignment.job.sampling for assignment in stack.worker.assignments[-2:])
    assert (first.temperature, first.top_p, first.max_tokens, first.stop) == (1.0, 1.0, None, ())
    assert (second.max_tokens, second.stop) == (3, ("one",))
    assert first.seed != second.seed


def test_a_token_limit_beyond_the_context_is_reduced_to_the_context_length(stack: Stack) -> None:
    assert stack.chat("say x", max_tokens=2**31 - 1).status_code == 200
    assert stack.worker.assignments[-1].job.sampling.max_tokens == 4096


def test_an_unknown_model_is_a_404_that_lists_the_served_models(stack: Stack) -> None:
    response = stack.chat(model="gpt-4o")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert MODEL in error["message"]


def post_json(stack: Stack, body: Any) -> Any:
    return post_raw(stack, json.dumps(body).encode())


def post_raw(stack: Stack, body: bytes, media_type: str = "application/json") -> Any:
    return stack.http.post("/v1/chat/completions", content=body, headers={"content-type": media_type})
