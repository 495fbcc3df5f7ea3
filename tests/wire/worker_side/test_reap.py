from __future__ import annotations

import pytest
from llava_wire.messages.event import ErrorCode, FinishReason
from llava_wire.redis.keys import PREFIX

from tests.waiting import async_wait_until
from tests.wire.harness import STOP, Harness, frame, heartbeat, make_job

pytestmark = pytest.mark.anyio


async def test_the_stream_of_a_dead_worker_continues_on_another_and_the_first_is_fenced(
    harness: Harness,
) -> None:
    producer, old, new = await harness.producer(), await harness.consumer("w1"), await harness.consumer("w2")
    client = harness.client(producer)
    job, stale = await harness.running(producer, old)
    await old.emit([frame(stale, 0, 1, 2)])
    harness.kill_worker("w1")
    assert await producer.reap() == 1
    (assignment,) = await new.pull(1)
    assert (assignment.token_ids, assignment.text) == ((1, 2), "<1><2>")
    await new.emit([frame(assignment, 2, 3)])
    assert (await old.emit([frame(stale, 2, 99)])).refused == {job.job_id}
    await new.emit([frame(assignment, 3, 4, final=STOP)])
    await client.receives_end(job)
    assert client.tokens(job) == (1, 2, 3, 4)


async def test_a_worker_that_sends_heartbeats_keeps_its_jobs(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    _, assignment = await harness.running(producer, consumer)
    harness.kill_worker("w1")
    await consumer.send_heartbeat()
    assert await producer.reap() == 0
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_a_worker_without_progress_loses_its_jobs(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, assignment = await harness.running(producer, consumer)
    harness.hang_worker("w1")
    await consumer.send_heartbeat()  # the process is alive, but the engine hangs
    assert await producer.reap() == 1
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == {job.job_id}


async def test_a_worker_that_makes_progress_keeps_its_jobs(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    _, assignment = await harness.running(producer, consumer)
    harness.hang_worker("w1")
    await consumer.emit([])
    assert await producer.reap() == 0
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_an_idle_worker_is_not_considered_hung(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await consumer.emit([])
    harness.hang_worker("w1")
    assert await producer.reap() == 0
    _, assignment = await harness.running(producer, consumer)
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_a_reaped_job_keeps_its_position(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer("w1")
    first, _ = await harness.running(producer, consumer)
    later = [make_job() for _ in range(2)]
    for job in later:
        await producer.submit(job, {})
    harness.kill_worker("w1")
    await producer.reap()
    other = await harness.consumer("w2")
    assert [each.job for each in await other.pull(4)] == [first, *later]


async def test_a_job_becomes_a_dead_letter_after_three_crashes(harness: Harness) -> None:
    producer = await harness.producer()
    client, job = harness.client(producer), make_job()
    await producer.submit(job, {})
    for life in range(3):
        consumer = await harness.consumer(f"w{life}")
        (assignment,) = await consumer.pull(1)
        await consumer.emit([frame(assignment, life, life)])
        harness.kill_worker(f"w{life}")
        await producer.reap()
    final = await client.receives_end(job)
    assert final.reason is FinishReason.ERROR
    assert final.error
    assert final.error.code is ErrorCode.WORKER_CRASHED
    assert [event.offset for event in client.events[job.job_id]] == [0, 1, 2, 3]
    (letter,) = harness.dead_letters()
    assert letter["job"] == job.job_id
    assert (await producer.stats()).num_dead_letters == 1
    log = await producer.attach(job.job_id, tenant=job.tenant)
    assert log == client.events[job.job_id]


async def test_a_requeue_is_not_counted_as_a_crash(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    client, job = harness.client(producer), make_job()
    await producer.submit(job, {})
    for _ in range(5):
        (assignment,) = await consumer.pull(1)
        await consumer.requeue([assignment])
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_requeued_job_continues_and_its_old_worker_is_rejected(harness: Harness) -> None:
    producer, old, new = await harness.producer(), await harness.consumer("w1"), await harness.consumer("w2")
    job, stale = await harness.running(producer, old)
    await old.emit([frame(stale, 0, 1)])
    await old.requeue([stale])
    (assignment,) = await new.pull(1)
    assert assignment.token_ids == (1,)
    await old.requeue([stale])  # a repeated call with an outdated assignment has no effect
    assert (await old.emit([frame(stale, 1, 2)])).refused == {job.job_id}
    assert (await new.emit([frame(assignment, 1, 2)])).refused == set()


async def test_a_deregistered_worker_is_not_listed_and_its_jobs_are_requeued(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer("w1")
    job, _ = await harness.running(producer, consumer)
    await consumer.deregister()
    assert await producer.heartbeats() == []
    other = await harness.consumer("w2")
    assert [each.job for each in await other.pull(1)] == [job]
    assert harness.redis.hget(PREFIX + "job:" + job.job_id, "crashes") == b"0"


async def test_a_worker_drops_its_old_assignment_before_it_accepts_the_same_job(harness: Harness) -> None:
    """A reaped worker that is still alive pulls the same job again. It must never hold a job twice."""
    producer, consumer = await harness.producer(), await harness.consumer()
    job, _ = await harness.running(producer, consumer)
    harness.kill_worker("w1")
    await producer.reap()
    for _ in range(2):
        assert await consumer._pull(1) == []
    assert (await consumer.emit([])).refused == {job.job_id}
    (assignment,) = await consumer.pull(1)
    assert assignment.job == job
    assert (await consumer.emit([frame(assignment, 0, 1)])).refused == set()


async def test_no_worker_or_controller_is_reaped_right_after_a_redis_outage(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await harness.running(producer, consumer)
    harness.kill_worker("w1")
    harness.hang_worker("w1")
    harness.kill_controller("some controller")
    harness.redis.delete(PREFIX + "reaped")  # as if no controller had called reap for the length of a lease
    assert await producer.reap() == 0
    harness.kill_worker("w1")
    assert await producer.reap() == 1


async def test_a_job_that_expired_while_running_is_not_reaped(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    job, _ = await harness.running(producer, consumer)
    harness.redis.delete(PREFIX + "job:" + job.job_id)
    harness.kill_worker("w1")
    assert await producer.reap() == 0
    harness.redis.hdel(PREFIX + "tenant:alice", job.job_id)  # would expire later


async def test_only_heartbeats_of_live_workers_are_returned(harness: Harness) -> None:
    producer, consumer, _ = (
        await harness.producer(),
        await harness.consumer("w1"),
        await harness.consumer("w2"),
    )
    changed = heartbeat("w1", model="new name")
    await consumer.send_heartbeat(changed)
    harness.kill_worker("w2")
    assert await producer.heartbeats() == [changed]


async def test_a_worker_with_an_expired_lease_is_not_listed(harness: Harness) -> None:
    producer = await harness.producer()
    await harness.consumer("w1", lease_s=0.01)
    await async_wait_until(lambda: not harness.keys("heartbeat:"))
    assert await producer.heartbeats() == []


async def test_the_stats_count_jobs_workers_and_controllers(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await harness.running(producer, consumer)
    await producer.submit(make_job(), {})
    await producer.submit(make_job(model="other"), {})
    stats = await producer.stats()
    assert stats.num_waiting == {"m": 1, "other": 1}
    assert stats.num_running == {"m": 1}
    assert (stats.num_workers, stats.num_controllers, stats.num_live) == (1, 1, 3)


async def test_the_stats_of_a_model_without_workers_are_read_if_it_is_named(harness: Harness) -> None:
    producer, other = await harness.producer(), await harness.producer()
    await producer.submit(make_job(model="idle", cost=40.5), {})
    await producer.submit(make_job(model="idle", cost=2.0), {})
    assert (await other.stats()).num_waiting == {}
    stats = await other.stats(models=["idle", "unused"])
    assert stats.num_waiting == {"idle": 2, "unused": 0}
    assert stats.cost_waiting == {"idle": 42.5, "unused": 0.0}
