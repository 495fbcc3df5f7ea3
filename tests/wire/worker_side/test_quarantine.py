"""Quarantine: after two worker crashes, a job runs alone. After another crash, it fails."""

from __future__ import annotations

import pytest
from llava_wire.controller_side.producer import JobProducer
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event
from llava_wire.messages.job import Job
from llava_wire.redis.keys import PREFIX

from tests.wire.harness import STOP, Harness, frame, make_job

pytestmark = pytest.mark.anyio


async def crash(harness: Harness, producer: JobProducer, worker_id: str) -> None:
    harness.kill_worker(worker_id)
    await producer.reap()


async def two_quarantined_jobs(harness: Harness, producer: JobProducer) -> list[Job]:
    """Return two jobs that ran together, first on one worker and then on another. Both workers crashed."""
    jobs = [make_job(), make_job()]
    for job in jobs:
        await producer.submit(job, {})
    for name in ("first", "second"):
        assert len(await (await harness.consumer(name)).pull(4)) == 2
        await crash(harness, producer, name)
    return jobs


def frames(assignment: Assignment, number: int) -> list[list[tuple[Assignment, Event]]]:
    start = len(assignment.token_ids)
    return [[frame(assignment, start + index, index)] for index in range(number)]


async def test_one_crash_does_not_quarantine_any_job(harness: Harness) -> None:
    producer = await harness.producer()
    for _ in range(2):
        await producer.submit(make_job(), {})
    await (await harness.consumer("first")).pull(4)
    await crash(harness, producer, "first")
    assert len(await (await harness.consumer("second")).pull(4)) == 2


async def test_each_job_runs_alone_after_two_crashes(harness: Harness) -> None:
    producer = await harness.producer()
    await two_quarantined_jobs(harness, producer)
    await producer.submit(make_job(), {})
    worker = await harness.consumer("third")
    assert len(await worker.pull(4)) == 1
    assert await worker._pull(4) == []  # the other quarantined job and the new job must wait
    other = await harness.consumer("fourth")
    assert len(await other.pull(4)) == 1


async def test_a_job_that_crashes_alone_fails_and_other_jobs_continue(harness: Harness) -> None:
    producer = await harness.producer()
    client = harness.client(producer)
    crashing, other = await two_quarantined_jobs(harness, producer)
    (alone,) = await (await harness.consumer("third")).pull(4)
    assert alone.job == crashing
    await crash(harness, producer, "third")
    assert (await client.receives_end(crashing)).error
    worker = await harness.consumer("fourth")
    (assignment,) = await worker.pull(4)
    assert assignment.job == other
    await worker.emit([frame(assignment, 0, 1, final=STOP)])
    assert await client.receives_end(other) == STOP
    (letter,) = harness.dead_letters()
    assert (letter["job"], letter["reason"]) == (crashing.job_id, "worker lease expired")


async def test_a_quarantined_job_that_runs_past_its_last_crash_is_cleared(harness: Harness) -> None:
    producer = await harness.producer()
    _, other = await two_quarantined_jobs(harness, producer)
    await producer.cancel(other.job_id, tenant=other.tenant)
    worker = await harness.consumer("third")
    (assignment,) = await worker.pull(1)
    await producer.submit(make_job(), {})
    for events in frames(assignment, 7):
        await worker.emit(events)
    assert await worker._pull(4) == []
    assert (await worker.emit([frame(assignment, 7, 7)])).refused == set()
    assert len(await worker._pull(4)) == 1


async def test_a_cleared_job_yields_to_the_next_quarantined_job_and_continues_later(harness: Harness) -> None:
    producer, worker = await harness.producer(), await harness.consumer("third")
    first, second = await two_quarantined_jobs(harness, producer)
    for job in (first, second):
        (assignment,) = await worker.pull(4)
        assert (assignment.job, assignment.token_ids) == (job, ())
        for events in frames(assignment, 7):
            assert (await worker.emit(events)).refused == set()
        assert (await worker.emit([frame(assignment, 7, 7)])).refused == (
            {job.job_id} if job is first else set()
        )
    (assignment,) = await worker.pull(4)
    assert (assignment.job, len(assignment.token_ids)) == (first, 8)


async def test_one_busy_worker_at_a_time_drains_for_a_quarantined_job(harness: Harness) -> None:
    producer = await harness.producer()
    busy = [await harness.consumer("b1"), await harness.consumer("b2")]
    running = [await harness.running(producer, consumer) for consumer in busy]
    quarantined = make_job()
    await producer.submit(quarantined, {})
    for name in ("first", "second"):
        await (await harness.consumer(name)).pull(1)
        await crash(harness, producer, name)
    assert await busy[0]._pull(1) == []
    assert not harness.keys("ward:")  # the job in quarantine has not waited long enough
    for _ in range(2):
        await producer.submit(make_job(), {})
    harness.redis.hset(f"{PREFIX}job:{quarantined.job_id}", "queued_at", "0")
    assert await busy[0]._pull(1) == []  # draining for the quarantined job
    assert len(await busy[1]._pull(1)) == 1
    await busy[0].emit([frame(running[0][1], 0, 1, final=STOP)])
    (assignment,) = await busy[0]._pull(4)
    assert assignment.job == quarantined


async def test_a_worker_with_a_quarantined_job_is_not_woken(harness: Harness) -> None:
    producer, consumer = await harness.producer(), await harness.consumer()
    await two_quarantined_jobs(harness, producer)
    await consumer.pull(1)
    harness.redis.delete(PREFIX + "wake:m")
    assert await consumer._pull(1) == []
    assert not harness.keys("wake:")


def redis_now_ms(harness: Harness) -> int:
    seconds, microseconds = harness.redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


async def crash_together(harness: Harness, producer: JobProducer, names: list[str], *, apart_ms: int) -> None:
    """Let the leases of these workers end ``apart_ms`` apart, and detect the crashes one after another."""
    last_end_ms = redis_now_ms(harness) - 1
    for index, name in enumerate(names):
        harness.kill_worker(name, lease_end_ms=last_end_ms - (len(names) - 1 - index) * apart_ms)
        await producer.reap()


async def run_on_two_workers(harness: Harness, producer: JobProducer, round_number: int) -> list[str]:
    """Let two workers pull one waiting job each. Return the names of the workers."""
    names = [f"w{round_number}-{index}" for index in range(2)]
    for name in names:
        assert len(await (await harness.consumer(name)).pull(1)) == 1
    return names


async def test_workers_that_crash_at_the_same_time_are_no_evidence_against_their_jobs(
    harness: Harness,
) -> None:
    producer = await harness.producer()
    for _ in range(2):
        await producer.submit(make_job(), {})
    for round_number in range(2):
        names = await run_on_two_workers(harness, producer, round_number)
        await crash_together(harness, producer, names, apart_ms=1000)
        harness.redis.delete(f"{PREFIX}crashed")  # the next round is later than four leases
    assert not harness.redis.exists(f"{PREFIX}suspects:m")
    assert len(await (await harness.consumer("last")).pull(4)) == 2


async def test_crashes_that_are_a_lease_apart_are_evidence(harness: Harness) -> None:
    """A job that crashes one worker after another also causes crashes with this distance."""
    producer = await harness.producer(lease_s=5.0)
    for _ in range(2):
        await producer.submit(make_job(), {})
    for round_number in range(2):
        names = await run_on_two_workers(harness, producer, round_number)
        await crash_together(harness, producer, names, apart_ms=5000)
        harness.redis.delete(f"{PREFIX}crashed")  # the next round is later than four leases
    assert harness.redis.zcard(f"{PREFIX}suspects:m") == 2


async def test_simultaneous_crashes_count_after_the_fourth(harness: Harness) -> None:
    """Two copies of a request that crashes its worker would otherwise excuse each other without end."""
    producer = await harness.producer()
    for _ in range(2):
        await producer.submit(make_job(), {})
    for round_number in range(6):
        assert not harness.redis.exists(f"{PREFIX}suspects:m")
        names = await run_on_two_workers(harness, producer, round_number)
        await crash_together(harness, producer, names, apart_ms=1000)
        harness.redis.delete(f"{PREFIX}crashed")  # the next round is later than four leases
    assert harness.redis.zcard(f"{PREFIX}suspects:m") == 2


async def test_other_jobs_are_served_between_two_quarantined_jobs(harness: Harness) -> None:
    producer = await harness.producer()
    first, _ = await two_quarantined_jobs(harness, producer)
    worker = await harness.consumer("third")
    (assignment,) = await worker.pull(1)
    assert assignment.job == first
    other = make_job()
    await producer.submit(other, {})
    await worker.emit([frame(assignment, 0, 1, final=STOP)])
    (assignment,) = await worker.pull(1)
    assert assignment.job == other
