from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llava_wire.messages.job import Job
from llava_wire.redis.connection import Arg, Link
from llava_wire.redis.keys import PERMANENT, PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, Script, frame, make_image, make_job, wrap_scripts

pytestmark = pytest.mark.anyio


async def served(consumer: JobConsumer, max_jobs: int) -> list[Job]:
    return [assignment.job for assignment in await consumer.pull(max_jobs)]


async def test_a_pull_returns_the_job_and_its_images(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    job = make_job(image)
    await producer.submit(job, {image.digest: tiles})
    (assignment,) = await consumer.pull(4)
    assert (assignment.job, assignment.pixels) == (job, {image.digest: tiles})
    assert (assignment.token_ids, assignment.text) == ((), "")


async def test_a_pull_returns_the_time_until_the_deadline_of_the_job(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await producer.submit(make_job(ttl_s=60.0), {})
    (assignment,) = await consumer.pull(1)
    assert assignment.remaining_s is not None
    assert 0 < assignment.remaining_s <= 60


async def test_a_pull_from_an_empty_queue_returns_nothing_after_a_timeout(harness: Harness) -> None:
    consumer = await harness.consumer()
    assert await consumer.pull(4) == []


async def test_a_waiting_pull_is_woken_by_a_submit(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    pull = asyncio.create_task(consumer.pull(1))
    await async_wait_until(lambda: int(harness.redis.info("clients")["blocked_clients"]) == 1)
    await producer.submit(job, {})
    assert [each.job for each in await pull] == [job]


async def test_a_pull_that_leaves_jobs_in_the_queue_wakes_the_next_worker(harness: Harness) -> None:
    producer, first, second = (
        await harness.producer(),
        await harness.consumer("w1"),
        await harness.consumer("w2"),
    )
    for _ in range(2):
        await producer.submit(make_job(), {})
    harness.redis.delete(PREFIX + "wake:m")
    await first.pull(1)
    assert harness.redis.llen(PREFIX + "wake:m") == 1
    await second.pull(1)
    harness.redis.delete(PREFIX + "wake:m")
    assert await first._pull(1) == []
    assert harness.redis.llen(PREFIX + "wake:m") == 0


async def test_a_worker_gets_only_jobs_for_its_model(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer(model="other")
    mine = make_job(model="other")
    await producer.submit(make_job(), {})
    await producer.submit(mine, {})
    assert await served(consumer, 4) == [mine]


async def test_no_job_is_assigned_to_two_workers(harness: Harness) -> None:
    producer, first, second = (
        await harness.producer(),
        await harness.consumer("w1"),
        await harness.consumer("w2"),
    )
    jobs = [make_job() for _ in range(6)]
    for job in jobs:
        await producer.submit(job, {})
    pulled = [job for batch in await asyncio.gather(served(first, 4), served(second, 4)) for job in batch]
    assert sorted(job.job_id for job in pulled) == sorted(job.job_id for job in jobs)


async def test_a_pull_sent_twice_returns_the_same_jobs(harness: Harness) -> None:
    producer, link = await harness.producer(), Link(harness.server.url, timeout_s=5)
    for _ in range(3):
        await producer.submit(make_job(), {})
    call = ("pull", "w1", "m", 5000, 30_000, 0, "", b"", "a" * 32, "b" * 32)
    first, again = await link.script(*call), await link.script(*call)
    assert sorted(first[0]) == sorted(again[0])
    assert (await producer.stats()).num_waiting == {"m": 1}
    await link.aclose()


async def test_tenants_share_by_cost(harness: Harness) -> None:
    """Alice's jobs cost half as much as Bob's, so two of hers are served for each of his."""
    producer, consumer = await harness.producer(), await harness.consumer()
    for _ in range(8):
        await producer.submit(make_job(tenant="alice", cost=10.0), {})
    for _ in range(8):
        await producer.submit(make_job(tenant="bob", cost=20.0), {})
    order = [job.tenant for job in await served(consumer, 9)]
    assert order.count("alice") == 6
    assert "bob" in order[:2]


async def test_a_new_tenant_is_served_next_regardless_of_the_queue(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    for _ in range(8):
        await producer.submit(make_job(tenant="alice"), {})
    await consumer.pull(3)
    late = make_job(tenant="bob")
    await producer.submit(late, {})
    assert late in await served(consumer, 2)


async def test_jobs_with_equal_scores_are_served_in_order_of_arrival(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    jobs = [make_job(job_id=f"{'zyxwv'[i]}-{i}", tenant=f"tenant {i}", cost=0.0) for i in range(5)]
    for job in jobs:
        await producer.submit(job, {})
    assert await served(consumer, 5) == jobs


async def test_jobs_of_a_single_tenant_are_served_in_order(harness: Harness) -> None:
    producer, consumer, jobs = (
        await harness.producer(),
        await harness.consumer(),
        [make_job() for _ in range(4)],
    )
    for job in jobs:
        await producer.submit(job, {})
    assert await served(consumer, 2) + await served(consumer, 2) == jobs


async def test_a_job_with_missing_images_waits_until_its_controller_sends_them(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    job = make_job(image)
    await producer.submit(job, {image.digest: tiles})
    harness.redis.delete(f"{PREFIX}blob:{image.digest}", PREFIX + "pixels", PREFIX + "pixel_bytes")
    assert await consumer._pull(4) == []
    harness.client(producer)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    assert [each.pixels for each in await consumer.pull(4)] == [{image.digest: tiles}]


async def test_a_job_with_missing_images_does_not_delay_other_jobs(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})
    other = make_job()
    await producer.submit(other, {})
    harness.redis.delete(f"{PREFIX}blob:{image.digest}", PREFIX + "pixels", PREFIX + "pixel_bytes")
    assert await served(consumer, 4) == [other]


async def test_a_job_that_expired_in_the_queue_is_skipped(harness: Harness) -> None:
    producer, consumer, gone, job = await harness.producer(), await harness.consumer(), make_job(), make_job()
    await producer.submit(gone, {})
    await producer.submit(job, {})
    harness.redis.delete(PREFIX + "job:" + gone.job_id)
    assert await served(consumer, 4) == [job]
    harness.redis.hdel(PREFIX + "tenant:alice", gone.job_id)  # would expire later


async def test_a_job_is_requeued_if_its_images_are_lost_between_two_replies(harness: Harness) -> None:
    """The call is sent twice, and the image is dropped in between, so the second reply contains no image."""
    producer, consumer = await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})

    async def send_twice(script: Script, name: str, *args: Arg) -> Any:
        if name == "pull":
            await script(name, *args)
            harness.redis.delete(f"{PREFIX}blob:{image.digest}", PREFIX + "pixels", PREFIX + "pixel_bytes")
        return await script(name, *args)

    wrap_scripts(consumer, send_twice)
    assert await consumer._pull(1) == []
    assert not harness.keys("inflight:")


async def test_reconcile_requeues_assigned_jobs_that_the_worker_does_not_hold(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    link = Link(harness.server.url, timeout_s=5)
    await link.script("pull", "w1", "m", 5000, 30_000, 0, "", b"", "a" * 32)  # the reply is lost
    assert await consumer.reconcile([]) == set()
    assert await served(consumer, 4) == [job]
    await link.aclose()


async def test_reconcile_does_not_affect_a_pull_in_progress(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    assert await consumer.reconcile([]) == set()  # the worker may not have processed the pull yet
    assert (await consumer.emit([frame(assignment, 0, 1, final=STOP)])).refused == set()


async def test_reconcile_requeues_the_last_pulled_job_if_redis_lost_its_end(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    before = {key: harness.redis.dump(key) or b"" for key in harness.keys("") if ":out:" not in key}
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    harness.redis.flushall()
    for key, value in before.items():
        harness.redis.restore(key, 0 if key in PERMANENT else 60_000, value)
    await consumer.reconcile([])
    assert await served(consumer, 1) == [job]


async def test_reconcile_returns_the_jobs_that_the_worker_has_lost(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, _ = await harness.running(producer, consumer)
    other, _ = await harness.running(producer, consumer)
    await producer.cancel(job.job_id, tenant=job.tenant)
    assert await consumer.reconcile([job.job_id, other.job_id]) == {job.job_id}
