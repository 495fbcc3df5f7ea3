"""What operators and clients see while Redis rejects commands: /readyz, metrics, logs and 503 responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
import redis
from llava_server.metrics import Metrics
from llava_server.operator.server import create_admin_app
from llava_server.queue_health import QueueHealth
from llava_wire.errors import QueueUnavailable

from tests.machine_speed import scaled
from tests.server.api_key_cli import ApiKeyCli
from tests.server.conftest import Serve, Server, Valkey, running_stack
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

TEXT = "Redis is unavailable: NOREPLICAS Not enough good replicas to write"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}


@contextmanager
def without_replicas(valkey: Valkey) -> Iterator[None]:
    """Make the primary reject every write with NOREPLICAS. Reads succeed."""
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            yield
        finally:
            client.config_set("min-replicas-to-write", 0)


def admin_reasons(server: Server) -> list[str]:
    """Return the reasons in the response of /readyz on the admin port."""

    async def read() -> list[str]:
        transport = httpx2.ASGITransport(app=create_admin_app(server.services))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            reasons: list[str] = (await http.get("/readyz")).json()["reasons"]
            return reasons

    return asyncio.run(read())


def test_an_outage_is_visible_everywhere_and_ends_without_a_restart(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="llava_server.queue_health")
    with running_stack(f"unix://{valkey.socket}") as stack:
        with without_replicas(valkey):
            wait_until(lambda: stack.http.get("/readyz").status_code == 503)
            reasons = stack.http.get("/readyz").json()["reasons"]
            assert reasons == ["The job queue is unavailable (NOREPLICAS)."]
            [reason] = admin_reasons(stack.server)
            assert reason.startswith(TEXT)
            assert stack.server.metric("llava_queue_up") == 0
            wait_until(lambda: stack.server.metric("llava_redis_errors_total", kind="NOREPLICAS") >= 3)
            response = stack.chat("say yes")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable")
            assert response.headers["retry-after"]
            assert stack.http.get("/livez").status_code == 200
        wait_until(lambda: stack.http.get("/readyz").status_code == 200)
        assert stack.server.metric("llava_queue_up") == 1
        wait_until(stack.works)
    messages = [record.getMessage() for record in caplog.records if "queue_health" in record.name]
    assert len(messages) == 2, messages
    assert messages[0].startswith(TEXT)
    assert messages[1].startswith("the job queue is available again after ")


def test_an_unknown_model_or_key_is_never_a_client_error_during_an_outage(
    valkey: Valkey, serve: Serve
) -> None:
    url = f"unix://{valkey.socket}"
    key = ApiKeyCli(url).create()
    with without_replicas(valkey):
        server = serve(redis_url=url, auth=True)  # has never received a heartbeat
        with httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}) as http:
            for response in (http.post("/v1/chat/completions", json=BODY), http.get(f"/v1/models/{MODEL}")):
                assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable")
                assert response.headers["retry-after"]
            valkey.kill()
            wait_until(lambda: server.services.api_keys._is_store_unavailable)
            response = http.get("/v1/models", headers={"authorization": "Bearer not-cached"})
            assert response.status_code == 503
            assert http.get("/v1/models").status_code == 200
            valkey.start()
    worker = ScriptedWorker(url).start()
    try:
        wait_until(lambda: server.services.health.is_settled, "the end of the outage")
        with httpx2.Client(base_url=server.url, timeout=scaled(30)) as http:
            headers = {"authorization": "Bearer unknown"}
            assert http.get("/v1/models", headers=headers).status_code == 401
    finally:
        worker.stop()


def test_each_kind_of_error_is_logged_once_per_outage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="llava_server.queue_health")
    health = QueueHealth(Metrics())
    for _ in range(2):
        for _ in range(3):
            health.report("read", QueueUnavailable("busy", kind="BUSY"))
            health.report("write", QueueUnavailable("disk", kind="MISCONF"))
        health.report("read", None)
        assert health.problem() == "The job queue is unavailable (MISCONF)."
        assert not health.is_available("write")
        health.report("write", None)
        assert health.problem() is None
        assert not health.is_settled
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["busy", "disk"] * 2


def test_the_queue_is_unavailable_until_it_has_been_read_and_written() -> None:
    health = QueueHealth(Metrics())
    health.report("read", None)
    assert health.problem() == "The connection to the job queue has not been checked yet."
    health.report("write", None)
    assert health.problem() is None
    assert health.is_settled
