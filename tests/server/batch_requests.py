"""Helpers to create input files and batches, wait for batches, and read their results."""

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

__all__ = [
    "ENDED",
    "KEYS",
    "completions",
    "create_batch",
    "input_file",
    "read_results",
    "request_line",
    "tenant_clients",
    "upload",
    "wait_for_end",
]

ENDED = ("completed", "failed", "expired", "cancelled")
KEYS = ("alice-key-1", "bob-key-22")


@contextlib.contextmanager
def tenant_clients(stack: Stack) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    """Yield two clients with different API keys."""
    alice, bob = ({"authorization": f"Bearer {key}"} for key in KEYS)
    with (
        httpx2.Client(base_url=stack.server.url, headers=alice, timeout=scaled(30)) as first,
        httpx2.Client(base_url=stack.server.url, headers=bob, timeout=scaled(30)) as second,
    ):
        yield first, second


def request_line(custom_id: str, text: str, **fields: Any) -> dict[str, Any]:
    """Return one request line for an input file. ``text`` is a command for the scripted worker."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def input_file(*requests: dict[str, Any]) -> bytes:
    return "\n".join(json.dumps(request) for request in requests).encode()


def upload(http: httpx2.Client, data: bytes, **fields: str) -> httpx2.Response:
    form = {"purpose": "batch", **fields}
    return http.post("/v1/files", data=form, files={"file": ("requests.jsonl", data)})


def create_batch(http: httpx2.Client, data: bytes, endpoint: str = "/v1/chat/completions") -> dict[str, Any]:
    """Upload an input file and return the created batch."""
    file_id = upload(http, data).json()["id"]
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
    response = http.post("/v1/batches", json=body)
    assert response.status_code == 200, response.text
    batch: dict[str, Any] = response.json()
    return batch


def wait_for_end(http: httpx2.Client, batch: dict[str, Any], *, timeout_s: float = 30.0) -> dict[str, Any]:
    """Wait until the batch has ended and return it."""

    def find_ended() -> dict[str, Any] | None:
        current: dict[str, Any] = http.get(f"/v1/batches/{batch['id']}").json()
        return current if current["status"] in ENDED else None

    return wait_until(find_ended, timeout_s=timeout_s)


def read_results(http: httpx2.Client, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of an output or error file."""
    if file_id is None:
        return []
    file = http.get(f"/v1/files/{file_id}/content").text
    return [json.loads(line) for line in file.split("\n") if line]


def completions(http: httpx2.Client, batch: dict[str, Any]) -> dict[str, str]:
    """Return the texts in the output file, keyed by ``custom_id``. Fails on duplicate IDs."""
    lines = read_results(http, batch["output_file_id"])
    texts = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines
    }
    assert len(texts) == len(lines)
    return texts
