"""Deleted jobs cannot be read and are not recreated."""

from __future__ import annotations

import pytest
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import ErrorCode
from llava_wire.redis.keys import PREFIX, out_key

from tests.wire.harness import STOP, Harness, after_script, check_starts_over, frame, make_job

pytestmark = pytest.mark.anyio


async def test_nothing_of_a_deleted_job_can_be_read(harness: Harness) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    client = harness.client(here)
    job, assignment = await harness.running(here, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await client.receives_end(job)
    assert await there.snapshot(job.job_id, tenant=job.tenant)
    assert await there.delete(job.job_id, tenant=job.tenant) is True
    for producer in (here, there):
        assert await producer.snapshot(job.job_id, tenant=job.tenant) is None
        assert await producer.attach(job.job_id, tenant=job.tenant) is None
    assert not harness.redis.exists(f"{PREFIX}log:{job.job_id}")
    stored = harness.redis.hgetall(f"{PREFIX}job:{job.job_id}")
    assert not {b"payload", b"outline", b"digests"} & set(stored)


async def test_an_unknown_job_or_a_job_of_another_tenant_is_not_deleted(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    assert await producer.delete(job.job_id, tenant="mallory") is False
    assert await producer.delete("unknown", tenant=job.tenant) is False
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()
    assert await producer.delete(job.job_id, tenant=job.tenant) is True
    assert await producer.delete(job.job_id, tenant=job.tenant) is False


async def test_a_deleted_running_job_ends_for_its_worker_and_its_client(harness: Harness) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    client = harness.client(here)
    job, assignment = await harness.running(here, consumer)
    await consumer.emit([frame(assignment, 0, 1)])
    await client.receives(job, 1)
    assert await there.delete(job.job_id, tenant=job.tenant) is True
    assert (await consumer.emit([frame(assignment, 1, 2)])).refused == {job.job_id}
    final = await client.receives_end(job)
    assert final.error and final.error.code is ErrorCode.ANSWER_CANCELLED


async def test_a_deleted_queued_job_never_runs(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    assert await producer.delete(job.job_id, tenant=job.tenant) is True
    assert await consumer._pull(4) == []


async def test_a_controller_that_missed_the_end_does_not_create_a_deleted_job_again(
    harness: Harness,
) -> None:
    here, there, consumer = (
        await harness.producer(check_interval_s=0),
        await harness.producer(),
        await harness.consumer(),
    )
    job, assignment = await harness.running(here, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    harness.redis.delete(out_key(here.controller_id))
    assert await there.delete(job.job_id, tenant=job.tenant) is True
    client = harness.client(here)  # starts polling, which checks idle jobs
    final = await client.receives_end(job)
    assert final.error and final.error.code is ErrorCode.ANSWER_CANCELLED
    assert await consumer._pull(4) == []


async def test_a_deleted_job_may_be_submitted_again(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await client.receives_end(job)
    await producer.delete(job.job_id, tenant=job.tenant)
    await check_starts_over(job, producer, consumer, client)


async def test_a_delete_sent_twice_returns_the_same_result(harness: Harness) -> None:
    producer, job = await harness.producer(), make_job()
    await producer.submit(job, {})

    async def lose_reply() -> None:
        raise QueueUnavailable("the reply was lost", is_disconnect=True)

    after_script(producer, "delete", lose_reply)
    assert await producer.delete(job.job_id, tenant=job.tenant) is True
