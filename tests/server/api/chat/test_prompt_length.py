"""Prompts that are certainly too long are rejected before they are stored in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Stack, new_queue_url, running_stack
from tests.server.scripted_worker import MODEL

TOKEN_BYTES = 4
MAX_LENGTH = 4095 * TOKEN_BYTES  # the context has 4,096 tokens, and one of them is for the output
CHAT = {"messages": [{"role": "user", "content": "TEXT"}]}
REQUESTS: list[tuple[str, dict[str, Any], str | None]] = [
    ("/v1/chat/completions", CHAT, "messages"),
    ("/v1/chat/completions", {**CHAT, "stream": True}, "messages"),
    ("/v1/completions", {"prompt": "TEXT"}, "prompt"),
    ("/v1/responses", {"input": "TEXT"}, "input"),
    ("/v1/responses", {"input": "TEXT", "background": True}, "input"),
]


@pytest.fixture(scope="module")
def shared_stack(valkey_socket: Path) -> Iterator[Stack]:
    with running_stack(new_queue_url(valkey_socket), max_token_bytes=TOKEN_BYTES) as stack:
        yield stack


def filled(value: Any, text: str) -> Any:
    """Replace "TEXT" in a JSON value."""
    if isinstance(value, dict):
        return {key: filled(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, text) for each in value]
    return text if value == "TEXT" else value


def long_text(length: int) -> str:
    return "say " + "x" * (length - 4)


@pytest.mark.parametrize(("path", "body", "param"), REQUESTS)
def test_a_prompt_that_is_certainly_too_long_never_reaches_a_worker(
    stack: Stack, path: str, body: dict[str, Any], param: str
) -> None:
    response = stack.http.post(path, json={"model": MODEL, **filled(body, long_text(MAX_LENGTH + 1))})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert error["message"] == (
        "The prompt has at least 4096 tokens. The model's context length is 4096 tokens for prompt and "
        "output. Shorten the text."
    )
    assert stack.works()
    assert len(stack.worker.assignments) == 1


@pytest.mark.parametrize(
    ("length", "fields"), [(MAX_LENGTH, {}), (MAX_LENGTH + 1, {"truncate_prompt_tokens": 100})]
)
def test_a_prompt_that_may_fit_is_passed_to_a_worker(
    stack: Stack, length: int, fields: dict[str, Any]
) -> None:
    assert stack.chat(long_text(length), **fields).status_code == 200


def test_a_long_text_can_be_tokenized(stack: Stack) -> None:
    body = {"model": MODEL, "prompt": long_text(MAX_LENGTH + 1)}
    response = stack.http.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
