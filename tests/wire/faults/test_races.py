"""Race conditions: one coroutine acts between another coroutine's script call and the reply to this call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llava_wire.controller_side.sent_images import MAX_SENT_IMAGES
from llava_wire.errors import AlreadySubmitted, QueueFull, QueueUnavailable
from llava_wire.redis.connection import Arg, Link
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.wire.harness import (
    STOP,
    Harness,
    Script,
    after_script,
    before_script,
    frame,
    make_image,
    make_job,
    wrap_scripts,
)

pytestmark = pytest.mark.anyio


async def test_a_job_cancelled_during_its_resync_does_not_run(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    harness.redis.flushall()
    producer._ledger.change_identity()

    async def cancel_too_early() -> None:
        producer._ledger.drop(job.job_id)

    after_script(producer, "resync_job", cancel_too_early)
    await producer._reader.poll(None)
    await producer._reader.poll(None)
    assert await consumer._pull(1) == []


async def test_data_loss_during_a_resync_restarts_the_resync(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    producer._ledger.change_identity()

    async def lose_data() -> None:
        harness.redis.flushall()
        producer._ledger.change_identity()

    after_script(producer, "resync_job", lose_data)
    await producer._reader.poll(None)
    client = harness.client(producer)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_beat_under_an_old_controller_id_does_not_count(harness: Harness) -> None:
    producer = await harness.producer()

    async def lose_data() -> None:
        producer._ledger.change_identity()

    after_script(producer, "reap_workers", lose_data)
    await producer.reap()
    controller_id = producer.controller_id
    await producer.reap()
    assert producer.controller_id == controller_id
    await producer._reader.poll(None)  # removes the old controller ID


async def test_events_under_an_old_controller_id_are_read_again_under_the_new_one(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    client = harness.client(producer)
    await async_wait_until(lambda: int(harness.redis.info("clients")["blocked_clients"]) == 1)
    producer._ledger.change_identity()
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_resync_does_not_create_a_job_that_is_being_submitted(harness: Harness) -> None:
    """A resync would add the job without checking limits, although the submit may still be rejected."""
    producer = await harness.producer(max_queued=1, check_interval_s=0)
    await producer.submit(make_job(), {})

    async def lose_data() -> None:
        producer._ledger.change_identity()
        await producer._reader.poll(None)

    before_script(producer, "submit", lose_data)
    with pytest.raises(QueueFull):
        await producer.submit(make_job(), {})
    assert harness.redis.zcard(PREFIX + "wait:m") == 1


async def test_frames_between_a_takeover_and_its_reply_are_not_lost(harness: Harness) -> None:
    dead, successor, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    client = harness.client(successor)
    job, assignment = await harness.running(dead, consumer)

    async def emit() -> None:
        await consumer.emit([frame(assignment, 0, 1)])
        await async_wait_until(lambda: successor._reader._position[1] != "0-0")

    after_script(successor, "take_over_job", emit)
    assert await successor.attach(job.job_id, tenant=job.tenant) == []
    await consumer.emit([frame(assignment, 1, 2, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (1, 2)


async def test_a_submit_fails_if_redis_keeps_dropping_the_images(harness: Harness) -> None:
    producer, (image, tiles) = await harness.producer(), make_image("cat")

    async def call(script: Script, name: str, *args: Arg) -> Any:
        return [b"pixels", [image.digest.encode()]] if name == "submit" else await script(name, *args)

    wrap_scripts(producer, call)
    with pytest.raises(QueueUnavailable, match="Increase maxmemory"):
        await producer.submit(make_job(image), {image.digest: tiles})


async def test_a_producer_remembers_a_bounded_number_of_images(harness: Harness) -> None:
    producer, (image, tiles) = await harness.producer(), make_image("cat")
    producer._sent_images.remember(str(number) for number in range(MAX_SENT_IMAGES))
    await producer.submit(make_job(image), {image.digest: tiles})
    assert len(producer._sent_images) == MAX_SENT_IMAGES
    assert producer._sent_images.unknown([image.digest]) == []


async def test_a_waiting_pull_is_repeated_after_its_connection_breaks(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    pull = asyncio.create_task(consumer.pull(1))
    await async_wait_until(lambda: int(harness.redis.info("clients")["blocked_clients"]) == 1)
    harness.redis.client_kill_filter(_type="normal", skipme=True)
    assert await pull == []
    await producer.submit(job, {})
    assert [each.job for each in await consumer.pull(1)] == [job]


async def test_a_cancelled_command_returns_immediately_and_leaves_the_link_usable(harness: Harness) -> None:
    link = Link(harness.server.url, timeout_s=60, max_connections=1)
    waiting = asyncio.create_task(link.command("BLPOP", PREFIX + "wake:none", 0))
    await async_wait_until(lambda: int(harness.redis.info("clients")["blocked_clients"]) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await link.command("PING")
    await link.aclose()


async def test_a_busy_loop_of_commands_can_be_cancelled(harness: Harness) -> None:
    """If a cancellation were lost because a reply arrived at the same time, a worker could not be stopped."""
    link = Link(harness.server.url, timeout_s=60)

    async def send_commands() -> None:
        while True:
            await link.script("queue_stats", "m")

    for num_steps in range(40):
        task = asyncio.create_task(send_commands())
        for _ in range(num_steps):
            await asyncio.sleep(0)
        task.cancel()
        await async_wait_until(task.cancelled)
    await link.aclose()


async def test_a_resync_that_started_before_a_takeover_does_not_end_the_stream(harness: Harness) -> None:
    """The reply "moved" refers to a takeover by another controller, after which this one has taken over."""
    producer, other, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    assert await other.attach(job.job_id, tenant=job.tenant) == []

    async def attach() -> None:
        assert await producer.attach(job.job_id, tenant=job.tenant) == []

    after_script(producer, "resync_job", attach)
    client = harness.client(producer)  # reads the notice of the takeover, and resyncs
    await async_wait_until(lambda: harness.redis.hget(f"{PREFIX}job:{job.job_id}", "owner") != b"1")
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_events_from_before_a_job_was_cancelled_are_not_delivered(harness: Harness) -> None:
    """Redis accepts a job, but its reply is lost. The job starts and is cancelled before it is sent again."""
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()

    async def lose_reply() -> None:
        raise QueueUnavailable("the reply was lost")

    after_script(producer, "submit", lose_reply)
    with pytest.raises(QueueUnavailable):
        await producer.submit(job, {})
    (first,) = await consumer.pull(1)
    await consumer.emit([frame(first, 0, 1)])
    await producer._reader._send_pending_cancels()
    assert (await consumer.emit([frame(first, 1, 2)])).refused == {job.job_id}
    await producer.submit(job, {})
    client = harness.client(producer)
    (second,) = await consumer.pull(1)
    assert second.token_ids == ()
    await consumer.emit([frame(second, 0, 7), frame(second, 1, 8, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (7, 8)


async def test_the_error_of_a_former_reader_is_not_delivered_to_the_next_one(harness: Harness) -> None:
    producer, other, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    assert await other.attach(job.job_id, tenant=job.tenant) == []
    await async_wait_until(lambda: harness.redis.hget(f"{PREFIX}job:{job.job_id}", "owner") != b"1")
    producer._ledger.request_resync(job.job_id)
    await producer._reader._resync_jobs()
    assert producer._ledger.has_ready  # the stream was taken over
    assert await producer.attach(job.job_id, tenant=job.tenant) == []
    client = harness.client(producer)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_job_pulled_again_during_an_emit_keeps_its_new_assignment(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, former = await harness.running(producer, consumer)
    await consumer.emit([])
    await consumer.requeue([former])

    async def pull_again() -> None:
        (current,) = await consumer._pull(1)
        assert current.assignment_id != former.assignment_id

    after_script(consumer, "emit", pull_again)
    assert (await consumer.emit([frame(former, 0, 1)])).refused == {job.job_id}
    assert await consumer.reconcile([job.job_id]) == set()  # the job is still assigned to the worker


async def test_a_takeover_with_a_lost_reply_delivers_nothing_to_a_rejected_submission(
    harness: Harness,
) -> None:
    """Redis routes the events to this controller, which submits the job again instead of attaching again."""
    other, producer, consumer = await harness.producer(), await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(other, consumer)

    async def lose_reply() -> None:
        raise QueueUnavailable("the reply was lost")

    after_script(producer, "take_over_job", lose_reply)
    with pytest.raises(QueueUnavailable):
        await producer.attach(job.job_id, tenant=job.tenant)
    client = harness.client(producer)

    async def emit() -> None:
        await consumer.emit([frame(assignment, 0, 1)])
        await async_wait_until(lambda: producer._reader._position[1] != "0-0")

    before_script(producer, "submit", emit)
    with pytest.raises(AlreadySubmitted):
        await producer.submit(job, {})
    assert client.tokens(job) == ()
