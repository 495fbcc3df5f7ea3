from __future__ import annotations

import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, frame, make_image, make_job

pytestmark = pytest.mark.anyio


async def test_a_cancelled_job_in_the_queue_never_runs(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    assert await producer.cancel(job.job_id, tenant=job.tenant) is True
    assert await consumer._pull(4) == []


async def test_a_cancelled_running_job_is_refused_at_its_next_event(harness: Harness) -> None:
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


async def test_another_controller_continues_a_dead_ones_stream(harness: Harness) -> None:
    dead, heir, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(dead, consumer)
    await consumer.emit([frame(assignment, 0, 1, 2)])
    client = harness.client(heir)
    log = await heir.attach(job.job_id, tenant=job.tenant)
    assert log is not None
    assert [event.token_ids for event in log] == [(1, 2)]
    await consumer.emit([frame(assignment, 2, 3)])
    await consumer.emit([frame(assignment, 3, 4, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (3, 4)


async def test_an_ended_stream_can_still_be_read(harness: Harness) -> None:
    dead, heir, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(dead, consumer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    log = await heir.attach(job.job_id, tenant=job.tenant)
    assert log is not None
    assert [event.final for event in log] == [STOP]


async def test_only_its_tenant_attaches_to_a_stream(harness: Harness) -> None:
    here, there, job = await harness.producer(), await harness.producer(), make_job()
    await here.submit(job, {})
    assert await there.attach(job.job_id, tenant="mallory") is None
    assert await here.attach(job.job_id, tenant="mallory") is None
    assert await there.attach("unknown", tenant=job.tenant) is None
    await here.cancel(job.job_id, tenant=job.tenant)
    assert await there.attach(job.job_id, tenant=job.tenant) is None


async def test_attaching_where_the_stream_is_already_returns_the_delivered_events(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1)])
    await client.receives(job, 1)
    assert await producer.attach(job.job_id, tenant=job.tenant) == client.events[job.job_id]


async def test_a_controller_whose_stream_was_taken_ends_it_and_cannot_cancel_it(harness: Harness) -> None:
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


async def test_a_stream_returns_even_before_its_controller_learned_of_the_take_over(
    harness: Harness,
) -> None:
    first, second, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(first, consumer)
    await second.attach(job.job_id, tenant=job.tenant)
    assert await first.attach(job.job_id, tenant=job.tenant) == []
    client = harness.client(first)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_cancel_by_a_controller_that_missed_the_take_over_changes_nothing(
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
    await here.reap()  # its own beat
    await there.reap()
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_an_orphan_is_continued_when_a_client_attaches_late(harness: Harness) -> None:
    dead, heir, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    job = make_job(image)
    await dead.submit(job, {image.digest: tiles})
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1)])
    harness.kill_controller(dead.controller_id)
    await heir.reap()
    client = harness.client(heir)
    log = await heir.attach(job.job_id, tenant=job.tenant)
    assert log is not None
    assert (await consumer.emit([frame(assignment, 1, 9)])).refused == {job.job_id}
    (again,) = await consumer.pull(1)
    assert (again.token_ids, again.pixels) == ((1,), {image.digest: tiles})
    await consumer.emit([frame(again, 1, 2, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (2,)
    assert harness.redis.pttl(PREFIX + "log:" + job.job_id) > 0


async def test_a_controller_that_was_only_paused_gets_its_orphans_back(harness: Harness) -> None:
    sleeper, other, consumer = (
        await harness.producer(check_interval_s=0),
        await harness.producer(),
        await harness.consumer(),
    )
    job, assignment = await harness.running(sleeper, consumer)
    harness.kill_controller(sleeper.controller_id)
    await other.reap()
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}
    client = harness.client(sleeper)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    (again,) = await consumer.pull(1)
    await consumer.emit([frame(again, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_images_lost_after_a_take_over_end_the_job(harness: Harness) -> None:
    dead, heir, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    image, tiles = make_image("cat")
    job = make_job(image)
    await dead.submit(job, {image.digest: tiles})
    harness.redis.delete(f"{PREFIX}blob:{image.digest}", PREFIX + "pixels", PREFIX + "pixel_bytes")
    await heir.attach(job.job_id, tenant=job.tenant)
    client = harness.client(heir)
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
