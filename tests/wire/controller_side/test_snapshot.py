"""Jobs with multiple readers or without readers: resubmission, snapshots and cancellation of unread jobs."""

from __future__ import annotations

import pytest
from llava_wire.errors import AlreadySubmitted, DuplicateJob, QueueUnavailable
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, check_starts_over, frame, make_job

pytestmark = pytest.mark.anyio


async def test_a_job_submitted_through_another_controller_does_not_run_again(harness: Harness) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(here, consumer)
    with pytest.raises(AlreadySubmitted):
        await there.submit(job, {})
    assert await consumer._pull(1) == []
    await there._reader.poll(None)  # the rejected controller does not cancel the job
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_a_job_that_has_ended_cannot_be_submitted_again(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await client.receives_end(job)
    with pytest.raises(AlreadySubmitted):
        await producer.submit(job, {})
    with pytest.raises(DuplicateJob):
        await producer.submit(make_job(job_id=job.job_id, cost=99.0), {})


async def test_a_cancelled_job_may_be_submitted_again(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1)])
    await client.receives(job, 1)
    await producer.cancel(job.job_id, tenant=job.tenant)
    assert (await consumer.emit([frame(assignment, 1, 2)])).refused == {job.job_id}
    await check_starts_over(job, producer, consumer, client)


async def test_a_snapshot_returns_new_events_and_does_not_take_over_the_stream(harness: Harness) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    client = harness.client(here)
    job, assignment = await harness.running(here, consumer)
    await consumer.emit([frame(assignment, 0, 1, 2)])
    snapshot = await there.snapshot(job.job_id, tenant=job.tenant)
    assert snapshot
    assert (snapshot.state, [event.token_ids for event in snapshot.events]) == ("running", [(1, 2)])
    assert snapshot.outline == job.outline
    await consumer.emit([frame(assignment, 2, 3, final=STOP)])
    more = await there.snapshot(job.job_id, tenant=job.tenant, num_events=1, offset=2)
    assert more
    assert (more.state, [event.offset for event in more.events]) == ("done", [2])
    await client.receives_end(job)
    assert client.tokens(job) == (1, 2, 3)


async def test_a_snapshot_of_another_tenants_job_is_none(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, _ = await harness.running(producer, consumer)
    assert await producer.snapshot(job.job_id, tenant="mallory") is None
    assert await producer.snapshot("unknown", tenant=job.tenant) is None


async def test_an_unread_job_is_cancelled_unless_a_snapshot_was_taken_recently(
    harness: Harness,
) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(here, consumer)
    await there.snapshot(job.job_id, tenant=job.tenant)
    assert not await here.cancel_unread(job.job_id, tenant=job.tenant)
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()
    harness.redis.hset(f"{PREFIX}job:{job.job_id}", "peeked", 1)
    assert await here.cancel_unread(job.job_id, tenant=job.tenant)
    assert (await consumer.emit([frame(assignment, 1, 2)])).refused == {job.job_id}


async def test_a_repeated_submit_is_not_cancelled_because_the_first_one_failed(
    harness: Harness,
) -> None:
    """The first submit may have succeeded, so it is cancelled later. The second must not be cancelled."""
    producer, consumer, job = await harness.producer(timeout_s=0.2), await harness.consumer(), make_job()
    harness.server.pause()
    with pytest.raises(QueueUnavailable):
        await producer.submit(job, {})
    harness.server.resume()
    harness.redis.delete(f"{PREFIX}job:{job.job_id}", f"{PREFIX}wait:m")  # simulates a lost submit
    await producer.submit(job, {})
    await producer._reader.poll(None)
    assert [each.job for each in await consumer.pull(1)] == [job]


async def test_a_job_does_not_run_if_its_submit_failed_but_reached_redis(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(timeout_s=0.2), await harness.consumer(), make_job()
    harness.server.pause()
    with pytest.raises(QueueUnavailable):
        await producer.submit(job, {})
    harness.server.resume()
    await async_wait_until(lambda: harness.redis.exists(f"{PREFIX}job:{job.job_id}"))
    await producer._reader.poll(None)
    assert await consumer._pull(1) == []
