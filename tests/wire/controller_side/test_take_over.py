from __future__ import annotations

import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, frame, make_image, make_job

pytestmark = pytest.mark.anyio


async def test_a_cancelled_queued_job_never_runs(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    assert await producer.cancel(job.job_id, tenant=job.tenant) is True
    assert await consumer._pull(4) == []


async def test_the_next_event_of_a_cancelled_running_job_is_rejected(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    other, second = await harness.running(producer, consumer)
    assert await producer.cancel(job.job_id, tenant=job.tenant) is True
    assert (await consumer.emit([frame(assignment, 0, 1), frame(second, 0, 1)])).refused == {job.job_id}
    await client.receives(other, 1)
    assert job.job_id not in client.events


async def test_only_live_jobs_are_cancelled(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await producer.cancel(job.job_id, tenant=job.tenant) is False
    assert await producer.cancel("unknown", tenant=job.tenant) is False


async def test_another_tenants_job_cannot_be_cancelled(harness: Harness) -> None:
    here, there, job = await harness.producer(), await harness.producer(), make_job()
    await here.submit(job, {})
    assert await here.cancel(job.job_id, tenant="mallory") is False
    assert await there.cancel(job.job_id, tenant="mallory") is False


async def test_a_cancel_through_another_controller_ends_the_stream(harness: Harness) -> None:
    here, there, job = await harness.producer(), await harness.producer(), make_job()
    client = harness.client(here)
    await here.submit(job, {})
    assert await there.cancel(job.job_id, tenant=job.tenant) is True
    final = await client.receives_end(job)
    assert final.error
    assert final.error.code is ErrorCode.ANSWER_CANCELLED


async def test_another_controller_continues_the_stream_of_a_dead_one(harness: Harness) -> None:
    dead, successor, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(dead, consumer)
    await consumer.emit([frame(assignment, 0, 1, 2)])
    client = harness.client(successor)
    log = await successor.attach(job.job_id, tenant=job.tenant)
    assert log is not None
    assert [event.token_ids for event in log] == [(1, 2)]
    await consumer.emit([frame(assignment, 2, 3)])
    await consumer.emit([frame(assignment, 3, 4, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (3, 4)


async def test_an_ended_stream_can_still_be_read(harness: Harness) -> None:
    dead, successor, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(dead, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    log = await successor.attach(job.job_id, tenant=job.tenant)
    assert log is not None
    assert [event.final for event in log] == [STOP]


async def test_a_tenant_cannot_attach_to_the_stream_of_another_tenant(harness: Harness) -> None:
    here, there, job = await harness.producer(), await harness.producer(), make_job()
    await here.submit(job, {})
    assert await there.attach(job.job_id, tenant="mallory") is None
    assert await here.attach(job.job_id, tenant="mallory") is None
    assert await there.attach("unknown", tenant=job.tenant) is None
    await here.cancel(job.job_id, tenant=job.tenant)
    assert await there.attach(job.job_id, tenant=job.tenant) is None


async def test_attaching_on_the_same_controller_returns_the_delivered_events(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1)])
    await client.receives(job, 1)
    assert await producer.attach(job.job_id, tenant=job.tenant) == client.events[job.job_id]


async def test_a_controller_ends_a_stream_that_was_taken_over_and_cannot_cancel_it(harness: Harness) -> None:
    old, new, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    old_client, new_client = harness.client(old), harness.client(new)
    job, assignment = await harness.running(old, consumer)
    await new.attach(job.job_id, tenant=job.tenant)
    final = await old_client.receives_end(job)
    assert final.error
    assert final.error.code is ErrorCode.STREAM_TAKEN_OVER
    assert await old.cancel(job.job_id, tenant=job.tenant) is False
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await new_client.receives_end(job) == STOP


async def test_a_stream_may_return_to_the_controller_it_was_taken_from(harness: Harness) -> None:
    first, second, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    client = harness.client(first)
    job, assignment = await harness.running(first, consumer)
    await second.attach(job.job_id, tenant=job.tenant)
    await client.receives_end(job)
    client.events.clear()
    await first.attach(job.job_id, tenant=job.tenant)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP
    assert await first.cancel(job.job_id, tenant=job.tenant) is False


async def test_a_stream_can_return_before_its_controller_has_noticed_the_takeover(
    harness: Harness,
) -> None:
    first, second, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(first, consumer)
    await second.attach(job.job_id, tenant=job.tenant)
    assert await first.attach(job.job_id, tenant=job.tenant) == []
    client = harness.client(first)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_cancel_by_a_controller_that_missed_the_takeover_changes_nothing(
    harness: Harness,
) -> None:
    old, new, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    client = harness.client(new)
    job, assignment = await harness.running(old, consumer)
    await new.attach(job.job_id, tenant=job.tenant)
    assert await old.cancel(job.job_id, tenant=job.tenant) is False
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_jobs_of_a_dead_controller_are_stopped(harness: Harness) -> None:
    dead, alive, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(dead, consumer)
    harness.kill_controller(dead.controller_id)
    await alive.reap()
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_jobs_of_a_live_controller_continue(harness: Harness) -> None:
    here, there, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    _, assignment = await harness.running(here, consumer)
    harness.kill_controller(here.controller_id)
    await here.reap()  # renews the lease of `here`
    await there.reap()
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_an_orphaned_job_continues_when_a_client_attaches(harness: Harness) -> None:
    dead, successor, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    job = make_job(image)
    await dead.submit(job, {image.digest: tiles})
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1)])
    harness.kill_controller(dead.controller_id)
    await successor.reap()
    client = harness.client(successor)
    log = await successor.attach(job.job_id, tenant=job.tenant)
    assert log is not None
    assert (await consumer.emit([frame(assignment, 1, 9)])).refused == {job.job_id}
    (again,) = await consumer.pull(1)
    assert (again.token_ids, again.pixels) == ((1,), {image.digest: tiles})
    await consumer.emit([frame(again, 1, 2, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (2,)
    assert harness.redis.pttl(PREFIX + "log:" + job.job_id) > 0


async def test_a_paused_controller_recovers_its_orphaned_jobs(harness: Harness) -> None:
    paused, other, consumer = (
        await harness.producer(check_interval_s=0),
        await harness.producer(),
        await harness.consumer(),
    )
    job, assignment = await harness.running(paused, consumer)
    harness.kill_controller(paused.controller_id)
    await other.reap()
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}
    client = harness.client(paused)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    (again,) = await consumer.pull(1)
    await consumer.emit([frame(again, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_job_without_stored_images_fails_after_a_takeover(harness: Harness) -> None:
    dead, successor, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    job = make_job(image)
    await dead.submit(job, {image.digest: tiles})
    harness.redis.delete(f"{PREFIX}blob:{image.digest}", PREFIX + "pixels", PREFIX + "pixel_bytes")
    await successor.attach(job.job_id, tenant=job.tenant)
    client = harness.client(successor)
    assert await consumer._pull(1) == []
    final = await client.receives_end(job)
    assert final.error
    assert "images of this request are no longer stored" in final.error.message


async def test_a_job_past_its_deadline_ends_with_an_error_and_is_cancelled(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job(ttl_s=0.01)
    client = harness.client(producer)
    await producer.submit(job, {})
    final = await client.receives_end(job)
    assert final.error
    assert final.error.code is ErrorCode.DEADLINE_EXCEEDED
    await async_wait_until(lambda: not harness.redis.zcard(PREFIX + "wait:m"))
    assert await consumer._pull(1) == []
