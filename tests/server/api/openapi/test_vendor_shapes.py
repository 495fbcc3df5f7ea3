"""Real answers are what the types of the ``openai`` and ``anthropic`` packages say, read strictly.

Their clients forgive: a missing field reads as None, a wrong type stays as it is. Here both fail.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import anthropic.types
import openai.types
import pytest
from openai.types import chat, responses
from pydantic import TypeAdapter, ValidationError

from tests.server.api.openapi.test_answer_shapes import STREAMED
from tests.server.api.sse_lines import events_of
from tests.server.batch_kit import begin, store
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

# By route: the type of a whole answer, and of the data of an event.
TYPES: dict[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (chat.ChatCompletion, chat.ChatCompletionChunk),
    "/v1/completions": (openai.types.Completion, openai.types.Completion),
    "/v1/messages": (anthropic.types.Message, anthropic.types.RawMessageStreamEvent),
    "/v1/responses": (responses.Response, responses.ResponseStreamEvent),
}
# Null in OpenAI's own answers, too, though not in its types: why a text has ended, before it has; what is
# told of a prompt's first token.
NULLS = re.compile(r"choices\.0\.finish_reason|choices\.\d\.logprobs\.(token|top)_logprobs\.0")
ANSWERED = [(path, body) for path, body in STREAMED if "refuse" not in str(body) and "break" not in str(body)]


adapter = cache(TypeAdapter)  # they are large


def complaints(kind: Any, value: Any) -> list[str]:
    try:
        adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        found = [(".".join(map(str, each["loc"])), each) for each in error.errors()]
        is_text = kind is openai.types.Completion
        return [
            f"{place}: {each['msg']}"
            for place, each in found
            if not (is_text and each["input"] is None and NULLS.fullmatch(place))
        ]
    return []


@pytest.mark.parametrize(("path", "body"), ANSWERED, ids=str)
def test_a_whole_answer_is_of_its_vendors_type(stack: Stack, path: str, body: dict[str, Any]) -> None:
    assert complaints(TYPES[path][0], stack.http.post(path, json=body).json()) == []


@pytest.mark.parametrize(("path", "body"), ANSWERED, ids=str)
def test_each_event_is_of_its_vendors_type(stack: Stack, path: str, body: dict[str, Any]) -> None:
    answer = stack.http.post(path, json={**body, "stream": True})
    events = [data for _, data in events_of(answer) if data != "[DONE]"]
    assert [complaints(TYPES[path][1], event) for event in events] == [[]] * len(events)
    assert len(events) > 1


def test_what_else_openai_has_is_of_its_types(stack: Stack) -> None:
    http = stack.http
    failed = begin(http, b"no JSON")
    answers: list[tuple[Any, Any]] = [
        (
            openai.types.CreateEmbeddingResponse,
            http.post("/v1/embeddings", json={"model": MODEL, "input": "a"}),
        ),
        (openai.types.FileObject, store(http, b"x")),
        (openai.types.Model, http.get(f"/v1/models/{MODEL}")),
        (openai.types.Batch, http.get(f"/v1/batches/{failed['id']}")),
        (openai.types.FileDeleted, http.delete(f"/v1/files/{failed['input_file_id']}")),
    ]
    assert [complaints(kind, answer.json()) for kind, answer in answers] == [[]] * len(answers)
    counted = http.post(
        "/v1/messages/count_tokens", json={k: v for k, v in ANSWERED[0][1].items() if k != "n"}
    )
    assert complaints(anthropic.types.MessageTokensCount, counted.json()) == []


def test_a_missing_and_a_wrong_field_are_found(stack: Stack) -> None:
    answer = stack.http.get(f"/v1/models/{MODEL}").json()
    assert complaints(openai.types.Model, {**answer, "created": "1"})
    assert complaints(openai.types.Model, {k: v for k, v in answer.items() if k != "owned_by"})
