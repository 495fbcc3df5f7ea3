"""Requests that refer to stored data use no more memory and CPU time than requests that contain the data."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from tests.processes import ControllerProcess, started
from tests.server.batch_requests import KEYS
from tests.server.conftest import OwnStack, Stack, new_queue_url, running_stack
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

MAX_STALL_CPU_S = 0.12  # for a response of 5 MB
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


def test_stored_data_that_is_being_sent_counts_toward_the_limit_of_the_api_key(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=",".join(KEYS), max_tenant_inflight_body_mb=2, max_text_kb=4096)
    stack.server.set_send_buffer(1 << 14)
    url, loaded = stack.server.url, stack.server.services.loaded_data
    key, other_key = ({"authorization": f"Bearer {key}"} for key in KEYS[:2])
    with httpx2.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(1) as pool:
        messages = [{"role": "user", "content": content} for content in (TEXT * 3, "say yes")]
        body = {"model": MODEL, "input": messages}
        paths = {}
        for headers in (key, other_key):
            response = http.post("/v1/responses", json=body, headers=headers)
            paths[headers["authorization"]] = f"/v1/responses/{response.json()['id']}/input_items"
        path = paths[key["authorization"]]
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            slow.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            slow.sendall(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: {key['authorization']}\r\n\r\n".encode()
            )
            assert slow.recv(1)
            waiting = pool.submit(http.get, path, headers=key)
            wait_until(lambda: loaded.num_waiting == 1)
            other = http.get(paths[other_key["authorization"]], headers=other_key)
            assert other.status_code == 200
            assert not waiting.done()
        assert waiting.result().status_code == 200
    assert loaded.num_waiting == 0


@pytest.fixture(scope="module")
def controller(valkey_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """A controller with a worker that runs in this process."""
    url = new_queue_url(valkey_socket)
    controller = ControllerProcess(url, tmp_path_factory.mktemp("stored_data") / "log")
    worker = ScriptedWorker(url).start()
    try:
        with started(controller):
            yield controller
    finally:
        worker.stop()


def test_large_outputs_are_built_stored_and_sent_without_stalling_the_event_loop(
    controller: ControllerProcess,
) -> None:
    fields = {"n": 16, "logprobs": True, "top_logprobs": 20, "store": True}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "count 300"}], **fields}
    with httpx2.Client(base_url=controller.url, timeout=120) as http:
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        path = f"/v1/chat/completions/{response.json()['id']}"
        stored = http.get(path)
        assert stored.json()["choices"] == response.json()["choices"]
        [listed] = http.get("/v1/chat/completions").json()["data"]
        assert listed == stored.json()
    assert controller.metric("llava_event_loop_stall_cpu_seconds") < MAX_STALL_CPU_S
