"""No API key can take more than its share: priorities, open requests, body bytes and readers of a result."""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx2
import pytest
import redis
from llava_server.generation.followers import MAX_READERS

from tests.machine_speed import scaled
from tests.security.raw_http import is_closed
from tests.server.api_key_cli import ApiKeyCli, bearer, chat_with_key
from tests.server.conftest import OwnStack, Serve, Stack, connect, text_of
from tests.server.queue_order import order_served
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until


@pytest.mark.parametrize("fields", [{"service_tier": "priority"}, {"priority": -1}])
def test_a_flood_of_requests_for_high_priority_does_not_overtake_another_key(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, fields: dict[str, Any]
) -> None:
    flooding, other = api_key_cli.create(), api_key_cli.create()
    order = order_served(own_stack(auth=True), (flooding, "flood", 30), (other, "late", 1), **fields)
    assert order.index("late") <= 1


def num_calls(url: str, command: str) -> int:
    with redis.Redis.from_url(url) as client:
        stats = client.info("commandstats").get(f"cmdstat_{command}", {})
    return int(stats.get("calls", 0))


def repeat(stack: Stack) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}]}
    return stack.http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "one-key"})


def test_a_response_has_few_readers_and_they_read_nothing_from_redis(
    own_stack: OwnStack, queue_url: str
) -> None:
    stack = own_stack()
    controller = stack.server.services.controller
    with ThreadPoolExecutor(MAX_READERS) as pool:
        readers = [pool.submit(repeat, stack)]
        wait_until(lambda: stack.worker.assignments)
        readers += [pool.submit(repeat, stack) for _ in range(MAX_READERS - 1)]
        wait_until(lambda: controller.num_open == MAX_READERS)
        reads = num_calls(queue_url, "lrange")  # one for each read of a log, also when a worker pulls a job
        for _ in range(32):
            rejected = repeat(stack)
            assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "1")
            assert f"the limit is {MAX_READERS}" in rejected.json()["error"]["message"]
        for _ in range(8):
            assert stack.works()
        assert num_calls(queue_url, "lrange") == reads + 8
        stack.worker.release.set()
        assert [text_of(each.result()) for each in readers] == ["begun done"] * MAX_READERS
    assert len(stack.worker.assignments) == 8 + 1


def test_few_of_many_simultaneous_requests_on_another_controller_become_readers(
    own_stack: OwnStack, serve: Serve
) -> None:
    stack = own_stack()
    other = serve(auth=False)
    num_requests, num_readers = 4 * MAX_READERS, MAX_READERS - 1  # the reader of the log counts, too
    with ThreadPoolExecutor(num_requests + 1) as pool, httpx2.Client(base_url=other.url, timeout=60) as http:
        first = pool.submit(repeat, stack)
        wait_until(lambda: stack.worker.assignments)
        there = Stack(other, stack.worker, http)
        requests = [pool.submit(repeat, there) for _ in range(num_requests)]
        wait_until(lambda: sum(request.done() for request in requests) == num_requests - num_readers)
        assert {request.result().status_code for request in requests if request.done()} == {429}
        assert repeat(there).status_code == 429
        stack.worker.release.set()
        responses = [each.result() for each in (first, *requests)]
    assert [text_of(each) for each in responses if each.status_code == 200] == ["begun done"] * MAX_READERS


def test_a_reader_of_a_response_continues_its_stream_when_the_first_client_disconnects(
    own_stack: OwnStack,
) -> None:
    stack = own_stack(orphan_grace_s=0.1)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    controller = stack.server.services.controller
    headers = {"Idempotency-Key": "one-key"}
    with ThreadPoolExecutor(2) as pool:
        with stack.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as first:
            lines = first.iter_lines()
            wait_until(lambda: "begun" in next(lines))
            reader = pool.submit(repeat, stack)
            wait_until(lambda: controller.num_open == 2)
        wait_until(lambda: controller.num_open == 1)
        assert stack.works()
        stack.worker.release.set()
        assert text_of(reader.result()) == "begun done"


KEY, OTHER_KEY = "key-of-tenant-a", "key-of-tenant-b"
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def upload(stack: Stack, key: str, num_bytes: int, *, num_sent: int) -> socket.socket:
    """Send the headers of a request and the first bytes of its body."""
    connection = connect(stack)
    head = REQUEST + f"Authorization: Bearer {key}\r\nContent-Length: {num_bytes}\r\n\r\n".encode()
    connection.sendall(head + b" " * num_sent)
    return connection


def test_a_key_with_too_many_open_requests_is_rejected_while_another_key_is_served(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    stack = own_stack(api_keys=(KEY,), max_tenant_requests=3)
    url = stack.server.url
    flooding, other = KEY, api_key_cli.create("--max-open-requests", "1")
    with ThreadPoolExecutor(4) as pool:
        held = [pool.submit(chat_with_key, url, flooding, "hold") for _ in range(3)]
        wait_until(lambda: len(stack.worker.assignments) == 3)
        job_id = stack.worker.assignments[0].job.job_id
        for path in ("/v1/files", "/v1/models", f"/v1/chat/completions/{job_id}?stream=true"):
            rejected = httpx2.get(f"{url}{path}", headers=bearer(flooding), timeout=scaled(60))
            assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "1"), path
            assert "limit of 3 open requests" in rejected.json()["error"]["message"]
        assert chat_with_key(url, flooding).status_code == 429
        assert chat_with_key(url, other).status_code == 200
        held.append(pool.submit(chat_with_key, url, other, "hold"))
        wait_until(lambda: len(stack.worker.assignments) == 5)
        assert "limit of 1 open requests" in chat_with_key(url, other).json()["error"]["message"]
        stack.worker.release.set()
        assert {each.result().status_code for each in held} == {200}
    assert chat_with_key(url, flooding).status_code == 200


def _has_assignments(stack: Stack, number: int) -> bool:
    return len(stack.worker.assignments) == number


def test_keys_with_open_requests_leave_some_to_other_keys(own_stack: OwnStack) -> None:
    keys = [f"sk-test-{number}" for number in range(4)]
    stack = own_stack(api_keys=tuple(keys), max_open_requests=16, max_tenant_requests=8)
    url = stack.server.url
    held: list[Future[httpx2.Response]] = []
    with ThreadPoolExecutor(16) as pool:
        for key, num_held in zip(keys, (8, 4, 2), strict=False):
            held.extend(pool.submit(chat_with_key, url, key, "hold") for _ in range(num_held))
            wait_until(partial(_has_assignments, stack, len(held)))
            rejected = chat_with_key(url, key)
            assert rejected.status_code == 429
            assert f"limit of {num_held} open requests" in rejected.json()["error"]["message"]
        assert chat_with_key(url, keys[-1]).status_code == 200
        stack.worker.release.set()
        assert {each.result().status_code for each in held} == {200}


def test_a_key_whose_uploads_are_too_large_is_rejected_while_another_key_is_served(
    own_stack: OwnStack,
) -> None:
    stack = own_stack(api_keys=(KEY, OTHER_KEY), max_tenant_inflight_body_mb=1)
    url = stack.server.url
    with ExitStack() as sockets:

        def is_rejected() -> bool:
            """Begin a new upload, because the previous one was rejected if a chat was received before it."""
            sockets.pop_all().close()
            sockets.enter_context(upload(stack, KEY, 1 << 20, num_sent=700_000))
            return chat_with_key(url, KEY, "x" * 500_000).status_code == 429

        wait_until(is_rejected)
        rejected = chat_with_key(url, KEY, "x" * 500_000)
        assert "the limit of 1048576 bytes in total" in rejected.json()["error"]["message"]
        assert rejected.headers["retry-after"] == "1"
        assert chat_with_key(url, OTHER_KEY, "x" * 500_000).status_code == 200
        assert chat_with_key(url, KEY).status_code == 200
        alone = chat_with_key(
            url, KEY, "x" * (1 << 20)
        )  # exceeds the limit by itself, so a retry cannot succeed
        assert (alone.status_code, alone.json()["error"]["code"]) == (413, "request_too_large")
        assert "retry-after" not in alone.headers
    wait_until(lambda: chat_with_key(url, KEY, "x" * 500_000).status_code == 200)


def test_slow_uploads_of_one_key_are_replaced_without_affecting_another_key(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=(KEY, OTHER_KEY), max_tenant_requests=4)
    with ExitStack() as sockets:
        others = sockets.enter_context(upload(stack, OTHER_KEY, 100, num_sent=1))
        uploads = [sockets.enter_context(upload(stack, KEY, 100, num_sent=1)) for _ in range(4)]
        wait_until(lambda: stack.server.metric("llava_num_open_requests") == 5)
        wait_until(lambda: chat_with_key(stack.server.url, KEY).status_code == 200)
        assert uploads[0].recv(4096).startswith(b"HTTP/1.1 503 ")
        assert not is_closed(others)
        assert not any(map(is_closed, uploads[1:]))
