"""Live streams continue correctly when Redis is killed, restarts with old data or without data, or hangs."""

from __future__ import annotations

import asyncio
import re

import pytest
from llava_wire.controller_side.event_reader import MAX_CHECKED
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import ErrorCode
from llava_wire.redis.keys import PREFIX
from llava_wire.worker_side.consumer import JobConsumer

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, after_script, frame, heartbeat, make_image, make_job
from tests.wire.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(killable_server: RedisServer) -> RedisServer:
    return killable_server


@pytest.mark.parametrize("restored_data", ["none", "latest", "older"])
async def test_a_live_stream_survives_a_restart_of_redis(harness: Harness, restored_data: str) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client, (image, tiles) = harness.client(producer), make_image("cat")
    job = make_job(image)
    await producer.submit(job, {image.digest: tiles})
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1)])
    older = harness.server.snapshot()
    await consumer.emit([frame(assignment, 1, 2)])
    await client.receives(job, 1, 2)
    dumps = {"none": None, "latest": harness.server.snapshot(), "older": older}
    harness.server.restart(dumps[restored_data])
    refused = (await consumer.emit([frame(assignment, 2, 3)])).refused
    assert refused == (set() if restored_data == "latest" else {job.job_id})
    if refused:
        await async_wait_until(lambda: harness.redis.llen(PREFIX + "log:" + job.job_id) == 2)
        (assignment,) = await consumer.pull(1)
        assert (assignment.token_ids, assignment.text) == ((1, 2), "<1><2>")
        assert assignment.pixels == {image.digest: tiles}
        await consumer.emit([frame(assignment, 2, 3)])
    await consumer.emit([frame(assignment, 3, 4, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (1, 2, 3, 4)


async def test_a_queued_job_survives_an_empty_redis(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client, job = harness.client(producer), make_job()
    await producer.submit(job, {})
    harness.server.restart(None)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await client.receives_end(job)


async def test_a_restart_before_the_first_read_is_detected(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    harness.server.restart(None)
    client = harness.client(producer)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await client.receives_end(job)


async def test_frames_that_a_worker_wrote_before_a_restart_are_kept(harness: Harness) -> None:
    """The log starts with the delivered frames, so no token is generated twice."""
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1)])
    client = harness.client(producer)
    await client.receives(job, 1)
    await client.close()
    await consumer.emit([frame(assignment, 1, 2)])
    harness.server.restart(harness.server.snapshot())
    client = harness.client(producer)
    await client.receives(job, 2)
    assert (await consumer.emit([frame(assignment, 2, 3, final=STOP)])).refused == set()
    await client.receives_end(job)


async def test_frames_that_another_worker_wrote_to_an_older_log_are_not_delivered(harness: Harness) -> None:
    """The client received tokens 1 and 2. After a restart with older data, another worker wrote 7 after 1."""
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    await consumer.emit([frame(assignment, 0, 1)])
    older = harness.server.snapshot()
    await consumer.emit([frame(assignment, 1, 2)])
    client = harness.client(producer)
    await client.receives(job, 1, 2)
    await client.close()
    harness.server.restart(older)
    other = await harness.consumer("w2")
    await consumer.requeue([assignment])
    (wrong,) = await other.pull(1)
    await other.emit([frame(wrong, 1, 7, 8)])
    client = harness.client(producer)
    await async_wait_until(lambda: harness.redis.hget(PREFIX + "job:" + job.job_id, "state") == b"queued")
    assert (await other.emit([frame(wrong, 3, 9)])).refused == {job.job_id}
    (right,) = await other.pull(1)
    assert right.token_ids == (1, 2)
    await other.emit([frame(right, 2, 3, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (3,)


async def test_data_loss_is_detected_without_a_broken_connection(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client = harness.client(producer)
    job, assignment = await harness.running(producer, consumer)
    await producer.reap()
    await consumer.emit([frame(assignment, 0, 1)])
    await client.receives(job, 1)
    old_id = producer.controller_id
    harness.redis.flushall()
    await producer.reap()
    assert producer.controller_id != old_id
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"))
    assert (await consumer.emit([frame(assignment, 1, 2)])).refused == {job.job_id}
    (again,) = await consumer.pull(1)
    assert again.token_ids == (1,)
    await consumer.emit([frame(again, 1, 2, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (1, 2)


async def test_a_submission_in_progress_survives_a_new_controller_id(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()

    async def change_identity() -> None:
        producer._ledger.change_identity()
        await producer._reader.poll(None)  # must not cancel the job, which Redis knows under the former ID

    after_script(producer, "submit", change_identity)
    job = make_job()
    await producer.submit(job, {})
    client = harness.client(producer)
    await async_wait_until(lambda: not producer._ledger.former_ids, "the removal of the former ID")
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_job_cancelled_before_redis_lost_data_does_not_run(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    client = harness.client(producer)
    await producer.submit(job, {})
    older = harness.server.snapshot()
    await producer.cancel(job.job_id, tenant=job.tenant)
    harness.server.restart(older)
    await async_wait_until(lambda: not harness.redis.zcard(PREFIX + "wait:m"))
    assert await consumer._pull(1) == []
    assert client.events == {}


async def test_workers_are_registered_again_in_an_empty_redis(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    harness.server.restart(None)
    await consumer.send_heartbeat()
    await consumer.reconcile([])
    assert [each.worker_id for each in await producer.heartbeats()] == ["w1"]


async def test_without_redis_a_producer_fails_fast_and_a_worker_waits(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    harness.client(producer)
    harness.server.kill()
    pull = asyncio.create_task(consumer.pull(1))
    for call in (producer.submit(job, {}), producer.reap(), producer.stats(), producer.ping()):
        with pytest.raises(QueueUnavailable) as raised:
            await call
        assert raised.value.retry_after_s > 0
    harness.server.start()
    assert await pull == []


async def test_connecting_without_redis_fails(server: RedisServer) -> None:
    server.kill()
    with pytest.raises(QueueUnavailable):
        await JobProducer.connect(server.url)
    with pytest.raises(QueueUnavailable):
        await JobConsumer.connect(server.url, heartbeat("w1"))
    server.start()


async def test_a_hanging_redis_is_treated_as_unavailable(harness: Harness) -> None:
    """The connection is open, but Redis does not reply. Callers get an error, and deadlines are enforced."""
    producer, job, late = await harness.producer(timeout_s=0.3), make_job(ttl_s=0.01), make_job()
    client = harness.client(producer)
    harness.server.pause()
    with pytest.raises(QueueUnavailable):
        await producer.submit(late, {})
    harness.server.resume()
    await producer.submit(job, {})
    final = await client.receives_end(job)
    assert final.error
    assert final.error.code is ErrorCode.DEADLINE_EXCEEDED
    await async_wait_until(lambda: not harness.redis.zcard(PREFIX + "wait:m"))


async def test_a_job_whose_submit_timed_out_does_not_run(harness: Harness) -> None:
    """Redis accepted the job but replied too late. The client received a 503, so the job must not run."""
    producer, consumer, job = await harness.producer(timeout_s=0.3), await harness.consumer(), make_job()
    harness.client(producer)
    harness.server.pause()
    with pytest.raises(QueueUnavailable):
        await producer.submit(job, {})
    harness.server.resume()
    await async_wait_until(
        lambda: harness.redis.hget(PREFIX + "job:" + job.job_id, "state") in (None, b"cancelled")
    )
    await async_wait_until(lambda: not producer._ledger.pending_cancels)
    assert await consumer._pull(1) == []


async def test_a_cancel_that_redis_did_not_receive_is_sent_later(harness: Harness) -> None:
    producer, consumer, job = await harness.producer(), await harness.consumer(), make_job()
    await producer.submit(job, {})
    dump = harness.server.snapshot()
    harness.server.kill()
    with pytest.raises(QueueUnavailable):
        await producer.cancel(job.job_id, tenant=job.tenant)
    harness.server.restart(dump)
    client = harness.client(producer)
    await async_wait_until(lambda: not harness.redis.zcard(PREFIX + "wait:m"))
    assert await consumer._pull(1) == []
    assert client.events == {}


async def test_many_idle_jobs_are_checked_in_short_calls(harness: Harness) -> None:
    """A single call for all jobs would block Redis. Each job that is lost from its queue is found."""
    producer = await harness.producer(check_interval_s=0, max_queued=2000, max_tenant_jobs=2000)
    jobs = [make_job() for _ in range(2 * MAX_CHECKED + 1)]
    for job in jobs:
        await producer.submit(job, {})
    harness.redis.zrem(PREFIX + "wait:m", jobs[0].job_id, jobs[-1].job_id)
    harness.redis.config_set("slowlog-log-slower-than", 0)
    client = harness.client(producer)
    await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m") == len(jobs))
    await client.close()
    calls = b" ".join(entry["command"] for entry in harness.redis.slowlog_get(1000))
    num_arguments = [int(number) for number in re.findall(rb"\((\d+) more arguments\)", calls)]
    assert MAX_CHECKED < max(num_arguments) <= 2 * MAX_CHECKED
    for job in jobs:
        await producer.cancel(job.job_id, tenant=job.tenant)
