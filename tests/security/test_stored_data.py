"""Requests that refer to stored data use no more memory and CPU time than requests that contain the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.server.conftest import Stack, new_queue_url, running_stack
from tests.server.scripted_worker import MODEL

TEXT = "x" * 400_000


@pytest.fixture(scope="module")
def stack(valkey_socket: Path) -> Iterator[Stack]:
    with running_stack(new_queue_url(valkey_socket), max_body_mb=1, max_text_kb=4096) as stack:
        yield stack


def num_scripts(stack: Stack) -> int:
    """Return the number of scripts that Redis has run."""
    url = stack.server.services.settings.redis_url.get_secret_value()
    with redis.Redis.from_url(url) as client:
        stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval", "fcall"))


def created(stack: Stack, text: str, **fields: Any) -> str:
    """Store a response and return its ID."""
    messages = [{"role": "user", "content": content} for content in (text, "say yes")]
    response = stack.http.post("/v1/responses", json={"model": MODEL, "input": messages, **fields})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def reference(response_id: str) -> dict[str, str]:
    return {"type": "item_reference", "id": response_id.replace("resp_", "msg_") + "_i0"}


def count(stack: Stack, items: list[Any], **fields: Any) -> Any:
    return stack.http.post("/v1/responses/input_tokens", json={"model": MODEL, "input": items, **fields})


def test_a_response_is_read_once_for_all_references_to_its_items(stack: Stack) -> None:
    item = reference(created(stack, "short"))
    before = num_scripts(stack)
    assert count(stack, [item]).status_code == 200
    single = num_scripts(stack) - before
    assert count(stack, [item] * 500).status_code == 200
    assert num_scripts(stack) - before - single < single + 50  # also those of background tasks


def test_references_to_more_data_than_a_request_body_may_have_are_rejected(stack: Stack) -> None:
    item = reference(created(stack, TEXT))
    assert count(stack, [item] * 2).status_code == 200
    response = count(stack, [item] * 1000)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")
    assert "The referenced items have 400" in response.json()["error"]["message"]
    others = [reference(created(stack, TEXT + str(number))) for number in range(2)]
    response = count(stack, [item, *others])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")
    assert "The responses whose items are referenced have" in response.json()["error"]["message"]


def test_a_conversation_with_more_data_than_a_request_body_may_have_is_rejected(stack: Stack) -> None:
    previous = None
    for number in range(3):
        previous = created(stack, TEXT[:250_000] + str(number), previous_response_id=previous)
    response = count(stack, [{"role": "user", "content": "more"}], previous_response_id=previous)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "previous_response_id")
    assert "The responses of the conversation have" in response.json()["error"]["message"]
