"""Limits on JSON texts before they are parsed, and requests that are parsed once, up to the first error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_server.api.anthropic.request import CountTokensRequest, MessagesRequest
from llava_server.api.batches.request import BatchLine, BatchRequest
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.stored_messages import ChatUpdate
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.embeddings.request import EmbeddingRequest
from llava_server.api.fields.base import RequestModel
from llava_server.api.json_limits import JsonLimits, JsonTooLarge, check_json
from llava_server.api.ollama.request import (
    EmbedRequest,
    GenerateRequest,
    LegacyEmbedRequest,
    OllamaChatRequest,
    PullRequest,
    ShowRequest,
)
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.tokenize.request import DetokenizeRequest, TokenizeRequest
from llava_server.operator.workers import LoadRequest
from pydantic import ValidationError
from pydantic_core import from_json

from tests.server.batch_requests import create_batch, read_results, wait_for_end
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

MODELS: list[type[RequestModel]] = [
    ChatRequest, CompletionRequest, CountTokensRequest, DetokenizeRequest, EmbedRequest, EmbeddingRequest,
    GenerateRequest, MessagesRequest, OllamaChatRequest, ResponseRequest, TokenizeRequest,
]  # fmt: skip
WITHOUT_LISTS: list[type[RequestModel]] = [
    BatchLine, BatchRequest, ChatUpdate, LegacyEmbedRequest, LoadRequest, PullRequest, ShowRequest,
]  # fmt: skip
UNLIMITED = 1 << 60
CHAT = "/v1/chat/completions"
MESSAGE = {"role": "user", "content": "say yes"}

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet='a"\\[]{},: \n\u00e9'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\[', max_size=3), inner),
    max_leaves=20,
)


def containers_in(value: Any) -> Iterator[Any]:
    if isinstance(value, list | dict):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers_in(inner)


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def is_within(text: bytes, **limits: int) -> bool:
    others = {"max_depth": UNLIMITED, "max_containers": UNLIMITED, "max_fields": UNLIMITED}
    try:
        check_json(text, JsonLimits(**{**others, "max_values": UNLIMITED, **limits}))
    except JsonTooLarge:
        return False
    return True


@given(value=JSON_VALUES, is_ascii=st.booleans())
def test_depth_containers_fields_and_values_are_counted_exactly(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii).encode()
    containers = list(containers_in(value))
    num_empty = sum(not container for container in containers)
    for name, number in {
        "max_depth": depth_of(value),
        "max_containers": len(containers),
        "max_fields": sum(len(each) for each in containers if isinstance(each, dict)),
        "max_values": sum(map(len, containers)) + num_empty,
    }.items():
        assert is_within(text, **{name: number}), name
        assert not is_within(text, **{name: number - 1}), name


def test_a_text_is_split_into_pieces_at_any_byte() -> None:
    value = {'\\"[': ['"', "\\", '\\\\"', {"a,": ["[{", "\\\\\\"]}]}
    text = json.dumps(value).encode()
    for num_spaces in range(65536 - len(text) - 1, 65537):
        padded = b" " * num_spaces + text
        assert is_within(padded, max_containers=4, max_fields=2, max_depth=4, max_values=8)
        for limits in ({"max_containers": 3}, {"max_fields": 1}, {"max_depth": 3}, {"max_values": 7}):
            assert not is_within(padded, **limits), (num_spaces, limits)


def test_strings_that_are_longer_than_a_piece_are_not_counted() -> None:
    for item in (b"[", b",", rb"\"", rb"\\", rb"\\\"", rb"[\"]", b'":"'):
        text = b'["' + item * 100_000 + b'"]'
        is_one_string = item != b'":"'
        assert is_within(text, max_depth=1, max_containers=1, max_fields=0, max_values=1) == is_one_string


@given(text=st.text(alphabet='"\\[]{},:1 ').map(str.encode))
def test_text_that_is_not_json_never_fails_in_another_way(text: bytes) -> None:
    is_within(text, max_depth=3, max_containers=5, max_fields=5, max_values=5)


def lists_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the list schemas in pydantic's schema of a type."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for name, inner in schema.items():
            if name != "metadata":
                yield from lists_of(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from lists_of(inner)


@pytest.mark.parametrize("model", [*MODELS, *WITHOUT_LISTS])
def test_validation_stops_at_the_first_invalid_item_of_every_list(model: type[RequestModel]) -> None:
    lists = list(lists_of(model.__pydantic_core_schema__))
    assert all(schema.get("fail_fast") for schema in lists), lists
    assert bool(lists) != (model in WITHOUT_LISTS)


def test_a_request_with_many_invalid_items_has_one_error() -> None:
    for fields in (
        {"messages": [{"role": "user", "content": [{}] * 256}] * 1024},
        {"messages": [{"role": "user", "content": [5] * 256}] * 1024},
        {"messages": [5] * 1024},
        {"messages": [MESSAGE], "allowed_token_ids": ["x"] * 100_000},
    ):
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate({"model": "m", **fields})
        assert caught.value.error_count() == 1


BASE = {"model": "m", "messages": [MESSAGE], "max_tokens": 1, "prompt": "x", "input": "x"}
EXAMPLES: list[Any] = [
    None, True, 0, 1, -1, 2**70, 1.0, 1.5, math.inf, "", "a", "1", "auto", "2024-01-01", [], {}, [1], [1, 2],
    ["a"], [1.5], [[1]], [{"a": 1}], {"a": 1}, {"1": 2.5}, [{"type": "text", "text": "a"}], {"type": "text"},
]  # fmt: skip
SAME_MESSAGE = {"model_attributes_type": "dict_type", "model_type": "dict_type"}  # "should be an object"


def outcome(validate: Callable[[], RequestModel]) -> str | list[Any]:
    """Return the fields of a valid request, or the types and locations of the errors."""
    try:
        return repr(validate())
    except ValidationError as error:
        return [(SAME_MESSAGE.get(each["type"], each["type"]), each["loc"]) for each in error.errors()]


@pytest.mark.parametrize("model", [*MODELS, *WITHOUT_LISTS])
def test_validating_parsed_json_is_the_same_as_validating_its_text(model: type[RequestModel]) -> None:
    """Pydantic's strict mode accepts JSON, but not Python objects, for tuples, bytes and dates."""
    for name, field in model.model_fields.items():
        for value in EXAMPLES:
            text = json.dumps({**BASE, field.alias or name: value})
            as_objects = outcome(partial(model.model_validate, from_json(text)))
            assert as_objects == outcome(partial(model.model_validate_json, text)), text


TOO_LARGE = {
    "depth": (b"[" * 200 + b"]" * 200, "is nested too deeply. The limit is 128 levels"),
    "containers": (b"[" + b"[]," * 16_384 + b"1]", "contains more than 16384 objects and arrays"),
    "fields": (b"{" + b'"a":1,' * 65_536 + b'"a":1}', "contains more than 65536 fields"),
    "values": (b"[" + b"1," * 1_200_000 + b"1]", "values. Send fewer"),
}
PATHS = [
    CHAT, "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/completions", "/v1/embeddings",
    "/v1/batches", "/tokenize", "/detokenize", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings",
    "/api/show", "/api/pull", "/v1/responses/input_tokens", "/v1/chat/completions/chatcmpl-1",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_route_rejects_json_above_the_limits_in_its_own_format(stack: Stack, path: str) -> None:
    for name, (value, message) in TOO_LARGE.items():
        content = b'{"model": "m", "unknown": ' + value + b"}"
        response = stack.http.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413, (name, response.text[:200])
        body = response.json()
        error = body if path.startswith("/api/") else body["error"]
        text = error["error"] if path.startswith("/api/") else error["message"]
        assert error["code"] == "request_too_large", name
        assert text.startswith("The request body ") and message in text, text
        if path.startswith("/v1/messages"):
            assert (body["type"], error["type"]) == ("error", "request_too_large")
    assert stack.works()


def test_a_request_within_the_limits_is_accepted(stack: Stack) -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    parts = [{"type": "text", "text": " "}] * 255
    messages = [{"role": "user", "content": parts}] * 30 + [MESSAGE]
    response = stack.http.post(CHAT, json={"model": MODEL, "messages": messages, "unknown": [deep] * 20})
    assert response.status_code == 200, response.text


def test_a_line_of_a_batch_is_limited_like_a_request(stack: Stack) -> None:
    def line(custom_id: str, value: bytes) -> bytes:
        body = b'{"model": "%s", "messages": [%s], "x": %s}' % (
            MODEL.encode(), json.dumps(MESSAGE).encode(), value,
        )  # fmt: skip
        return b'{"custom_id": "%s", "method": "POST", "url": "%s", "body": %s}' % (
            custom_id.encode(), CHAT.encode(), body,
        )  # fmt: skip

    value, message = TOO_LARGE["containers"]
    failed = create_batch(stack.http, line("a", b"1") + b"\n" + line("b", value))
    [issue] = failed["errors"]["data"]
    assert (failed["status"], issue["code"], issue["line"]) == ("failed", "request_too_large", 2)
    assert issue["message"].startswith("The line ") and message in issue["message"]

    # The file is accepted, because another endpoint could have a higher limit.
    value, message = b"[" + b"1," * 400_000 + b"1]", "contains more than 327680 values"
    batch = wait_for_end(stack.http, create_batch(stack.http, line("a", b"1") + b"\n" + line("b", value)))
    assert (batch["request_counts"]["completed"], batch["request_counts"]["failed"]) == (1, 1)
    [error] = read_results(stack.http, batch["error_file_id"])
    assert (error["custom_id"], error["response"]["status_code"]) == ("b", 413)
    assert message in error["response"]["body"]["error"]["message"]


def test_a_schema_in_a_string_is_limited_like_a_body(stack: Stack) -> None:
    for value, message in TOO_LARGE.values():
        response = stack.chat(guided_json=value.decode())
        assert (response.status_code, response.json()["error"]["param"]) == (400, "guided_json")
        assert message in response.json()["error"]["message"]
    for text in ("[" * 100, "nope"):
        response = stack.chat(guided_json=text)
        assert "is a string that is not valid JSON" in response.json()["error"]["message"]


def test_the_stored_items_of_a_conversation_are_limited_in_total(stack: Stack) -> None:
    parts = [{"type": "input_text", "text": " "}] * 256
    items = [{"role": "user", "content": parts}] * 40
    previous: str | None = None
    for _ in range(2):
        body = {"model": MODEL, "input": [*items, MESSAGE], "previous_response_id": previous}
        response = stack.http.post("/v1/responses", json=body)
        assert response.status_code == 200, response.text
        previous = response.json()["id"]
    body = {"model": MODEL, "input": "say no", "previous_response_id": previous}
    response = stack.http.post("/v1/responses", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "previous_response_id")
    assert "The conversation contains more than 16384 objects" in response.json()["error"]["message"]
