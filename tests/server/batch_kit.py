"""What tests of batches share: files of lines, waiting for the end, and reading what came of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx2

from tests.machine_speed import scaled
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

__all__ = ["ENDED", "KEYS", "begin", "content", "ended", "holders", "line", "lines", "results", "store"]

ENDED = ("completed", "failed", "expired", "cancelled")
KEYS = ("alice-key-1", "bob-key-22")


@contextlib.contextmanager
def holders(stack: Stack) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    """Two clients, each with a key of its own."""
    alice, bob = ({"authorization": f"Bearer {key}"} for key in KEYS)
    with (
        httpx2.Client(base_url=stack.server.url, headers=alice, timeout=scaled(30)) as first,
        httpx2.Client(base_url=stack.server.url, headers=bob, timeout=scaled(30)) as second,
    ):
        yield first, second


def line(custom_id: str, text: str, **fields: Any) -> dict[str, Any]:
    """One request, whose answer the scripted worker takes from its text."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def lines(*requests: dict[str, Any]) -> bytes:
    return "\n".join(json.dumps(request) for request in requests).encode()


def store(http: httpx2.Client, data: bytes, **fields: str) -> httpx2.Response:
    form = {"purpose": "batch", **fields}
    return http.post("/v1/files", data=form, files={"file": ("requests.jsonl", data)})


def begin(http: httpx2.Client, data: bytes) -> dict[str, Any]:
    """The batch, as its creation told it."""
    file_id = store(http, data).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    response = http.post("/v1/batches", json=body)
    assert response.status_code == 200, response.text
    batch: dict[str, Any] = response.json()
    return batch


def ended(http: httpx2.Client, batch: dict[str, Any], *, timeout_s: float = 30.0) -> dict[str, Any]:
    """The batch, once it has ended."""

    def look() -> dict[str, Any] | None:
        seen: dict[str, Any] = http.get(f"/v1/batches/{batch['id']}").json()
        return seen if seen["status"] in ENDED else None

    found: dict[str, Any] = wait_until(look, timeout_s=timeout_s)
    return found


def content(http: httpx2.Client, file_id: str | None) -> list[dict[str, Any]]:
    """The file's lines."""
    if file_id is None:
        return []
    return [json.loads(each) for each in http.get(f"/v1/files/{file_id}/content").text.splitlines()]


def results(http: httpx2.Client, batch: dict[str, Any]) -> dict[str, str]:
    """The answers by custom_id; each once."""
    written = content(http, batch["output_file_id"])
    answers = {
        each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in written
    }
    assert len(answers) == len(written)
    return answers
