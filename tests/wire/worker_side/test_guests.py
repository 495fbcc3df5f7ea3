"""A worker without a free place takes the first in line of a tenant of whom it holds nothing."""

from __future__ import annotations

import pytest
from llava_wire.controller_side.producer import JobProducer
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.wire.lab import STOP, Lab, frame, make_job

pytestmark = pytest.mark.anyio


async def full(lab: Lab) -> tuple[JobProducer, JobConsumer]:
    """A flood of one tenant, two of whose jobs a worker holds."""
    producer, consumer = await lab.producer(), await lab.consumer()
    for _ in range(6):
        await producer.submit(make_job(tenant="flood"), {})
    assert len(await consumer.pull(2)) == 2
    return producer, consumer


async def test_another_tenants_job_is_taken_as_a_guest(lab: Lab) -> None:
    producer, consumer = await full(lab)
    job = make_job(tenant="other")
    await producer.submit(job, {})
    assert [each.job for each in await consumer.pull_guest()] == [job]


async def test_who_has_a_job_there_already_is_no_guest(lab: Lab) -> None:
    producer, consumer = await full(lab)
    assert await consumer.pull_guest() == []
    for _ in range(2):
        await producer.submit(make_job(tenant="other"), {})
    assert len(await consumer.pull_guest()) == 1
    assert await consumer.pull_guest() == []


async def test_a_guest_may_come_again_and_the_fair_order_of_the_rest_stays(lab: Lab) -> None:
    producer, consumer = await full(lab)
    for _ in range(3):
        await producer.submit(make_job(tenant="other"), {})
        (guest,) = await consumer.pull_guest()
        await consumer.emit([frame(guest, 0, final=STOP)])
    await producer.submit(make_job(tenant="new"), {})
    assert [each.job.tenant for each in await consumer.pull(2)] == ["new", "flood"]


async def test_who_is_behind_more_urgent_work_is_no_guest(lab: Lab) -> None:
    producer, consumer = await full(lab)
    await producer.submit(make_job(tenant="flood", priority=1), {})
    await producer.submit(make_job(tenant="other"), {})
    assert await consumer.pull_guest() == []


async def test_an_emit_tells_whether_there_is_a_guest(lab: Lab) -> None:
    producer, consumer = await lab.producer(), await lab.consumer()
    for tenant in ("flood", "flood"):
        await producer.submit(make_job(tenant=tenant), {})
    (held,) = await consumer.pull(1)
    assert await consumer.emit([frame(held, 0, 1)], wants_guest=True) == set()
    assert not consumer.has_guest
    await producer.submit(make_job(tenant="other"), {})
    assert await consumer.emit([frame(held, 1, 2)]) == set()
    assert not consumer.has_guest  # it was not asked
    assert await consumer.emit([frame(held, 2, 3)], wants_guest=True) == set()
    assert consumer.has_guest


async def test_asking_for_a_guest_wakes_nobody(lab: Lab) -> None:
    _, consumer = await full(lab)
    lab.redis.delete(PREFIX + "wake:m")
    await consumer.pull_guest()
    assert not lab.redis.exists(PREFIX + "wake:m")


async def test_a_suspect_is_nobodys_guest(lab: Lab) -> None:
    producer, consumer = await full(lab)
    job = make_job(tenant="other")
    await producer.submit(job, {})
    lab.redis.zrem(PREFIX + "wait:m", job.job_id)
    lab.redis.zadd(PREFIX + "suspects:m", {job.job_id: 0})
    assert await consumer.pull_guest() == []
    lab.redis.zrem(PREFIX + "suspects:m", job.job_id)
    lab.redis.zadd(PREFIX + "wait:m", {job.job_id: 0})
