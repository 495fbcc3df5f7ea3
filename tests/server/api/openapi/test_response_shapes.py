"""Complete and streamed responses of every route match the OpenAPI document and contain no other fields.

They also match the types of the ``openai`` and ``anthropic`` packages in strict mode. Strict mode is
necessary because these packages otherwise treat missing fields as None and accept values of the wrong type.
``Stack.http`` checks the responses in all server tests against the document (``conftest.py``). The tests here
cover each route and its streams at least once.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import anthropic.types
import httpx2
import openai.types
import pytest
from openai.types import chat as chat_types
from openai.types import responses as response_types
from pydantic import TypeAdapter, ValidationError

from tests.machine_speed import scaled
from tests.server.api.chat.test_tools import CITY, NOW, PARIS
from tests.server.api.sse_lines import events_of
from tests.server.batch_requests import create_batch, input_file, request_line, upload, wait_for_end
from tests.server.conftest import Serve, Stack
from tests.server.document_check import violations, violations_of
from tests.server.openapi_document import DOCUMENT
from tests.server.scripted_worker import MODEL

FUNCTION = {"name": "weather", "parameters": CITY}
CLOCK = {"name": "clock"}
TOOLS = [{"type": "function", "function": each} for each in (FUNCTION, CLOCK)]
ITEMS = [{"type": "function", **each} for each in (FUNCTION, CLOCK)]
SKILLS = [{"name": "weather", "input_schema": CITY}, {"name": "clock", "input_schema": {"type": "object"}}]
CALL = f"say {PARIS}{NOW}"
USAGE = {"include_usage": True}


def chat(text: str = "say one two", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def message(text: str = "say one two", **fields: Any) -> dict[str, Any]:
    return {"max_tokens": 9, **chat(text), **fields}


def plain(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "say one two", **fields}


def response(question: str = "say one two", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": question, **fields}


LOGPROBS = "message.output_text.logprobs"
FORMAT = {"type": "json_schema", "name": "scene", "schema": CITY, "strict": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}

# Routes and requests that cover all variants of the responses. Each is sent with and without ``stream``.
GENERATING: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", chat()),
    ("/v1/chat/completions", chat("count 2", n=3, service_tier="flex")),
    ("/v1/chat/completions", chat(logprobs=True, top_logprobs=2)),
    ("/v1/chat/completions", chat(CALL, tools=TOOLS)),
    ("/v1/chat/completions", chat(CALL, tools=TOOLS, logprobs=True)),
    ("/v1/chat/completions", chat("refuse context_length_exceeded")),
    ("/v1/chat/completions", chat("break internal_error")),
    ("/v1/completions", plain()),
    ("/v1/completions", plain(prompt=["say a", "count 2"], n=2, logprobs=2, echo=True)),
    ("/v1/completions", plain(prompt="break worker_crashed")),
    ("/v1/messages", message()),
    ("/v1/messages", message("count 2", stop_sequences=["x"])),
    ("/v1/messages", message(f"say so {PARIS}{NOW}", tools=SKILLS)),
    ("/v1/messages", message("refuse deadline_exceeded")),
    ("/v1/messages", message("break insufficient_memory")),
    ("/v1/responses", response()),
    ("/v1/responses", response("count 2", metadata={"run": "7"}, user="u", instructions="Be brief.")),
    ("/v1/responses", response(include=[LOGPROBS], top_logprobs=2, text={"format": FORMAT})),
    ("/v1/responses", response(f"say so {PARIS}{NOW}", tools=ITEMS, tool_choice="required")),
    ("/v1/responses", response("refuse internal_error")),
    ("/v1/responses", response("break internal_error")),
]
OLLAMA = [
    chat(),
    chat(logprobs=True, top_logprobs=2),
    chat(CALL, tools=TOOLS),
    chat("refuse context_length_exceeded"),
    chat("break internal_error"),
]
OTHER: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages/count_tokens", chat()),
    ("/v1/embeddings", {"model": MODEL, "input": ["a", "abc"]}),
    ("/v1/embeddings", {"model": MODEL, "input": "a", "encoding_format": "base64"}),
    ("/tokenize", {"model": MODEL, "prompt": "a"}),
    ("/detokenize", {"model": MODEL, "tokens": [65]}),
    ("/v1/responses", response(background=True)),
    ("/v1/chat/completions", chat(stream=True, stream_options=USAGE)),
    ("/v1/chat/completions", chat(stream=True, stream_options=CONTINUOUS)),
    ("/v1/completions", plain(stream=True, stream_options=USAGE)),
    ("/v1/completions", plain(stream=True, stream_options=CONTINUOUS)),
    *(("/api/chat", {**body, "stream": is_stream}) for body in OLLAMA for is_stream in (True, False)),
    *(("/api/generate", plain(stream=is_stream)) for is_stream in (True, False)),
    ("/api/chat", {"model": MODEL}),
    ("/api/generate", {"model": MODEL}),
    ("/api/embed", {"model": MODEL, "input": ["a", "abc"]}),
    ("/api/embeddings", {"model": MODEL, "prompt": "a"}),
    ("/api/show", {"model": MODEL}),
    ("/api/pull", {"model": MODEL}),
    ("/api/pull", {"model": MODEL, "stream": False}),
]
ROUTES = sorted({path for path, _ in [*GENERATING, *OTHER]})

# The vendor's types for a complete response and for an event's data, keyed by route.
VENDOR_TYPES: dict[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (chat_types.ChatCompletion, chat_types.ChatCompletionChunk),
    "/v1/completions": (openai.types.Completion, openai.types.Completion),
    "/v1/messages": (anthropic.types.Message, anthropic.types.RawMessageStreamEvent),
    "/v1/responses": (response_types.Response, response_types.ResponseStreamEvent),
}
# Fields that are null in OpenAI's responses, although OpenAI's types do not allow null: the finish reason of
# an unfinished text, and the log probability of the first prompt token.
NULLS = re.compile(r"choices\.0\.finish_reason|choices\.\d\.logprobs\.(token|top)_logprobs\.0")


@cache  # building an adapter is expensive
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def vendor_errors(kind: Any, value: Any) -> list[str]:
    """Return the errors from validating a value against a vendor's type."""
    try:
        adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        found = [(".".join(map(str, detail["loc"])), detail) for detail in error.errors()]
        may_be_null = kind is openai.types.Completion
        return [
            f"{location}: {detail['msg']}"
            for location, detail in found
            if not (may_be_null and detail["input"] is None and NULLS.fullmatch(location))
        ]
    return []


@pytest.mark.parametrize("route", VENDOR_TYPES)
def test_a_generated_response_matches_the_document_and_the_vendors_types(stack: Stack, route: str) -> None:
    whole_type, event_type = VENDOR_TYPES[route]
    for body in [body for path, body in GENERATING if path == route]:
        whole = stack.http.post(route, json=body)
        stream = stack.http.post(route, json={**body, "stream": True})
        assert violations(whole) == violations(stream) == [], body
        if "refuse" in str(body) or "break" in str(body):
            continue
        assert vendor_errors(whole_type, whole.json()) == [], body
        events = [data for _, data in events_of(stream) if data != "[DONE]"]
        assert [error for event in events for error in vendor_errors(event_type, event)] == [], body
        assert len(events) > 1, body


def test_other_responses_match_the_document(stack: Stack) -> None:
    for path, body in OTHER:
        assert violations(stack.http.post(path, json=body)) == [], (path, body)


@pytest.mark.parametrize("path", ROUTES)
def test_an_error_matches_the_document(stack: Stack, path: str) -> None:
    for body in (b"{", b'{"model": 7}', b'{"model": "other"}'):
        for headers in ({"content-type": "application/json"}, {"content-type": "text/plain"}):
            response = stack.http.post(path, content=body, headers=headers)
            assert response.status_code in (400, 404, 415), body
            assert violations(response) == [], body


def test_other_responses_match_the_vendors_types(stack: Stack) -> None:
    http = stack.http
    failed = create_batch(http, b"no JSON")
    count = {"model": MODEL, "messages": chat()["messages"]}
    responses: list[tuple[Any, httpx2.Response]] = [
        (
            openai.types.CreateEmbeddingResponse,
            http.post("/v1/embeddings", json={"model": MODEL, "input": "a"}),
        ),
        (openai.types.FileObject, upload(http, b"x")),
        (openai.types.Model, http.get(f"/v1/models/{MODEL}")),
        (openai.types.Batch, http.get(f"/v1/batches/{failed['id']}")),
        (openai.types.FileDeleted, http.delete(f"/v1/files/{failed['input_file_id']}")),
        (anthropic.types.MessageTokensCount, http.post("/v1/messages/count_tokens", json=count)),
    ]
    for kind, response in responses:
        assert vendor_errors(kind, response.json()) == [], kind


def test_a_missing_field_and_a_wrong_type_violate_a_vendors_type(stack: Stack) -> None:
    model = stack.http.get(f"/v1/models/{MODEL}").json()
    assert vendor_errors(openai.types.Model, {**model, "created": "1"})
    assert vendor_errors(openai.types.Model, {k: v for k, v in model.items() if k != "owned_by"})


def test_stored_responses_match_the_document(stack: Stack) -> None:
    http = stack.http
    key = {"Idempotency-Key": "stored-as-documented"}
    job_id = http.post("/v1/chat/completions", json=chat(), headers=key).json()["id"]
    own_id = http.post("/v1/responses", json=response(CALL, tools=ITEMS)).json()["id"]
    conflict = http.post("/v1/chat/completions", json=chat("say other"), headers=key)
    received = [conflict]
    for path in (f"/v1/chat/completions/{job_id}", f"/v1/responses/{own_id}"):
        received += [http.get(path), http.get(path, params={"stream": "true", "starting_after": 1})]
        received += [http.post(f"{path}/cancel")] if "responses" in path else []
        received += [http.delete(path), http.get(path)]
    assert [each.status_code for each in received] == [409, 200, 200, 200, 404, 200, 200, 200, 200, 404]
    assert [violations(each) for each in received] == [[]] * len(received)


def test_files_batches_models_and_health_match_the_document(stack: Stack) -> None:
    http = stack.http
    batch = wait_for_end(
        http,
        create_batch(
            http, input_file(request_line("a", "say yes"), request_line("b", "refuse internal_error"))
        ),
    )
    failed = create_batch(http, b"no JSON")
    file_id = upload(http, b"x").json()["id"]
    received = [
        upload(http, b"x"),
        upload(http, b"x", purpose="other"),
        *(
            http.get(f"/v1/batches{rest}")
            for rest in ("", "?limit=1", f"/{batch['id']}", f"/{failed['id']}", "/x")
        ),
        http.post(f"/v1/batches/{batch['id']}/cancel"),
        *(
            http.get(f"/v1/files{rest}")
            for rest in ("", "?purpose=none", f"/{file_id}", f"/{file_id}/content", "/x")
        ),
        http.delete(f"/v1/files/{file_id}"),
        *(http.get(path) for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/models/x")),
        *(http.get(path) for path in ("/livez", "/readyz", "/metrics")),
        *(http.get(f"/api/{name}") for name in ("tags", "ps", "version")),
    ]
    assert [violations(each) for each in received] == [[]] * len(received)
    assert (batch["status"], failed["status"]) == ("completed", "failed")


def test_the_readiness_response_of_an_unready_server_matches_the_document(serve: Serve) -> None:
    with httpx2.Client(base_url=serve().url, timeout=scaled(30)) as http:
        response = http.get("/readyz")
    assert (response.status_code, violations(response)) == (503, [])


def test_every_documented_response_has_a_schema() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for status, documented in operation["responses"].items():
                for media_type, content in documented["content"].items():
                    is_bytes = media_type in ("text/plain", "application/octet-stream")
                    assert is_bytes or "$ref" in str(content["schema"]), (path, method, status, media_type)


CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "system_fingerprint": None,
    "service_tier": "default",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "total_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
}


def paths_of(value: Any, *steps: Any) -> list[tuple[Any, ...]]:
    """Return the paths of all objects in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path for step, each in inner for path in paths_of(each, *steps, step)]
    return [steps, *found] if isinstance(value, dict) else found


def test_added_missing_and_null_fields_are_detected_in_every_object() -> None:
    schema = {"$ref": "#/components/schemas/ChatCompletion"}
    assert violations_of(CHAT, schema) == []
    for path in paths_of(CHAT):
        for change in ("add", "drop", "null"):
            wrong = copy.deepcopy(CHAT)
            target: Any = wrong
            for step in path:
                target = target[step]
            first = next(iter(target))
            if change == "add":
                target["x_new"] = 1
            elif change == "drop":
                del target[first]
            else:
                target[first] = None
            assert violations_of(wrong, schema) != [], (path, change)


def test_undocumented_headers_and_statuses_are_detected(stack: Stack) -> None:
    response = stack.http.get("/v1/models")
    response.headers["x-new"] = "1"
    assert violations(response) == ["header x-new is not in the document"]
    response = stack.http.get("/v1/models")
    response.status_code = 418
    assert violations(response) == ["status 418 is not in the document"]
