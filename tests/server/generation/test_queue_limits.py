"""Requests rejected by the queue, and the order in which workers receive accepted requests."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import httpx2
import pytest

from tests.server.api_key_cli import ApiKeyCli, chat_with_key
from tests.server.conftest import OwnStack, Stack, text_of
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

KEY, OTHER_KEY = "key-of-tenant-a", "key-of-tenant-b"


def test_a_full_queue_returns_503_with_a_retry_time(own_stack: OwnStack) -> None:
    stack = own_stack(max_queued=1)
    stack.worker.stop_pulling()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stack.chat, "say first")
        wait_until(lambda: stack.server.services.controller.num_open == 1)
        response = wait_until(
            lambda: response if (response := stack.chat("say second")).status_code == 503 else None
        )
        error = response.json()["error"]
        assert (error["code"], error["type"]) == ("queue_full", "server_error")
        assert int(response.headers["retry-after"]) >= 1
        assert error["retry_after_ms"] > 0
        stack.worker = ScriptedWorker(stack.worker.url).start()
        assert text_of(waiting.result()) == "first"


def test_a_tenant_at_its_job_limit_gets_429_while_others_are_served(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=(KEY, OTHER_KEY), max_tenant_jobs=1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(chat_with_key, stack.server.url, KEY, "hold")
        wait_until(lambda: stack.worker.assignments)
        response = chat_with_key(stack.server.url, KEY)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        assert chat_with_key(stack.server.url, OTHER_KEY).status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200


def test_the_job_limit_of_one_key_does_not_affect_another_key(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    stack = own_stack(auth=True)
    limited, other = api_key_cli.create("--max-jobs", "1"), api_key_cli.create()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(chat_with_key, stack.server.url, limited, "hold")
        wait_until(lambda: stack.worker.assignments)
        rejected = chat_with_key(stack.server.url, limited)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "the limit is 1" in rejected.json()["error"]["message"]
        assert chat_with_key(stack.server.url, other).status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200


def test_a_model_without_a_live_worker_returns_503_and_is_still_listed(own_stack: OwnStack) -> None:
    stack = own_stack()
    stack.worker.stop()
    wait_until(lambda: stack.server.services.registry.num_workers(MODEL) == 0)
    response = stack.chat("say yes")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_worker"
    assert response.headers["retry-after"] == "5"
    listed = stack.http.get("/v1/models").json()["data"]
    assert [(model["id"], model["num_workers"]) for model in listed] == [(MODEL, 0)]
    assert stack.http.get("/readyz").status_code == 200


def order_served(stack: Stack, *batches: tuple[str, str, int]) -> list[str]:
    """Return the words in the order in which a worker receives the requests that contain them.

    Each batch is (key, word, number of requests). All requests in a batch are queued before those in the next
    batch.
    """
    stack.worker.stop_pulling()
    controller = stack.server.services.controller
    with ThreadPoolExecutor(64) as pool:
        waiting: list[Future[httpx2.Response]] = []
        for key, word, number in batches:
            requests = range(number)
            waiting += [pool.submit(chat_with_key, stack.server.url, key, f"say {word}") for _ in requests]
            wait_until(partial(lambda total: controller.num_open == total, len(waiting)))
        stack.worker = ScriptedWorker(stack.worker.url).start()
        assert {response.result().status_code for response in waiting} == {200}
    texts = [str(assignment.job.messages[0].parts[0]) for assignment in stack.worker.assignments]
    return [text.removeprefix("say ") for text in texts]


@pytest.mark.parametrize("is_same_key", [False, True])
def test_many_requests_of_one_key_delay_only_that_key(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, is_same_key: bool
) -> None:
    busy = api_key_cli.create()
    other = busy if is_same_key else api_key_cli.create()
    order = order_served(own_stack(auth=True), (busy, "early", 30), (other, "late", 1))
    assert order.index("late") == 30 if is_same_key else order.index("late") <= 1


def test_a_keys_priority_is_sent_with_its_jobs(own_stack: OwnStack, api_key_cli: ApiKeyCli) -> None:
    stack = own_stack(auth=True)
    for options in ((), ("--priority", "1"), ("--priority", "-1")):
        key = api_key_cli.create(*options)
        assert chat_with_key(stack.server.url, key, max_tokens=10).status_code == 200
    assert [assignment.job.priority for assignment in stack.worker.assignments] == [0, 1, -1]


@pytest.mark.parametrize(("weight", "maximum", "minimum"), [("4", 9, 7), ("1", 6, 4)])
def test_a_keys_weight_is_its_share_of_a_busy_model(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, weight: str, maximum: int, minimum: int
) -> None:
    light, heavy = api_key_cli.create(), api_key_cli.create("--weight", weight)
    order = order_served(own_stack(auth=True), (light, "light", 20), (heavy, "heavy", 20))
    assert minimum <= order[:10].count("heavy") <= maximum
