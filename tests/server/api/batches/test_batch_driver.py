"""Batch processing: what delays requests (limits, missing workers, revoked keys) or ends batches early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing

import httpx2
import pytest
import redis
from llava_server.middleware.auth import key_digest, tenant_of
from llava_wire.redis.keys import PREFIX
from llava_wire.stores.api_keys import ApiKey, ApiKeyStore, KeyLimits

from tests.machine_speed import scaled
from tests.server.batch_requests import (
    KEYS,
    completions,
    create_batch,
    input_file,
    read_results,
    request_line,
    wait_for_end,
)
from tests.server.conftest import OwnStack, Serve, Stack, Valkey, running_stack
from tests.server.scripted_worker import ScriptedWorker
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def tenant(own_stack: OwnStack) -> Iterator[tuple[Stack, httpx2.Client]]:
    """A stack and a client whose API key becomes valid when ``add_key`` stores it."""
    stack = own_stack(api_keys="some-other-key", batch_parallel=2)
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    with httpx2.Client(base_url=stack.server.url, headers=headers, timeout=scaled(30)) as http:
        yield stack, http


async def add_key(url: str, **limits: int) -> str:
    """Store the client's API key and return its digest."""
    digest = key_digest(KEYS[0])
    async with aclosing(ApiKeyStore(url)) as store:
        await store.add(ApiKey(digest=digest, name="tenant", created_at=1.0, limits=KeyLimits(**limits)))
    return digest


async def test_the_job_limit_of_a_key_applies_to_its_batches(
    tenant: tuple[Stack, httpx2.Client], queue_url: str
) -> None:
    stack, http = tenant
    await add_key(queue_url, max_jobs=1)
    wait_until(lambda: http.get("/v1/batches").status_code == 200)
    batch = create_batch(
        http,
        input_file(request_line("slow", "hold"), request_line("a", "say yes"), request_line("b", "say yes")),
    )
    wait_until(
        lambda: "hold" in [assignment.job.messages[-1].parts[0] for assignment in stack.worker.assignments]
    )
    with redis.Redis.from_url(queue_url) as client:
        (tenant_key,) = client.scan_iter(f"{PREFIX}tenant:*")
        assert client.hlen(tenant_key) == 1
    stack.worker.release.set()
    batch = wait_for_end(http, batch, timeout_s=60)
    assert completions(http, batch) == {"slow": "begun done", "a": "yes", "b": "yes"}


async def test_no_more_lines_run_after_the_key_is_revoked(
    tenant: tuple[Stack, httpx2.Client], queue_url: str
) -> None:
    stack, http = tenant
    digest = await add_key(queue_url)
    wait_until(lambda: http.get("/v1/batches").status_code == 200)
    batch = create_batch(
        http, input_file(*(request_line(str(n), "hold") for n in range(2)), request_line("last", "say yes"))
    )
    wait_until(lambda: len(stack.worker.assignments) == 2)
    async with aclosing(ApiKeyStore(queue_url)) as store:
        await store.remove(digest)
    wait_until(lambda: not stack.server.services.api_keys.is_active(tenant_of(digest)))
    stack.worker.release.set()
    name = f"{PREFIX}batch:{batch['id']}"
    with redis.Redis.from_url(queue_url) as client:
        wait_until(lambda: client.hget(name, "completed") == b"2")
        client.hset(name, "ends", 1)  # simulates the end of the 24-hour window
        wait_until(lambda: client.hget(name, "state") == b"expired")
    assert [assignment.job.messages[-1].parts[0] for assignment in stack.worker.assignments] == ["hold"] * 2


def test_lines_wait_for_a_worker(serve: Serve, queue_url: str) -> None:
    worker = ScriptedWorker(queue_url).start()
    server = serve(auth=False)
    with httpx2.Client(base_url=server.url, timeout=scaled(30)) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)
        worker.stop()
        wait_until(lambda: server.services.registry.num_workers("scripted") == 0)
        batch = create_batch(http, input_file(request_line("a", "say yes")))
        wait_until(lambda: http.get(f"/v1/batches/{batch['id']}").json()["status"] == "in_progress")
        assert http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["failed"] == 0
        worker = ScriptedWorker(queue_url).start()
        try:
            assert completions(http, wait_for_end(http, batch)) == {"a": "yes"}
        finally:
            worker.stop()


def test_a_batch_that_exceeds_the_output_limit_ends_with_the_results_so_far(own_stack: OwnStack) -> None:
    stack = own_stack(max_batch_output_mb=1, batch_parallel=1)
    long = "x" * 600_000
    batch = wait_for_end(
        stack.http,
        create_batch(stack.http, input_file(*(request_line(str(n), f"say {long}") for n in range(3)))),
    )
    assert list(completions(stack.http, batch)) == ["0"]
    errors = read_results(stack.http, batch["error_file_id"])
    assert [each["error"]["code"] for each in errors] == ["batch_output_full"] * 2


def test_a_batch_without_its_input_file_fails(own_stack: OwnStack) -> None:
    stack = own_stack()
    running = create_batch(stack.http, input_file(request_line("a", "hold")))
    wait_until(lambda: stack.worker.assignments)
    # This batch has to wait because a tenant's batches run one after another.
    batch = create_batch(stack.http, input_file(request_line("a", "say yes")))
    stack.http.delete(f"/v1/files/{batch['input_file_id']}")
    stack.worker.release.set()
    assert wait_for_end(stack.http, batch)["status"] == "failed"
    assert wait_for_end(stack.http, running)["status"] == "completed"


def test_the_driver_survives_the_loss_of_the_queue(valkey: Valkey) -> None:
    with running_stack(f"unix://{valkey.socket}") as stack:
        create_batch(stack.http, input_file(request_line("a", "hold")))
        wait_until(lambda: stack.worker.assignments)
        valkey.kill()
        stack.worker.release.set()
        wait_until(lambda: stack.http.get("/readyz").status_code == 503)
        valkey.start()  # restarts empty: the batch is lost, but the driver keeps running
        wait_until(lambda: stack.http.get("/readyz").status_code == 200)
        wait_until(lambda: stack.works())
        batch = create_batch(stack.http, input_file(request_line("b", "say yes")))
        assert wait_for_end(stack.http, batch)["status"] == "completed"
