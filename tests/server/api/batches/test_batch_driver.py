"""What holds a line up: its key's limits, a missing worker, a revoked key; and what ends a batch for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2
import pytest
import redis
from llava_server.middleware.auth import key_digest, tenant_of
from llava_wire.redis.keys import PREFIX
from llava_wire.stores.api_keys import ApiKey, ApiKeyStore, KeyLimits

from tests.machine_speed import scaled
from tests.server.batch_kit import KEYS, begin, content, ended, line, lines, results
from tests.server.conftest import Serve, Stack, Valkey, running_stack
from tests.server.scripted_worker import ScriptedWorker
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def alice(own_stack: Callable[..., Stack]) -> Iterator[tuple[Stack, httpx2.Client]]:
    """A stack, and a client whose key is on the ring, not in the settings."""
    stack = own_stack(api_keys="some-other-key", batch_parallel=2)
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    with httpx2.Client(base_url=stack.server.url, headers=headers, timeout=scaled(30)) as http:
        yield stack, http


async def let_in(url: str, **limits: int) -> str:
    """Puts the key on the ring; its digest."""
    ring, digest = ApiKeyStore(url), key_digest(KEYS[0])
    await ring.add(ApiKey(digest=digest, name="alice", created_at=1.0, limits=KeyLimits(**limits)))
    await ring.aclose()
    return digest


async def test_a_key_with_one_job_at_once_has_one_of_its_batch_at_once(
    alice: tuple[Stack, httpx2.Client], queue_url: str
) -> None:
    stack, http = alice
    await let_in(queue_url, max_jobs=1)
    wait_until(lambda: http.get("/v1/batches").status_code == 200)
    batch = begin(http, lines(line("slow", "hold"), line("a", "say yes"), line("b", "say yes")))
    wait_until(lambda: "hold" in [each.job.messages[-1].parts[0] for each in stack.worker.assignments])
    with redis.Redis.from_url(queue_url) as client:
        (tenant_key,) = client.scan_iter(f"{PREFIX}tenant:*")
        assert client.hlen(tenant_key) == 1
    stack.worker.release.set()
    batch = ended(http, batch, timeout_s=60)
    assert results(http, batch) == {"slow": "begun done", "a": "yes", "b": "yes"}


async def test_of_a_revoked_key_nothing_more_runs(alice: tuple[Stack, httpx2.Client], queue_url: str) -> None:
    stack, http = alice
    digest = await let_in(queue_url)
    wait_until(lambda: http.get("/v1/batches").status_code == 200)
    batch = begin(http, lines(*(line(str(n), "hold") for n in range(2)), line("last", "say yes")))
    wait_until(lambda: len(stack.worker.assignments) == 2)
    ring = ApiKeyStore(queue_url)
    await ring.remove(digest)
    await ring.aclose()
    wait_until(lambda: not stack.server.services.api_keys.is_active(tenant_of(digest)))
    stack.worker.release.set()
    name = f"{PREFIX}batch:{batch['id']}"
    with redis.Redis.from_url(queue_url) as client:
        wait_until(lambda: client.hget(name, "completed") == b"2")
        client.hset(name, "ends", 1)  # as if its day were over
        wait_until(lambda: client.hget(name, "state") == b"expired")
    assert [each.job.messages[-1].parts[0] for each in stack.worker.assignments] == ["hold"] * 2


def test_lines_wait_for_a_worker_and_are_answered_when_it_comes(serve: Serve, queue_url: str) -> None:
    worker = ScriptedWorker(queue_url).start()
    server = serve(auth=False)
    with httpx2.Client(base_url=server.url, timeout=scaled(30)) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)
        worker.stop()
        wait_until(lambda: server.services.registry.num_workers("scripted") == 0)
        batch = begin(http, lines(line("a", "say yes")))
        wait_until(lambda: http.get(f"/v1/batches/{batch['id']}").json()["status"] == "in_progress")
        assert http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["failed"] == 0
        worker = ScriptedWorker(queue_url).start()
        try:
            assert results(http, ended(http, batch)) == {"a": "yes"}
        finally:
            worker.stop()


def test_answers_beyond_a_batchs_bytes_end_it_with_what_it_has(
    own_stack: Callable[..., Stack], queue_url: str
) -> None:
    stack = own_stack(max_batch_output_mb=1, batch_parallel=1)
    long = "x" * 600_000
    batch = ended(stack.http, begin(stack.http, lines(*(line(str(n), f"say {long}") for n in range(3)))))
    assert list(results(stack.http, batch)) == ["0"]
    errors = content(stack.http, batch["error_file_id"])
    assert [each["error"]["code"] for each in errors] == ["batch_output_full"] * 2


def test_a_batch_whose_file_is_gone_has_failed(own_stack: Callable[..., Stack], queue_url: str) -> None:
    stack = own_stack()
    running = begin(stack.http, lines(line("a", "hold")))
    wait_until(lambda: stack.worker.assignments)
    batch = begin(stack.http, lines(line("a", "say yes")))  # waits: a tenant's batches run one by one
    stack.http.delete(f"/v1/files/{batch['input_file_id']}")
    stack.worker.release.set()
    assert ended(stack.http, batch)["status"] == "failed"
    assert ended(stack.http, running)["status"] == "completed"


def test_the_driver_survives_the_loss_of_the_queue(valkey: Valkey) -> None:
    with running_stack(f"unix://{valkey.socket}") as stack:
        begin(stack.http, lines(line("a", "hold")))
        wait_until(lambda: stack.worker.assignments)
        valkey.kill()
        stack.worker.release.set()
        wait_until(lambda: stack.http.get("/readyz").status_code == 503)
        valkey.start()  # empty: the batch is lost, but not the driver
        wait_until(lambda: stack.http.get("/readyz").status_code == 200)
        wait_until(lambda: stack.works())
        batch = begin(stack.http, lines(line("b", "say yes")))
        assert ended(stack.http, batch)["status"] == "completed"
