"""The operator's view of the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from llava_wire.errors import QueueUnavailable
from llava_wire.operator.inspector import Inspector

from tests.wire.harness import Harness, frame, make_image, make_job

pytestmark = pytest.mark.anyio


@pytest.fixture
async def inspector(harness: Harness) -> AsyncIterator[Inspector]:
    inspector = Inspector(harness.server.url_of("server"))
    yield inspector
    await inspector.aclose()


async def test_the_status_of_an_empty_system_is_empty(inspector: Inspector) -> None:
    status = await inspector.status()
    assert (status.workers, status.controllers, status.queues, status.num_dead_letters) == ((), {}, {}, 0)


async def test_the_status_lists_workers_with_jobs_and_queues(harness: Harness, inspector: Inspector) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1, 2, 3)])
    for priority in (1, 0, 0, -1):
        await producer.submit(make_job(priority=priority), {})
    status = await inspector.status()
    (worker,) = status.workers
    assert (worker.heartbeat.worker_id, worker.num_tokens, worker.overdue_s) == ("w1", {job.job_id: 3}, 0.0)
    assert list(status.controllers) == [producer.controller_id]
    depth = status.queues["m"]
    assert (depth.num_high, depth.num_normal, depth.num_low, depth.cost) == (1, 2, 1, 40)


async def test_a_worker_without_progress_is_overdue(harness: Harness, inspector: Inspector) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await harness.running(producer, consumer)
    harness.hang_worker("w1")
    (worker,) = (await inspector.status()).workers
    assert worker.overdue_s > 1


async def test_a_dead_letter_has_the_request_and_the_reason(harness: Harness, inspector: Inspector) -> None:
    producer, (image, tiles) = await harness.producer(), make_image("cat")
    job = make_job(image)
    await producer.submit(job, {image.digest: tiles})
    for name in ("a", "b", "c"):
        (assignment,) = await (await harness.consumer(name)).pull(1)
        harness.kill_worker(name)
        await producer.reap()
    (letter,) = await inspector.dead_letters()
    assert letter.job == job
    assert (letter.worker_id, letter.num_crashes, letter.reason) == ("c", 3, "worker lease expired")
    assert letter.created_at > 1e9
    assert await inspector.stored_images(job) == {image.digest: tiles}


async def test_images_that_are_not_stored_are_omitted(harness: Harness, inspector: Inspector) -> None:
    image, _ = make_image("cat")
    assert await inspector.stored_images(make_job(image)) == {}
    assert await inspector.stored_images(make_job()) == {}


async def test_the_server_info_has_the_clock_and_the_ping(inspector: Inspector) -> None:
    info = await inspector.server_info()
    assert info["ping_s"] >= 0
    assert abs(info["clock_ahead_s"]) < 60
    assert info["maxmemory_policy"] == "noeviction"


async def test_without_redis_every_call_of_the_inspector_raises() -> None:
    inspector = Inspector("unix:///nowhere/s")
    for call in (inspector.status, inspector.dead_letters, inspector.server_info):
        with pytest.raises(QueueUnavailable):
            await call()
    await inspector.aclose()
