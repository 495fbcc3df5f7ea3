"""Responses of /livez, /readyz, /metrics and /v1/models in every state of the system."""

from __future__ import annotations

import httpx2
import pytest
import redis
from llava_server import lifespan
from llava_wire.errors import QueueUnavailable
from prometheus_client.parser import text_string_to_metric_families

from tests.machine_speed import scaled
from tests.server.conftest import OwnStack, Serve, Stack, Valkey
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until


def test_server_is_ready_once_a_worker_has_registered(stack: Stack) -> None:
    response = stack.http.get("/readyz")
    assert response.json() == {"status": "ready", "models": [MODEL], "kernels": {MODEL: []}, "warnings": []}
    assert stack.http.get("/livez").json() == {"status": "ok"}


def readyz(url: str) -> tuple[int, list[str]]:
    """Return the status of /readyz and the reasons why the server is not ready."""
    response = httpx2.get(f"{url}/readyz", timeout=scaled(30))
    return response.status_code, response.json().get("reasons", [])


def test_server_without_a_worker_is_live_but_not_ready(serve: Serve) -> None:
    server = serve()
    wait_until(lambda: readyz(server.url) == (503, ["No worker has registered yet."]))
    assert httpx2.get(f"{server.url}/livez", timeout=scaled(30)).status_code == 200
    assert httpx2.get(f"{server.url}/v1/models", timeout=scaled(30)).json()["data"] == []


def test_server_is_ready_as_soon_as_a_worker_has_registered(
    serve: Serve, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifespan, "_REGISTRY_REFRESH_S", 3600.0)
    server = serve(auth=False)
    for path in ("/readyz", "/health"):
        assert httpx2.get(f"{server.url}{path}", timeout=scaled(30)).status_code == 503
    worker = ScriptedWorker(queue_url).start()
    try:
        for path in ("/readyz", "/health"):
            assert httpx2.get(f"{server.url}{path}", timeout=scaled(30)).status_code == 200
    finally:
        worker.stop()


def test_health_checks_respond_while_redis_does_not(valkey: Valkey, serve: Serve) -> None:
    server = serve(redis_url=f"unix://{valkey.socket}")
    wait_until(lambda: readyz(server.url) == (503, ["No worker has registered yet."]))
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.client_pause(3_600_000)  # milliseconds
    # Without a limit, the response would wait until the call to Redis fails, and report its failure.
    assert readyz(server.url) == (503, ["No worker has registered yet."])


def test_draining_server_is_live_but_not_ready_and_rejects_requests(own_stack: OwnStack) -> None:
    stack = own_stack()
    stack.server.services.shutdown.begin()
    assert stack.http.get("/readyz").json()["reasons"] == ["The server is shutting down."]
    assert stack.http.get("/livez").status_code == 200
    response = stack.chat("say yes")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert response.headers["retry-after"] == "1"


def test_draining_server_serves_requests_during_the_grace_period(own_stack: OwnStack) -> None:
    stack = own_stack(drain_grace_s=60.0)
    stack.server.services.shutdown.begin()
    assert stack.http.get("/readyz").status_code == 503
    assert stack.works()


def test_models_are_listed_and_described(stack: Stack) -> None:
    listed = stack.http.get("/v1/models").json()
    assert listed["object"] == "list"
    model = listed["data"][0]
    assert (model["id"], model["object"], model["num_workers"]) == (MODEL, "model", 1)
    assert model["max_model_len"] == 4096
    assert stack.http.get(f"/v1/models/{MODEL}").json() == model
    assert stack.http.get("/v1/models/org/unknown").json()["error"]["code"] == "model_not_found"


def samples(stack: Stack) -> dict[str, float]:
    """Return the values of all metrics that are unlabeled or belong to the model, keyed by name."""
    text = stack.http.get("/metrics").text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels in ({}, {"model_name": MODEL}, {"model_name": MODEL, "finished_reason": "stop"})
    }


def test_a_response_updates_the_metrics_that_vllm_dashboards_use(stack: Stack) -> None:
    before = samples(stack)
    assert stack.works()
    after = samples(stack)

    def change(name: str) -> float:
        return after[f"llava_{name}"] - before.get(f"llava_{name}", 0.0)

    assert change("request_success_total") == 1
    assert change("prompt_tokens_total") == 11
    assert change("generation_tokens_total") == 2
    assert change("time_to_first_token_seconds_count") == 1
    assert change("e2e_request_latency_seconds_count") == 1
    assert change("inter_token_latency_seconds_count") == 1
    assert after["llava_queue_up"] == 1
    assert after["llava_num_workers"] == 1
    assert {"llava_num_requests_running", "llava_num_requests_waiting"} <= after.keys()


def test_requests_cannot_create_new_series(stack: Stack) -> None:
    def count() -> int:
        return sum(
            len(family.samples) for family in text_string_to_metric_families(stack.http.get("/metrics").text)
        )

    stack.chat(model="warm-up")
    stack.http.get("/warm-up")
    before = count()
    for number in range(20):
        stack.chat(model=f"model-{number}")
        stack.http.get(f"/path-{number}")
    assert count() == before


def test_a_refresh_clears_the_queue_error(own_stack: OwnStack) -> None:
    health = own_stack().server.services.health
    assert health.problem() is None
    health.report("read", QueueUnavailable("test", kind="TEST"))
    assert wait_until(lambda: health.problem() is None)
