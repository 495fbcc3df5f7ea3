"""Requests rejected by the queue, and the order in which workers receive accepted requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.api_key_cli import ApiKeyCli, bearer, chat_with_key
from tests.server.conftest import OwnStack, text_of
from tests.server.queue_order import order_served
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


@pytest.mark.parametrize("is_same_key", [False, True])
def test_many_requests_of_one_key_delay_only_that_key(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, is_same_key: bool
) -> None:
    busy = api_key_cli.create()
    other = busy if is_same_key else api_key_cli.create()
    order = order_served(own_stack(auth=True), (busy, "early", 30), (other, "late", 1))
    assert order.index("late") == 30 if is_same_key else order.index("late") <= 1


# For each maximum priority of a key: the requested priority, and the priority and tier that are used.
GRANTS: dict[str, list[tuple[dict[str, Any], int, str]]] = {
    "1": [
        ({}, 1, "priority"),
        ({"service_tier": "auto"}, 1, "priority"),
        ({"service_tier": "default"}, 0, "default"),
        ({"service_tier": "flex"}, -1, "flex"),
        ({"priority": -1}, 1, "priority"),
        ({"priority": 1}, -1, "flex"),
    ],
    "0": [
        ({}, 0, "default"),
        ({"service_tier": "priority"}, 0, "default"),
        ({"service_tier": "fast"}, 0, "default"),
        ({"service_tier": "flex"}, -1, "flex"),
        ({"priority": -1}, 0, "default"),
    ],
    "-1": [
        ({}, -1, "flex"),
        ({"service_tier": "default"}, -1, "flex"),
        ({"service_tier": "priority"}, -1, "flex"),
    ],
}


@pytest.mark.parametrize("maximum", GRANTS)
def test_a_request_can_lower_but_not_exceed_the_priority_of_its_key(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, maximum: str
) -> None:
    stack = own_stack(auth=True)
    key = api_key_cli.create("--priority", maximum)
    http = httpx2.Client(base_url=stack.server.url, headers=bearer(key), timeout=scaled(60))
    for fields, priority, tier in GRANTS[maximum]:
        chat = chat_with_key(stack.server.url, key, store=True, **fields).json()
        assert chat["service_tier"] == tier, fields
        assert stack.worker.assignments[-1].job.priority == priority, fields
        assert http.get(f"/v1/chat/completions/{chat['id']}").json()["service_tier"] == tier
        streamed = chat_with_key(stack.server.url, key, stream=True, **fields).text
        assert streamed.count(f'"service_tier":"{tier}"') == streamed.count('"service_tier"') > 0
        if "priority" in fields:
            continue
        for options in ({}, {"background": True}):
            body = {"model": MODEL, "input": "say yes", **options, **fields}
            response = http.post("/v1/responses", json=body).json()
            assert response["service_tier"] == tier
            assert http.get(f"/v1/responses/{response['id']}").json()["service_tier"] == tier
    http.close()


BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "say yes"},
    "/v1/embeddings": {"input": "yes"},
    "/tokenize": {"prompt": "yes"},
    "/v1/messages": {"messages": [{"role": "user", "content": "say yes"}], "max_tokens": 9},
    "/api/generate": {"prompt": "say yes", "raw": True},
}


def test_requests_to_all_apis_have_the_priority_of_their_key(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    stack = own_stack(auth=True)
    for maximum in (1, -1):
        headers = bearer(api_key_cli.create("--priority", str(maximum)))
        for path, body in BODIES.items():
            url = f"{stack.server.url}{path}"
            response = httpx2.post(url, json={"model": MODEL, **body}, headers=headers, timeout=scaled(60))
            assert response.status_code == 200, response.text
            assert stack.worker.assignments[-1].job.priority == maximum, path


@pytest.mark.parametrize(("weight", "maximum", "minimum"), [("4", 9, 7), ("1", 6, 4)])
def test_a_keys_weight_is_its_share_of_a_busy_model(
    own_stack: OwnStack, api_key_cli: ApiKeyCli, weight: str, maximum: int, minimum: int
) -> None:
    light, heavy = api_key_cli.create(), api_key_cli.create("--weight", weight)
    order = order_served(own_stack(auth=True), (light, "light", 20), (heavy, "heavy", 20))
    assert minimum <= order[:10].count("heavy") <= maximum
