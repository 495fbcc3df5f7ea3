"""No API key can take more than its share: priorities, open requests, body bytes and readers of a result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import redis
from llava_server.generation.followers import MAX_READERS

from tests.server.api_key_cli import ApiKeyCli
from tests.server.conftest import OwnStack, Serve, Stack, text_of
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
        readers = [pool.submit(repeat, stack) for _ in range(MAX_READERS)]
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


def test_readers_of_a_response_on_another_controller_share_one_reader_of_its_log(
    own_stack: OwnStack, serve: Serve, queue_url: str
) -> None:
    stack = own_stack()
    other = serve(auth=False)
    services = other.services
    with ThreadPoolExecutor(MAX_READERS) as pool, httpx2.Client(base_url=other.url, timeout=60) as http:
        first = pool.submit(repeat, stack)
        wait_until(lambda: stack.worker.assignments)
        there = Stack(other, stack.worker, http)
        readers = [pool.submit(repeat, there) for _ in range(MAX_READERS - 1)]
        wait_until(lambda: services.controller.num_open == MAX_READERS - 1)
        assert repeat(there).status_code == 429
        stack.worker.release.set()
        assert [text_of(each.result()) for each in (first, *readers)] == ["begun done"] * MAX_READERS


def test_a_reader_of_a_response_continues_its_stream_when_the_first_client_disconnects(
    own_stack: OwnStack, queue_url: str
) -> None:
    stack = own_stack(orphan_grace_s=0.1)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    controller = stack.server.services.controller
    headers = {"Idempotency-Key": "one-key"}
    with ThreadPoolExecutor(2) as pool:
        with stack.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as first:
            next(line for line in first.iter_lines() if "begun" in line)
            reader = pool.submit(repeat, stack)
            wait_until(lambda: controller.num_open == 2)
        wait_until(lambda: controller.num_open == 1)
        assert stack.works()
        stack.worker.release.set()
        assert text_of(reader.result()) == "begun done"
