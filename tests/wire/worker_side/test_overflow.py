"""A worker without a free slot can pull waiting jobs of a tenant that has few jobs on this worker."""

from __future__ import annotations

import pytest
from llava_wire.controller_side.producer import JobProducer
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import EmitResult, JobConsumer

from tests.wire.harness import STOP, Harness, frame, make_job

pytestmark = pytest.mark.anyio


async def full(harness: Harness, num_held: int = 2) -> tuple[JobProducer, JobConsumer]:
    """Fill the queue with jobs from the tenant "flood", and let a worker pull some of them."""
    producer, consumer = await harness.producer(), await harness.consumer()
    for _ in range(num_held + 4):
        await producer.submit(make_job(tenant="flood"), {})
    assert len(await consumer.pull(num_held)) == num_held
    return producer, consumer


async def test_another_tenants_job_takes_an_overflow_slot(harness: Harness) -> None:
    producer, consumer = await full(harness)
    job = make_job(tenant="other")
    await producer.submit(job, {})
    assert [each.job for each in await consumer.pull_overflow()] == [job]


async def test_a_tenant_with_a_job_on_the_worker_gets_no_overflow_slot(harness: Harness) -> None:
    producer, consumer = await full(harness)
    assert await consumer.pull_overflow() == []
    for _ in range(2):
        await producer.submit(make_job(tenant="other"), {})
    assert len(await consumer.pull_overflow()) == 1
    assert await consumer.pull_overflow() == []


async def test_a_tenant_gets_overflow_slots_until_it_has_half_of_an_equal_share(harness: Harness) -> None:
    producer, consumer = await full(harness, num_held=16)
    for tenant in ("other", "flood") * 8:
        await producer.submit(make_job(tenant=tenant), {})
    pulled = [await consumer.pull_overflow() for _ in range(7)]
    assert [[each.job.tenant for each in jobs] for jobs in pulled] == [["other"]] * 6 + [[]]


async def test_overflow_pulls_do_not_change_the_fair_order_of_other_jobs(harness: Harness) -> None:
    producer, consumer = await full(harness)
    for _ in range(3):
        await producer.submit(make_job(tenant="other"), {})
        (overflow,) = await consumer.pull_overflow()
        await consumer.emit([frame(overflow, 0, final=STOP)])
    await producer.submit(make_job(tenant="new"), {})
    assert [each.job.tenant for each in await consumer.pull(2)] == ["new", "flood"]


async def test_a_job_behind_a_job_with_higher_priority_gets_no_overflow_slot(harness: Harness) -> None:
    producer, consumer = await full(harness)
    await producer.submit(make_job(tenant="flood", priority=1), {})
    await producer.submit(make_job(tenant="other"), {})
    assert await consumer.pull_overflow() == []


async def test_an_emit_returns_whether_an_overflow_job_is_waiting(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    for tenant in ("flood", "flood"):
        await producer.submit(make_job(tenant=tenant), {})
    (held,) = await consumer.pull(1)
    assert await consumer.emit([frame(held, 0, 1)], check_overflow=True) == EmitResult(set())
    await producer.submit(make_job(tenant="other"), {})
    assert await consumer.emit([frame(held, 1, 2)]) == EmitResult(set())  # without check_overflow
    result = await consumer.emit([frame(held, 2, 3)], check_overflow=True)
    assert result == EmitResult(set(), has_overflow_waiting=True)


async def test_an_overflow_pull_wakes_no_worker(harness: Harness) -> None:
    _, consumer = await full(harness)
    harness.redis.delete(PREFIX + "wake:m")
    await consumer.pull_overflow()
    assert not harness.redis.exists(PREFIX + "wake:m")


async def test_a_quarantined_job_gets_no_overflow_slot(harness: Harness) -> None:
    producer, consumer = await full(harness)
    job = make_job(tenant="other")
    await producer.submit(job, {})
    harness.redis.zrem(PREFIX + "wait:m", job.job_id)
    harness.redis.zadd(PREFIX + "suspects:m", {job.job_id: 0})
    assert await consumer.pull_overflow() == []
    harness.redis.zrem(PREFIX + "suspects:m", job.job_id)
    harness.redis.zadd(PREFIX + "wait:m", {job.job_id: 0})
